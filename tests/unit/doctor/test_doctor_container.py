"""Checks of containers: the runtime and the image outside, and inside what came in from the host."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from doctor_fakes import complains, fails, passes, says, skips, subject, warns
from harness import edit

from fedhpc.agreement.images import SHA256_VARIABLE
from fedhpc.doctor import container_fit
from fedhpc.doctor.check import Finding
from fedhpc.doctor.commands import Output
from fedhpc.doctor.container_fit import families_fit, pmix_fits
from fedhpc.doctor.inside import Container, container_of, in_user_namespace
from fedhpc.doctor.libmpi import Library
from fedhpc.doctor.subject import Subject

OPENMPI_4 = Library("Open MPI v4.1.4, package: x", ("/usr/lib/libmpi.so.40",))
OPENMPI_5 = Library("Open MPI v5.0.8, package: x", ("/usr/lib/libmpi.so.40",))
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
CPU = hashlib.sha256(b"sif").hexdigest()
IMAGE = '[slurm.container]\nimage = "cpu.sif"'


def machine(folder: Path, files: dict[str, str] | None = None, *, inside: bool = False) -> Path:
    """A root directory with these files; `inside`: of an Apptainer container."""
    root = folder / "root"
    for path, text in (files or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    root.mkdir(exist_ok=True)
    if inside:
        (root / ".singularity.d").mkdir()
    return root


def outside(folder: Path, scripts: dict[str, str] | None = None, section: str = "", **changes: Any) -> Subject:
    """A site whose jobs run in an image, on a machine outside."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = f'profile = "generic"\n\n{IMAGE}\n{section}'
    return subject(folder, scripts, slurm=lines, **{"root": machine(folder), **changes})


def within(folder: Path, files: dict[str, str] | None = None, slurm: str = "", **changes: Any) -> Subject:
    """A site's process inside a container."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"APPTAINER_CONTAINER": "/x/cpu.sif", **changes.pop("environment", {})}
    return subject(folder, slurm=slurm, root=machine(folder, files, inside=True), environment=environment, **changes)


# --- which container


def test_a_container_is_known_by_what_its_runtime_leaves(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    leaked = {"APPTAINER_CONTAINER": "/x.sif", "SINGULARITY_CONTAINER": "/x.sif"}
    assert container_of(leaked, bare) is None, "a variable that a job brought along"
    assert container_of({"CH_RUNNING": "Weird Al Yankovic"}, bare) == Container("Charliecloud")
    (bare / ".singularity.d").mkdir()
    assert container_of(leaked, bare) == Container("Apptainer", "/x.sif")
    assert container_of({"SINGULARITY_CONTAINER": "/y.sif"}, bare) == Container("Singularity", "/y.sif")
    podman = machine(tmp_path, {"run/.containerenv": ""})
    assert container_of({}, podman) == Container("Podman")


# --- the runtime


def test_the_runtime_and_its_version(tmp_path: Path) -> None:
    skips("container", subject(tmp_path / "0", root=machine(tmp_path)), "names no image")
    fails("container", outside(tmp_path / "1"), "no apptainer on PATH", "module load apptainer", code=64)
    fails("container", outside(tmp_path / "2", {"apptainer": complains("wrong libc")}), "wrong libc", code=64)
    passes("container", outside(tmp_path / "3", {"apptainer": says("apptainer version 1.3.4")}), "1.3.4")
    good = {"singularity": says("singularity-ce version 4.1.3")}
    passes("container", outside(tmp_path / "4", good, 'command = "singularity"'), "singularity-ce version 4.1.3")
    ch = {"ch-run": f'[ -n "$USER" ] || exit 1\n{complains("0.31", 0)}'}
    passes("container", outside(tmp_path / "5", ch, 'runtime = "charliecloud"'), "0.31")
    passes("container", within(tmp_path / "6"), "inside Apptainer, /x/cpu.sif")


@pytest.mark.parametrize(("version", "state"), [("1.1.9", "fail"), ("1.2.0", "ok"), ("1.10.0", "ok")])
def test_certificates_need_a_newer_apptainer(tmp_path: Path, version: str, state: str) -> None:
    scripts = {"apptainer": says(f"apptainer version {version}")}
    made = outside(tmp_path, scripts, 'certificate = "lab.pem"')
    if state == "ok":
        passes("container", made, version)
    else:
        fails("container", made, "verifies no certificates", "1.2", code=64)


@pytest.mark.parametrize(
    ("file", "value"), [("user/max_user_namespaces", "0\n"), ("kernel/unprivileged_userns_clone", "0\n")]
)
def test_no_user_namespaces(tmp_path: Path, file: str, value: str) -> None:
    root = machine(tmp_path, {f"proc/sys/{file}": value})
    fails("container-userns", outside(tmp_path / "1", root=root), file.split("/")[1], "sysctl", code=64)
    ch = outside(tmp_path / "2", {}, 'runtime = "charliecloud"', root=root)
    fails("container-userns", ch, "restricted", "sysctl", code=64)
    (root / "proc/sys" / file).write_text("15000\n" if "max" in file else "1\n")
    passes("container-userns", outside(tmp_path / "3", root=root), "allowed")


def test_a_setuid_helper_needs_no_user_namespaces(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/sys/user/max_user_namespaces": "0\n"})
    made = outside(tmp_path / "fed", {"apptainer": says("apptainer version 1.3.4")}, root=root)
    helper = tmp_path / "fed" / "libexec" / "apptainer" / "bin" / "starter-suid"
    helper.parent.mkdir(parents=True)
    helper.touch()
    helper.chmod(0o755)
    fails("container-userns", made, "restricted", "apptainer-suid", code=64)
    helper.chmod(0o4755)
    passes("container-userns", made, "setuid helper")


def test_apparmor_may_restrict_user_namespaces(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"})
    warns("container-userns", outside(tmp_path / "fed", root=root), "apparmor_restrict", "AppArmor profile")
    skips("container-userns", within(tmp_path / "in"), "they were made")
    skips("container-userns", subject(tmp_path / "none", root=root), "names no image")


def test_what_the_ranks_have_is_looked_at_where_they_are(tmp_path: Path) -> None:
    """A login node needs neither PyTorch nor MPI for jobs that run in an image."""
    broken = Library(trouble="no libmpi")
    for name in (
        "packages",
        "backend",
        "mpi-library",
        "mpi-one-library",
        "mpi-pmi",
        "mpi-world",
        "torch-build",
        "horovod",
    ):
        by_hand = name in ("backend", "mpi-world", "torch-build", "horovod")  # not part of --quick
        where = "apptainer exec IMAGE fedhpc doctor" if by_hand else "before a job's start"
        skips(name, outside(tmp_path / name, library=broken), where)
    fails(
        "mpi-library",
        within(tmp_path / "in", slurm=f'profile = "generic"\ntasks_per_node = 2\n{IMAGE}', library=broken),
        code=64,
    )
    later = outside(tmp_path / "later", library=broken, environment={**STEP, SHA256_VARIABLE: ""})
    fails("mpi-library", later, "no libmpi", code=64)
    for name in ("container", "container-userns", "container-image"):
        skips(name, later, "began outside of images")
    said = outside(tmp_path / "said", library=broken, environment={**STEP, SHA256_VARIABLE: CPU})
    fails("mpi-library", said, "no libmpi", code=64)


# --- the image


def agree(folder: Path, sha256: str = CPU) -> None:
    """federation.toml lists one image."""
    with (folder / "federation.toml").open("a") as file:
        file.write(f'\n[container]\ncpu = "sha256:{sha256}"\n')


def written(folder: Path) -> Path:
    """The files of a site, to be changed before they are read."""
    subject(folder)
    return folder


def test_the_image_is_there_and_is_the_agreed_one(tmp_path: Path) -> None:
    fails("container-image", outside(tmp_path / "1"), "cpu.sif is not there", "paths start at the site file", code=74)
    made = outside(tmp_path / "2")
    image = tmp_path / "2" / "sites" / "cpu.sif"
    image.write_bytes(b"sif")
    passes("container-image", made, f"sha256 {CPU[:16]}")
    agree(written(tmp_path / "3"))
    (tmp_path / "3" / "sites" / "cpu.sif").write_bytes(b"sif")
    passes("container-image", outside(tmp_path / "3"), "cpu of federation.toml")
    (tmp_path / "3" / "sites" / "cpu.sif").write_bytes(b"changed")
    made = subject(tmp_path / "3", root=machine(tmp_path / "3"))
    fails("container-image", made, "does not list", f"cpu sha256:{CPU}", code=77)
    quick = subject(tmp_path / "3", root=machine(tmp_path / "3"), quick=True)
    skips("container-image", quick, "longer than --quick allows")


def test_an_image_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = outside(tmp_path)
    image = tmp_path / "sites" / "cpu.sif"
    image.write_bytes(b"sif")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != image and allowed(path, mode))
    fails("container-image", made, "may not be read", "owner and mode", code=74)


def test_a_folder_is_no_agreed_image(tmp_path: Path) -> None:
    made = outside(tmp_path / "1")
    (tmp_path / "1" / "sites" / "cpu.sif").mkdir()
    passes("container-image", made, "a folder without a digest")
    agree(written(tmp_path / "2"))
    (tmp_path / "2" / "sites" / "cpu.sif").mkdir()
    fails("container-image", outside(tmp_path / "2"), "a folder, which has no SHA-256", code=77)


def test_inside_the_job_says_which_image_it_is(tmp_path: Path) -> None:
    skips("container-image", within(tmp_path / "0"), "lists no images")
    agree(written(tmp_path / "1"))
    fails("container-image", within(tmp_path / "1"), "is not set", "fedhpc submit --container", code=77)
    environment = {SHA256_VARIABLE: "1" * 64}
    agree(written(tmp_path / "2"))
    fails("container-image", within(tmp_path / "2", environment=environment), "does not list", code=77)
    agree(written(tmp_path / "3"))
    passes("container-image", within(tmp_path / "3", environment={SHA256_VARIABLE: CPU}), "cpu, sha256")


def test_agreed_images_and_a_site_without_one(tmp_path: Path) -> None:
    skips("container-image", subject(tmp_path / "0", root=machine(tmp_path)), "names no image")
    agree(written(tmp_path / "1"))
    warns("container-image", subject(tmp_path / "1", root=machine(tmp_path)), "names none", "submit --container")
    job = subject(tmp_path / "1", root=machine(tmp_path), environment=STEP)
    fails("container-image", job, "in none of them", code=77)


# --- what must come in


def test_a_home_that_takes_no_files(tmp_path: Path) -> None:
    skips("container-home", subject(tmp_path / "0", root=machine(tmp_path)), "no container")
    (tmp_path / "home").mkdir()
    passes("container-home", within(tmp_path / "1", environment={"HOME": str(tmp_path / "home")}), "home")
    fails("container-home", within(tmp_path / "2", environment={"HOME": ""}), "is not set", "--home", code=74)
    gone = within(tmp_path / "3", environment={"HOME": str(tmp_path / "gone")})
    fails("container-home", gone, "takes no files: No such file", "fedhpc submit --container", code=74)
    fails("container-home", within(tmp_path / "4", environment={"HOME": "/proc"}), "/proc, takes no files", code=74)


def gpus(folder: Path, files: dict[str, str], **environment: str) -> Subject:
    made = within(folder, files, 'profile = "generic"\ngpus_per_node = 1', environment={**STEP, **environment})
    edit(folder / "sites" / "aa.toml", "device = 'cpu'", "device = 'cuda'")
    return subject(folder, root=made.root, environment={**STEP, "APPTAINER_CONTAINER": "/x", **environment})


def test_gpus_that_did_not_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"SLURM_STEP_GPUS": "0"}
    skips("container-gpu", subject(tmp_path / "0", root=machine(tmp_path)), "no container")
    skips("container-gpu", within(tmp_path / "1"), "asks for no GPUs")
    skips("container-gpu", gpus(tmp_path / "2", {}), "was given no GPU")
    fails("container-gpu", gpus(tmp_path / "3", {}, **given), "neither /dev/nvidia*", 'gpu = "nv"', code=64)
    passes("container-gpu", gpus(tmp_path / "4", {"dev/kfd": ""}, **given), "driver's library was not looked at")
    # No libcuda.so.1 is on a machine without a driver; where one is, the call is answered for it.
    answers = {1: Output(1, "", "OSError: libcuda.so.1"), 0: Output(0)}
    for code, check in ((1, fails), (0, passes)):
        monkeypatch.setattr(container_fit, "call", lambda *words, code=code: answers[code])
        made = gpus(tmp_path / f"5{code}", {"dev/nvidia0": ""}, **given)
        if check is fails:
            fails("container-gpu", made, "libcuda.so.1 is not in this container", "--nv", code=64)
        else:
            passes("container-gpu", made, "libcuda.so.1 are here")


def test_an_image_without_nvidia_smi_is_no_node_without_gpus(tmp_path: Path) -> None:
    skips("gpus", gpus(tmp_path, {"dev/kfd": ""}, SLURM_STEP_GPUS="0"), "container-gpu looks")


# --- what must fit


def bind(folder: Path, host: str, own: str, library: Library) -> Finding:
    """Bind mode with the host's library `host`, an image that has `own`, and what mpi4py loads."""
    (folder / "host").mkdir(parents=True)
    if host:
        (folder / "host" / host).touch()
    slurm = f'profile = "generic"\n\n[slurm.container]\nmpi = "bind"\nmpi_library = ["{folder}/host"]'
    made = within(folder / "fed", {f"opt/fedhpc/lib/{own}": ""} if own else {}, slurm, library=library)
    return container_fit.mpi_family(made)


def test_the_hosts_mpi_of_the_other_family(tmp_path: Path) -> None:
    found = bind(tmp_path / "1", "libmpi.so.12", "libmpi.so.40", OPENMPI_4)
    assert (found.state, found.exit_code) == ("fail", 64)
    assert "host has MPICH's ABI (libmpi.so.12)" in found.what
    assert "an image with MPICH's ABI" in found.fix
    found = bind(tmp_path / "2", "libmpi.so.40", "libmpi.so.12", OPENMPI_4)
    assert "host has Open MPI's ABI" in found.what
    found = bind(tmp_path / "3", "", "libmpi.so.40", OPENMPI_4)
    assert (found.state, "has no libmpi in this container" in found.what) == ("fail", True)
    found = bind(tmp_path / "4", "libmpi.so.40", "libmpi.so.40", OPENMPI_4)
    assert (found.state, "and not" in found.what) == ("fail", True), "the image's own is loaded"
    found = bind(tmp_path / "5", "libmpi.so.40", "", Library(trouble="libucp.so.0: cannot open"))
    assert (found.state, "libucp.so.0" in found.what, "mpi_library" in found.fix) == ("fail", True, True)
    loaded = Library("Open MPI v5.0.8, x", (str(tmp_path / "6" / "host" / "libmpi.so.40"),))
    assert bind(tmp_path / "6", "libmpi.so.40", "libmpi.so.40", loaded).state == "ok"


def test_a_library_path_of_the_host_that_leads_to_another_family(tmp_path: Path) -> None:
    skips("container-mpi", subject(tmp_path / "0", root=machine(tmp_path)), "no container")
    passes("container-mpi", within(tmp_path / "1", library=OPENMPI_5), "the image's Open MPI v5.0.8")
    (tmp_path / "cray").mkdir()
    (tmp_path / "cray" / "libmpi.so.12").touch()
    path = {"LD_LIBRARY_PATH": f"{tmp_path}/cray"}
    made = within(tmp_path / "2", {"usr/lib/libmpi.so.40": ""}, environment=path, library=OPENMPI_5)
    fails("container-mpi", made, "of the host has MPICH's ABI", "hybrid", code=64)
    assert families_fit(Library(trouble="no libmpi"), {}, {}, bind=False).state == "fail"


@pytest.mark.parametrize(
    ("server", "client", "state"),
    [
        ("4.2.2", "OpenPMIx 4.2.2, repo rev: x", "ok"),
        ("4.2.2", "OpenPMIx 5.0.8, repo", "ok"),
        ("3.1.5", "OpenPMIx 5.0.8, repo", "warn"),
        ("?", "OpenPMIx 5.0.8", "skipped"),
    ],
)
def test_versions_of_pmix(server: str, client: str, state: str) -> None:
    found = pmix_fits(server, client)
    assert (found.state, bool(found.fix)) == (state, state == "warn")


def test_pmix_of_srun_and_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skips("container-pmix", subject(tmp_path / "0", root=machine(tmp_path)), "no container")
    skips("container-pmix", within(tmp_path / "1", environment=STEP), "did not start this process with PMIx")
    step = {**STEP, "PMIX_VERSION": "4.2.2", "PMIX_SERVER_TMPDIR": str(tmp_path / "spool")}
    warns("container-pmix", within(tmp_path / "2", environment=step), "is not in this container", "PMIX_MCA_gds")
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(container_fit, "call", lambda *words: Output(0, "OpenPMIx 5.0.8, repo\n"))
    passes("container-pmix", within(tmp_path / "3", environment=step), "srun has PMIx 4.2.2, the image OpenPMIx 5.0.8")
    monkeypatch.setattr(container_fit, "call", lambda *words: Output(1, "", "TypeError"))
    skips("container-pmix", within(tmp_path / "4", environment=step), "no libpmix")


def test_the_pmix_of_what_is_loaded_here_is_read() -> None:
    """The program that the check runs, for real: Open MPI's own libpmix, wherever mpi4py finds it."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-P", "-c", container_fit._PMIX], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert pmix_fits("4.2.2", done.stdout.strip()).state in ("ok", "warn")


NAMESPACE = {"proc/self/uid_map": "      1000       1000          1\n"}
WHOLE = {"proc/self/uid_map": "         0          0 4294967295\n"}


def test_ranks_that_cannot_copy_from_one_another(tmp_path: Path) -> None:
    two = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}
    skips("container-memory", subject(tmp_path / "0", root=machine(tmp_path)), "no container")
    skips("container-memory", within(tmp_path / "1", NAMESPACE, environment=STEP), "one rank on a node")
    passes("container-memory", within(tmp_path / "2", WHOLE, environment=two, library=OPENMPI_4), "share one")
    apart = within(tmp_path / "3", NAMESPACE, environment=two, library=OPENMPI_4)
    fails("container-memory", apart, "Open MPI 4 hangs", "btl_vader_single_copy_mechanism", code=64)
    told = {**two, "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
    passes("container-memory", within(tmp_path / "4", NAMESPACE, environment=told, library=OPENMPI_4), "of its own")
    ucx = {**told, "OMPI_MCA_pml": "ucx"}
    warns("container-memory", within(tmp_path / "5", NAMESPACE, environment=ucx, library=OPENMPI_5), "posix", "UCX_TLS")
    scope = WHOLE | {"proc/sys/kernel/yama/ptrace_scope": "2\n"}
    passes("container-memory", within(tmp_path / "6", scope, environment=told, library=OPENMPI_4), "ptrace_scope is 2")
    alone = within(tmp_path / "7", scope, environment=two, library=OPENMPI_4)
    warns("container-memory", alone, "ptrace_scope is 2: Open MPI 4 may not copy")
    assert not in_user_namespace(tmp_path / "nowhere")
