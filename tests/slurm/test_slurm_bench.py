"""Measurements over two nodes of a real cluster: one command, and the ReFrame suite."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster
from harness import ROOT
from rooted_apptainer import write_apptainer
from slurm_fakes import write_site

pytestmark = pytest.mark.slurm

COMMAND = ["--", "sum", "--sites", "4", "--params", "1000000", "--repeat", "2"]
SLURM = {"mpi": "pmix", "partition": "cpu", "time": "00:20:00", "nodes": 2, "tasks_per_node": 2, "memory": "4G"}


AS_ROOT = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"


def submitted(
    alpha: Cluster, folder: Path, *words: str, seconds: float = 240, **slurm: object
) -> tuple[int, Path, str]:
    """The exit code of a benchmark's job, where its measurements are, and its log."""
    site = write_site(folder / "fed", slurm=SLURM | slurm)
    line = ["python", "-m", "fedhpc", "submit", site, "--json", "--shape", "bench", *words]
    said = json.loads(alpha.run(*line, timeout=120).splitlines()[-1])
    jobs = next((folder / "fed").rglob(f"{said['name']}.sbatch")).parent
    code = alpha.wait(said["job"], seconds).code
    return code, jobs / f"{said['name']}.bench-0", next(jobs.glob(f"{said['name']}-*.out")).read_text()


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_command_over_two_nodes(alpha: Cluster, tmp_path: Path) -> None:
    code, measured, log = submitted(
        alpha, tmp_path, "--", *["sum", "--sites", "4", "--params", "1000000", "--repeat", "2"]
    )
    assert code == 0, log
    found = records(measured.with_name(f"{measured.name}.jsonl"))
    assert [record["repeat"] for record in found] == [1, 2]
    assert all(record["verified"] and record["settings"]["nodes"] == 2 for record in found)
    assert found[0]["command"].startswith(
        "srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --mpi=pmix python -m mpi4py -m fedhpc bench sum --sites 4 "
    )


def test_the_suite_over_two_nodes(alpha: Cluster, tmp_path: Path) -> None:
    """Strong scaling from one node to two; ReFrame's report and ours agree that every figure arrived."""
    words = ["--suite", str(ROOT / "benchmarks" / "partition"), "--tag", "smoke", "--tag", "SumOverNodes"]
    code, measured, log = submitted(alpha, tmp_path, *words)
    assert code == 0, log
    found = records(measured / "results" / "partition.jsonl")
    assert {(record["settings"]["nodes"], tuple(record["ranks"])) for record in found} == {(1, (1, 1)), (2, (2, 2))}
    assert all(record["verified"] and record["params"] == 1_000_000 for record in found)
    assert "2 checks: 2 lines, 0 left out, 0 errors" in log
    assert " 0 errors, 0 files without records" in log


def test_mpirun_keeps_the_layout(alpha: Cluster, tmp_path: Path) -> None:
    """By itself it would put both ranks of a measurement over two nodes on the first, and ReFrame would not see it."""
    words = ["--suite", str(ROOT / "benchmarks" / "partition"), "--tag", "smoke", "--tag", "SumOverNodes"]
    code, measured, log = submitted(alpha, tmp_path, *words, launcher="mpirun", setup=[AS_ROOT])
    assert code == 0, log
    found = records(measured / "results" / "partition.jsonl")
    assert {(record["settings"]["nodes"], tuple(record["ranks"])) for record in found} == {(1, (1, 1)), (2, (2, 2))}
    assert {record["command"].split(" python")[0] for record in found} == {
        "mpirun -n 2",
        "mpirun -n 4 --map-by ppr:2:node",
    }


HOSTS = """
import json, socket
from mpi4py import MPI
hosts = MPI.COMM_WORLD.gather(socket.gethostname())
if hosts:
    print(json.dumps({"hosts": hosts}))
"""


def test_ranks_of_its_own_stay_on_the_first_node(alpha: Cluster, tmp_path: Path) -> None:
    """Their files are in its /tmp; mpirun alone would take the other node of the job, too."""
    (tmp_path / "ranks_hosts.py").write_text(HOSTS)
    code = "from fedhpc.bench.start import measure_ranks as m; print(m('ranks_hosts', 4, {})['hosts'])"
    script = f"#!/bin/bash\nexport PYTHONPATH={tmp_path}\npython -c {shlex.quote(code)} > {tmp_path / 'told'}\n"
    job = alpha.sbatch(script, "--nodes=2", "--ntasks-per-node=2")
    assert alpha.wait(job, 120).code == 0
    assert (tmp_path / "told").read_text().strip() == str(["a1"] * 4)


@pytest.mark.parametrize("what", ["command", "suite"])
def test_in_an_image(alpha: Cluster, tmp_path: Path, what: str) -> None:
    """A stand-in for Apptainer: its root shows the folder of jobs, and nothing else of the run."""
    calls = tmp_path / "calls"
    command = write_apptainer(tmp_path / "bin" / "apptainer", calls, shown=[alpha.folder])
    (tmp_path / "cpu.sif").write_bytes(b"an image")
    words = COMMAND if what == "command" else ["--tag", "smoke", "--tag", "SumOverNodes"]
    code, measured, log = submitted(
        alpha,
        tmp_path,
        *words,
        setup=[f"export PATH={command.parent}:$PATH"],
        container={"image": str(tmp_path / "cpu.sif"), "python": sys.executable},
    )
    assert code == 0, log
    lines = measured.with_name(f"{measured.name}.jsonl") if what == "command" else measured / "results/partition.jsonl"
    assert {record["verified"] for record in records(lines)} == {True}
    assert max(record["settings"]["nodes"] for record in records(lines)) == 2
    assert len(calls.read_text().splitlines()) == (4 if what == "command" else 2 + 4), "every rank, and nothing else"
