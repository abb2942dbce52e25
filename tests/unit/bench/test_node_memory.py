"""How much memory a measurement may take: of a job Slurm's number, else the control groups', else all there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.partition.node_memory import job_memory_mib, node_memory_mib


@pytest.mark.parametrize(
    ("environment", "mib"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096),
        ({"SLURM_MEM_PER_CPU": "2000", "SLURM_CPUS_ON_NODE": "16"}, 32000),
        ({"SLURM_MEM_PER_NODE": "1000", "SLURM_MEM_PER_CPU": "2000", "SLURM_CPUS_ON_NODE": "16"}, 1000),
    ],
)
def test_what_slurm_gave(environment: dict[str, str], mib: float) -> None:
    assert job_memory_mib(environment) == mib


@pytest.mark.parametrize("environment", [{}, {"SLURM_MEM_PER_NODE": "0"}, {"SLURM_MEM_PER_CPU": "2000"}])
def test_where_slurm_names_none_the_node_decides(environment: dict[str, str]) -> None:
    assert job_memory_mib(environment) == node_memory_mib()


def test_the_smallest_limit_of_the_groups_above(tmp_path: Path) -> None:
    job = tmp_path / "system.slice" / "job_1" / "step_0"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text(f"{512 << 20}\n")
    (tmp_path / "system.slice" / "memory.max").write_text(f"{2048 << 20}\n")
    groups = "0::/system.slice/job_1/step_0\n"
    assert node_memory_mib(groups, tmp_path, 8192.0) == 512
    assert node_memory_mib(groups, tmp_path, 100.0) == 100
    assert node_memory_mib("0::/elsewhere\n", tmp_path, 8192.0) == 8192


def test_groups_of_version_1(tmp_path: Path) -> None:
    job = tmp_path / "memory" / "slurm" / "job_1"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text(f"{256 << 20}\n")
    groups = "3:cpu,cpuacct:/other\n2:hugetlb,memory:/slurm/job_1\n0::/\n"
    assert node_memory_mib(groups, tmp_path, 8192.0) == 256
