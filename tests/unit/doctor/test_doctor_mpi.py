"""Checks of Python, packages, MPI and GPUs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest
from doctor_fakes import CONFIG, complains, fails, found, passes, says, skips, slurm, subject, warns
from harness import edit

from fedhpc.doctor import backend, gpus, horovod, software
from fedhpc.doctor.libmpi import Library
from fedhpc.doctor.subject import Subject
from fedhpc.horovod.installed import Installed
from fedhpc.mpi.library import family, libraries

OPEN_5 = Library("Open MPI v5.0.11, package: Open MPI x@y, ident: 5.0.11", ("/opt/lib/libmpi.so.40",))
OPEN_4 = Library("Open MPI v4.1.4, package: Debian", ("/usr/lib/libmpi.so.40",))
MPICH = Library("MPICH Version:      4.3.1\nMPICH Release date: …", ("/opt/lib/libmpi.so.12",))
CRAY = Library("MPI VERSION    : CRAY MPICH version 8.1.29.8 (ANL base 3.4a2)", ("/opt/lib/libmpi_cray.so.12",))
INTEL = Library("Intel(R) MPI Library 2021.19 for Linux* OS", ("/opt/lib/libmpi.so.12",))
NONE = Library(trouble="cannot load MPI library")
TWO_RANKS = "tasks_per_node = 2"
GPU_SITE = "tasks_per_node = 4\ngpus_per_node = 4\ncpus_per_task = 1"
IN_JOB = {"SLURM_JOB_ID": "7"}
AUTO = [("device = 'cpu'", "device = 'auto'")]


# --- Python and packages


def test_this_python_fits(tmp_path: Path) -> None:
    passes("python", subject(tmp_path), sys.executable)


def test_an_old_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    fails("python", subject(tmp_path), "Python 3.9.18", ">=3.11", code=64)


WITH_TORCH = [("device = 'cpu'", "device = 'cpu'\nbackend = 'ddp'")]


def test_these_packages_fit_and_training_with_torch_needs_it(tmp_path: Path) -> None:
    assert "torch" not in found("packages", subject(tmp_path / "numpy")).what
    site = subject(tmp_path, site=WITH_TORCH)
    passes("packages", site, "numpy", "torch")
    edit(tmp_path / "federation.toml", "[task]", "[taskless]")
    text = (tmp_path / "federation.toml").read_text()
    (tmp_path / "federation.toml").write_text(
        text.partition("[taskless]")[0] + "[[site]]" + text.partition("[[site]]")[2]
    )
    assert "torch" not in found("packages", subject(tmp_path)).what


def test_packages_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"numpy": "1.26.4", "torch": None}
    real = software._installed
    monkeypatch.setattr(software, "_installed", lambda name: have[name] if name in have else real(name))
    words = ("numpy 1.26.4 is not >=2.0", "torch is missing", "pip install 'fedhpc[train]'")
    fails("packages", subject(tmp_path, site=WITH_TORCH), *words, code=64)


@pytest.mark.parametrize(
    ("version", "range_", "inside"),
    [
        ("2.13.0+cpu", ">=2.4", True),
        ("2.10", ">=2.9", True),
        ("1.26.4", ">=2.0", False),
        ("2.0", ">=2.0.0", True),
        ("3.0", ">=2.4,<3", False),
        ("8.1.7", "!=8.1.7", False),
        ("8.1.7", ">8.1.6,<=8.1.7", True),
    ],
)
def test_ranges(version: str, range_: str, inside: bool) -> None:
    assert software.fits(version, range_) is inside


# --- the library


def test_the_library_of_these_tests_is_found_without_starting_mpi(tmp_path: Path) -> None:
    site = subject(tmp_path)
    passes("mpi-library", site, "MPI")
    assert not site.library.trouble
    assert len(site.library.loaded) == 1


def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    site = subject(tmp_path, environment={"MPI4PY_MPIABI": "mpich", "MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    warns("mpi-library", site, "cannot load")
    site = subject(tmp_path / "2", slurm=TWO_RANKS, library=NONE)
    fails("mpi-library", site, "cannot load", "module load", code=64)
    skips("mpi-one-library", site)


def test_two_libraries_in_one_process(tmp_path: Path) -> None:
    both = Library(OPEN_5.version, ("/opt/lib/libmpi.so.40", "/usr/lib/libmpi.so.12"))
    fails("mpi-one-library", subject(tmp_path, library=both), "loads 2 MPI libraries", "h5py", code=64)
    passes("mpi-one-library", subject(tmp_path / "2", library=OPEN_5), "/opt/lib/libmpi.so.40")


def test_the_wheels_library_hides_the_clusters(tmp_path: Path) -> None:
    (tmp_path / "libmpi.so.12").touch()
    site = subject(tmp_path, library=OPEN_5, environment={"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"})
    warns("mpi-one-library", site, f"offers {tmp_path}/libmpi.so.12", "another ABI (MPICH", "pip uninstall")
    (tmp_path / "libmpi.so.12").rename(tmp_path / "libmpi.so.40")
    same = Library(OPEN_5.version, (str(tmp_path / "libmpi.so.40"),))
    passes("mpi-one-library", subject(tmp_path, library=same, environment={"LD_LIBRARY_PATH": str(tmp_path)}))


def test_families_and_maps() -> None:
    assert [family(found.version) for found in (OPEN_5, OPEN_4, MPICH, CRAY, INTEL)] == [
        *("openmpi", "openmpi", "mpich", "mpich", "mpich")
    ]
    assert family("IBM Spectrum MPI 10.4") == "openmpi"
    assert family("somebody's own") == ""
    maps = [
        "7f-7f r-xp 0 08:01 12 /opt/a b/libmpi.so.40.30.4\n",
        "7f-7f r--p 0 08:01 12 /opt/a b/libmpi.so.40.30.4\n",
        "7f-7f r-xp 0 08:01 13 /usr/lib/libmpi_cray.so.12\n",
        "7f-7f r-xp 0 08:01 14 /usr/lib/libmpi_cxx.so.40\n",
        "7f-7f rw-p 0 00:00 0 [heap]\n",
    ]
    assert libraries(maps) == ["/opt/a b/libmpi.so.40.30.4", "/usr/lib/libmpi_cray.so.12"]
    assert (OPEN_5.major, OPEN_4.major, OPEN_5.name) == (5, 4, "Open MPI v5.0.11")


# --- Horovod


def test_horovod_where_a_site_trains_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skips("horovod", subject(tmp_path), 'backend is "auto"')
    with_horovod = [("[compute]\n", "[compute]\nbackend = 'horovod'\n")]

    def site(number: int, found: Installed | None, **more: object) -> Subject:
        monkeypatch.setattr(horovod, "look", lambda environment, limit_s: found)
        return subject(tmp_path / str(number), site=with_horovod, **more)

    built = Installed("0.28.1", mpi=True, libraries=OPEN_5.loaded)
    passes("horovod", site(1, built), "Horovod 0.28.1 with MPI", OPEN_5.loaded[0])
    fails("horovod", site(2, None), "not installed", "make horovod", "python -m fedhpc.horovod", code=64)
    fails("horovod", site(3, Installed("0.28.1")), "without MPI", code=64)
    both = dataclasses.replace(built, libraries=(*OPEN_5.loaded, "/usr/lib/libmpi.so.12"))
    fails("horovod", site(4, both), "another MPI library than mpi4py's", "/usr/lib/libmpi.so.12", code=64)
    fails("horovod", site(5, Installed(trouble="libmpi.so.40: no such file")), "libmpi.so.40", code=64)


# --- the launcher


@pytest.mark.parametrize(
    ("library", "mpi", "listed", "default"),
    [
        (OPEN_5, "pmix", "none pmi2 pmix", ""),
        (OPEN_5, "", "none pmi2 pmix", "pmix"),
        (OPEN_5, "pmix_v4", "none pmix pmix_v4", "none"),
        (OPEN_4, "pmi2", "none pmi2", "none"),
        (MPICH, "pmi2", "none pmi2 pmix", "none"),
        (CRAY, "", "none cray_shasta", "cray_shasta"),
        (INTEL, "pmi2", "none pmi2", "none"),
    ],
)
def test_launchers_that_fit(tmp_path: Path, library: Library, mpi: str, listed: str, default: str) -> None:
    passes("mpi-pmi", launched(tmp_path, library, mpi, listed, default))


@pytest.mark.parametrize(
    ("library", "mpi", "listed", "default", "fix"),
    [
        (OPEN_5, "pmi2", "none pmi2 pmix", "none", 'mpi = "pmix"'),
        (OPEN_5, "", "none pmi2 pmix", "none", 'mpi = "pmix"'),
        (OPEN_5, "pmi2", "none pmi2", "pmi2", "mpirun"),
        (OPEN_5, "pmix_v9", "none pmix pmix_v4", "none", 'mpi = "pmix"'),
        (MPICH, "", "none pmi2", "none", 'mpi = "pmi2"'),
        (CRAY, "", "none cray_shasta", "none", 'mpi = "cray_shasta"'),
    ],
)
def test_launchers_that_give_worlds_of_one(
    tmp_path: Path, library: Library, mpi: str, listed: str, default: str, fix: str
) -> None:
    whose = "([slurm] mpi)" if mpi else "(MpiDefault)"
    fails("mpi-pmi", launched(tmp_path, library, mpi, listed, default), fix, whose, code=64)


def test_a_type_that_srun_lists_and_cannot_load(tmp_path: Path) -> None:
    """As with Debian's Slurm, whose plugin wants a libpmix.so that only a development package brings."""
    says_so = "srun: error: mpi/pmix_v4: can not load PMIx library\nsrun: error: Invalid MPI type 'pmix'"
    listed = says("MPI plugin types are...\n\tpmix\n")
    srun = f'case "$*" in\n*--test-only*) {complains(says_so)};;\nesac\n{listed}'
    site = subject(tmp_path, slurm() | {"srun": srun}, slurm=TWO_RANKS + '\nmpi = "pmix"', library=OPEN_5)
    fails("mpi-pmi", site, "lists pmix, but cannot load it", "can not load PMIx library", "libpmix", code=64)
    busy = srun.replace("Invalid MPI type", "Requested partition configuration not available")
    passes("mpi-pmi", subject(tmp_path / "2", slurm() | {"srun": busy}, slurm='mpi = "pmix"', library=OPEN_5))


def test_launchers_that_may_fit(tmp_path: Path) -> None:
    warns("mpi-pmi", launched(tmp_path / "1", MPICH, "pmix", "none pmi2 pmix", "none"), "alone", 'mpi = "pmi2"')
    one = launched(tmp_path / "2", OPEN_5, "", "none pmi2 pmix", "none", ranks=1)
    warns("mpi-pmi", one, "alone")


def test_launchers_that_are_not_judged(tmp_path: Path) -> None:
    skips("mpi-pmi", launched(tmp_path / "1", NONE, "pmix", "none pmix", "none"), "no MPI library")
    skips("mpi-pmi", launched(tmp_path / "2", Library("new", ()), "pmix", "none pmix", "none"), "no known family")
    skips("mpi-pmi", subject(tmp_path / "3", {}, slurm=TWO_RANKS), "no srun")
    skips("mpi-pmi", subject(tmp_path / "4", slurm() | {"srun": complains("no")}, slurm=TWO_RANKS), "no answer")
    skips("mpi-pmi", subject(tmp_path / "5", slurm(), slurm='launcher = "mpirun"'), "starts its ranks itself")


def launched(folder: Path, library: Library, mpi: str, listed: str, default: str, ranks: int = 2) -> Subject:
    config = CONFIG.replace("MpiDefault              = pmix", f"MpiDefault = {default}")
    text = "MPI plugin types are...\n" + "".join(f"\t{name}\n" for name in listed.split())
    asked = f"tasks_per_node = {ranks}" + (f'\nmpi = "{mpi}"' if mpi else "")
    return subject(folder, slurm(config=config, mpi=text), slurm=asked, library=library)


def test_ranks_that_do_not_see_each_other(tmp_path: Path) -> None:
    """As with the wrong PMI: every rank says what it found in a world of one."""
    words = "error: SLURM_NTASKS says 2 ranks, but MPI_COMM_WORLD has 1"
    job = IN_JOB | {"SLURM_NTASKS": "4"}
    site = subject(tmp_path, slurm() | {"srun": complains(words, 64)}, slurm=TWO_RANKS, environment=job)
    fails("mpi-world", site, "2 ranks were started", words, "pmix", code=64)
    site = subject(tmp_path / "2", slurm() | {"srun": says("1\n1\n")}, slurm=TWO_RANKS, environment=job)
    fails("mpi-world", site, "worlds of 1", code=64)


def test_ranks_that_see_each_other(tmp_path: Path) -> None:
    job = IN_JOB | {"SLURM_NTASKS": "4"}
    check = 'case "$*" in *"--ntasks=2 --mpi=pmix "*fedhpc.mpi.count) echo 2; echo 2;; *) exit 3;; esac'
    site = subject(tmp_path, slurm() | {"srun": check}, slurm=TWO_RANKS + '\nmpi = "pmix"', environment=job)
    passes("mpi-world", site, "2 ranks see each other")


def test_only_ranks_of_a_job_can_see_each_other(tmp_path: Path) -> None:
    skips("mpi-world", subject(tmp_path, slurm(), slurm=TWO_RANKS), "only ranks of a job")
    one = IN_JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    skips("mpi-world", subject(tmp_path / "2", slurm(), environment=one), "one task")
    skips("mpi-world", subject(tmp_path / "3", slurm(), environment=IN_JOB), "one task")


# --- GPUs


NVIDIA = "NVIDIA A100-SXM4-64GB, 535.129.03\n" * 4
AMD = json.dumps(
    {f"card{i}": {"Card Series": "AMD Instinct MI250X"} for i in range(4)} | {"system": {"Driver version": "6.3.6"}}
)


@pytest.mark.parametrize(
    ("tool", "text", "words"),
    [
        ("nvidia-smi", NVIDIA, "4 x NVIDIA A100-SXM4-64GB, driver 535.129.03"),
        ("rocm-smi", AMD, "4 x AMD Instinct MI250X, driver 6.3.6"),
    ],
)
def test_as_many_gpus_as_asked_for(tmp_path: Path, tool: str, text: str, words: str) -> None:
    passes("gpus", subject(tmp_path, {tool: says(text)}, slurm=GPU_SITE, site=AUTO, environment=IN_JOB), words)


def test_gpus_that_are_missing_or_broken(tmp_path: Path) -> None:
    def site(number: int, tools: dict[str, str]) -> Subject:
        return subject(tmp_path / str(number), tools, slurm=GPU_SITE, site=AUTO, environment=IN_JOB)

    fails("gpus", site(1, {}), "neither nvidia-smi nor rocm-smi", code=64)
    fails("gpus", site(2, {"nvidia-smi": says(NVIDIA[: len(NVIDIA) // 2])}), "2 GPUs here, 4 asked for", code=64)
    broken = complains("Failed to initialize NVML: Driver/library version mismatch", 18)
    fails("gpus", site(3, {"nvidia-smi": broken}), "version mismatch", "driver is broken", code=64)
    fails("gpus", site(4, {"rocm-smi": says("no JSON")}), "gave no JSON", code=64)


def test_gpus_that_cannot_be_seen_from_here(tmp_path: Path) -> None:
    skips("gpus", subject(tmp_path / "1", slurm(), slurm=GPU_SITE, site=AUTO), "login nodes")
    step = IN_JOB | {"SLURM_STEP_ID": "0"}
    skips("gpus", subject(tmp_path / "2", {}, slurm=GPU_SITE, site=AUTO, environment=step), "given no GPU")
    skips("gpus", subject(tmp_path / "3", {}), "asks for no GPUs")
    given = step | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    fails("gpus", subject(tmp_path / "4", {}, slurm=GPU_SITE, site=AUTO, environment=given), code=64)


def test_ranks_and_gpus_of_a_node(tmp_path: Path) -> None:
    site = AUTO
    passes("gpu-ranks", subject(tmp_path / "1", {}, slurm=GPU_SITE, site=site), "4 ranks, 4 GPUs")
    two = GPU_SITE.replace("tasks_per_node = 4", "tasks_per_node = 8")
    warns("gpu-ranks", subject(tmp_path / "2", {}, slurm=two, site=site), "8 ranks share 4 GPUs", "gloo")
    idle = GPU_SITE.replace("tasks_per_node = 4", "tasks_per_node = 1")
    warns("gpu-ranks", subject(tmp_path / "3", {}, slurm=idle, site=site), "3 of 4 GPUs")
    warns("gpu-ranks", subject(tmp_path / "4", {}, slurm=GPU_SITE), 'device = "cpu"')
    skips("gpu-ranks", subject(tmp_path / "5", {}, slurm="tasks_per_node = 4", site=site))


CUDA = {"torch": "2.13.0", "cuda": "12.8", "hip": "", "nccl": "2.27.3", "seen": 4}
CPU = {"torch": "2.13.0+cpu", "cuda": "", "hip": "", "nccl": "", "seen": 0}


def test_the_torch_of_these_tests_is_asked(tmp_path: Path) -> None:
    """It may be built for anything; the answer is about the torch that is here."""
    site = subject(tmp_path, {}, slurm=GPU_SITE, site=[("device = 'cpu'", "device = 'cuda'")], environment=IN_JOB)
    assert "torch 2." in found("torch-build", site).what
    skips("torch-build", subject(tmp_path / "2", {}), "asks for no GPUs")


def test_torch_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def site(number: int, device: str, answer: object, tools: dict[str, str], **environment: str) -> Subject:
        monkeypatch.setattr(
            gpus, "_TORCH", f"print({json.dumps(answer)!r})" if answer else "raise SystemExit('no torch')"
        )
        wanted = [("device = 'cpu'", f"device = '{device}'\nbackend = 'ddp'")]
        return subject(tmp_path / str(number), tools, slurm=GPU_SITE, site=wanted, environment=environment)

    nvidia, amd = {"nvidia-smi": ""}, {"rocm-smi": ""}
    passes("torch-build", site(1, "cuda", CUDA, nvidia, **IN_JOB), "CUDA 12.8, NCCL 2.27.3")
    fails("torch-build", site(2, "cuda", CPU, nvidia), "not built for CUDA", code=64)
    warns("torch-build", site(3, "auto", CPU, nvidia), "would train on the CPU")
    fails("torch-build", site(4, "cuda", CUDA, amd), "not built for ROCm", code=64)
    fails("torch-build", site(5, "cuda", CUDA | {"seen": 0}, nvidia, **IN_JOB), "sees no GPU", code=64)
    passes("torch-build", site(6, "cuda", CUDA | {"seen": 0}, nvidia))
    passes("torch-build", site(7, "cuda", CUDA | {"cuda": "", "hip": "6.3"}, amd), "ROCm 6.3")
    fails("torch-build", site(8, "cuda", None, nvidia), "no torch", code=64)


def test_interfaces_of_nccl(tmp_path: Path) -> None:
    def site(number: int, value: str) -> Subject:
        return subject(tmp_path / str(number), {}, environment=IN_JOB | {"NCCL_SOCKET_IFNAME": value})

    passes("nccl-interfaces", site(1, "lo"), "NCCL_SOCKET_IFNAME=lo")
    fails("nccl-interfaces", site(2, "hsn0,hsn1"), "names no interface", "it has lo", code=64)
    skips("nccl-interfaces", subject(tmp_path / "3", {}), "is set")
    skips("nccl-interfaces", subject(tmp_path / "4", {}, environment={"NCCL_SOCKET_IFNAME": "x"}), "other interfaces")


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        ("eth", ["eth0", "eth10"]),
        ("=eth1", []),
        ("=eth0,ib0", ["eth0", "ib0"]),
        ("^eth,lo", ["ib0"]),
        ("^=eth0", ["eth10", "ib0", "lo"]),
    ],
)
def test_nccls_rules_for_names(value: str, chosen: list[str]) -> None:
    assert gpus.matching(value, ["eth0", "eth10", "ib0", "lo"]) == chosen


HAS = {"torch": "2.13.0", "gloo": True, "nccl": True, "fsdp": True, "seen": 4, "bf16": True}


def test_torch_for_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()

    def site(name: str, answer: object, device: str = "cpu", low: bool = False) -> Subject:
        monkeypatch.setattr(backend, "_TORCH", f"print({json.dumps(answer)!r})" if answer else "raise SystemExit('no')")
        wanted = [("device = 'cpu'", f"device = '{device}'\nbackend = '{name}'")]
        made = subject(tmp_path / str(next(numbers)), {}, slurm=GPU_SITE, site=wanted)
        if not low:
            return made
        assert made.agreement is not None
        agreed = dataclasses.replace(made.agreement, train={**made.agreement.train, "precision": "bf16"})
        return dataclasses.replace(made, agreement=agreed)

    skips("backend", site("serial", HAS), "nothing to average")
    skips("backend", site("mpi", HAS), "averaged by MPI")
    passes("backend", site("fsdp", HAS), "torch 2.13.0, fsdp, gloo")
    passes("backend", site("auto", HAS, "cuda"), "torch 2.13.0, ddp, NCCL")
    passes("backend", site("mpi", HAS, "cuda", low=True), "torch 2.13.0, mpi, bfloat16")
    fails("backend", site("fsdp", HAS | {"fsdp": False}), "has no FSDP2", code=64)
    fails("backend", site("ddp", HAS | {"gloo": False}), "built without gloo", code=64)
    warns("backend", site("fsdp", HAS | {"nccl": False}, "cuda"), "without NCCL")
    warns("backend", site("ddp", HAS | {"bf16": False}, "cuda", low=True), "no bfloat16")
    fails("backend", site("ddp", None), "cannot be imported: no", code=64)


def test_what_trains_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_TORCH", "raise SystemExit('no')")
    monkeypatch.setattr(gpus, "_TORCH", "raise SystemExit('no')")
    skips("backend", subject(tmp_path / "none", {}), "trains without torch")
    auto = [("device = 'cpu'", "device = 'auto'")]
    idle = subject(tmp_path / "idle", {}, slurm=GPU_SITE, site=auto)
    warns("backend", idle, "GPUs stay idle")
    skips("torch-build", idle, "trains without torch")
    wrong = subject(tmp_path / "wrong", {}, site=[("device = 'cpu'", "device = 'cuda'\nbackend = 'numpy'")])
    fails("backend", wrong, "compute.device = 'cuda' asks for more", code=64)
