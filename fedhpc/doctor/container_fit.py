"""Checks from within a container: what must come in from the host, and what must fit to it."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from fedhpc.app.logs import printable
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import call
from fedhpc.doctor.inside import first_line, in_user_namespace
from fedhpc.doctor.libmpi import Library
from fedhpc.doctor.slurm_facts import major_minor
from fedhpc.doctor.subject import Subject
from fedhpc.errors import StorageError
from fedhpc.mpi.library import family, libraries_in

GROUP = "Container"
_OUTSIDE = "this is no container"
_FAMILIES = {"openmpi": "Open MPI's ABI (libmpi.so.40)", "mpich": "MPICH's ABI (libmpi.so.12)"}
_OWN = ("usr/lib", "usr/lib64", "usr/lib/*-linux-gnu", "usr/local/lib", "opt/*/lib")
_VADER = "OMPI_MCA_btl_vader_single_copy_mechanism"
_GIVEN = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_DRIVER = "import ctypes; ctypes.CDLL('libcuda.so.1')"
_PMIX = """
import ctypes, re
from fedhpc.mpi.library import load_library
load_library()
path = re.search(r"/\\S*libpmix\\.so\\S*", open("/proc/self/maps").read())
said = ctypes.CDLL(path[0]).PMIx_Get_version
said.restype = ctypes.c_char_p
print(said().decode())
"""


def home(subject: Subject) -> Finding:
    """HOME is a folder that takes files."""
    if subject.container is None:
        return skipped(_OUTSIDE)
    given = subject.environment.get("HOME", "")
    fix = "`fedhpc submit --container` gives each job one; by hand --home DIR, or --set-env=HOME=DIR and a bind of DIR"
    if not given:
        return fail("HOME is not set", fix, StorageError.exit_code)
    try:
        with tempfile.TemporaryFile(dir=given, prefix=".fedhpc-doctor-"):
            return ok(printable(given))
    except OSError as error:
        return fail(f"HOME, {printable(given)}, takes no files: {error.strerror}", fix, StorageError.exit_code)


def gpu(subject: Subject) -> Finding:
    """The GPU's device and its driver's library came in."""
    if subject.container is None:
        return skipped(_OUTSIDE)
    if not subject.wants_gpus:
        return skipped("this site asks for no GPUs")
    given = any(subject.environment.get(n, "") not in ("", "NoDevFiles") for n in _GIVEN)
    if not subject.in_job or (subject.place == "step" and not given):
        return skipped("this step was given no GPU" if subject.in_job else "only a job has its GPUs")
    if (subject.root / "dev" / "kfd").exists():
        return ok("/dev/kfd is here; the driver's library was not looked at")
    if not list((subject.root / "dev").glob("nvidia[0-9]*")):
        return fail(
            "neither /dev/nvidia* nor /dev/kfd is in this container",
            'the runtime brings them in by --nv or --rocm: [slurm.container] gpu = "nv" or "rocm"',
        )
    answer = call([sys.executable, "-I", "-S", "-c", _DRIVER], subject.environment, 5.0)
    if answer.code != 0:
        return fail(
            "/dev/nvidia* is here, but the driver's libcuda.so.1 is not in this container",
            'apptainer brings it in by --nv: [slurm.container] gpu = "nv"; charliecloud: ch-fromhost --nvidia IMAGE',
        )
    return ok("/dev/nvidia* and libcuda.so.1 are here")


def mpi_family(subject: Subject) -> Finding:
    """The host's MPI, where it is bound in, has the ABI of the image's own."""
    section = subject.asked.inside
    if subject.container is None:
        return skipped(_OUTSIDE)
    path = subject.environment.get("LD_LIBRARY_PATH", "").split(":")
    host = libraries_in(
        [Path(p) for p in (section.mpi_library if section.mpi == "bind" else path) if p.startswith("/")]
    )
    own = libraries_in(folder for pattern in _OWN for folder in sorted(subject.root.glob(pattern)))
    if section.mpi == "bind" and not host:
        return fail(
            f"{', '.join(section.mpi_library)} has no libmpi in this container",
            "bind the folder that has it on the host",
        )
    return families_fit(subject.library, host, own, bind=section.mpi == "bind")


def families_fit(library: Library, host: dict[Path, str], own: dict[Path, str], *, bind: bool) -> Finding:
    """`library`: what mpi4py loads; `host`: what was bound in, in order; `own`: the image's."""
    first = next(iter(host), None)
    if first is not None and own and host[first] not in own.values():
        mine = next(iter(own))
        return fail(
            f"{first} of the host has {_FAMILIES[host[first]]}, and the image's {mine} has {_FAMILIES[own[mine]]}",
            f'an image with {_FAMILIES[host[first]]}, or the image\'s own MPI: mpi = "hybrid" and no LD_LIBRARY_PATH',
        )
    if library.trouble:
        return fail(
            f"mpi4py cannot load an MPI library: {library.trouble}",
            "bind the folders of what it needs too, by mpi_library" if bind else "an image with an MPI library",
        )
    loaded = library.loaded[0] if library.loaded else ""
    if bind and host and not any(Path(loaded).resolve() == path.resolve() for path in host):
        return fail(
            f"mpi4py loads {loaded or 'a library of its own'}, and not {first} of the host",
            "MPI4PY_LIBMPI inside names the host's; [slurm.container] environment must not name another",
        )
    kind = _FAMILIES.get(family(library.version), "an unknown ABI")
    return ok(f"{'the host' if bind else 'the image'}'s {library.name}, {kind}")


def pmix(subject: Subject) -> Finding:
    """The PMIx that srun speaks, and the one in the image."""
    if subject.container is None:
        return skipped(_OUTSIDE)
    server = subject.environment.get("PMIX_VERSION", "")
    if subject.place != "step" or not server:
        return skipped("srun did not start this process with PMIx")
    folder = subject.environment.get("PMIX_SERVER_TMPDIR", "")
    if folder and not Path(folder).is_dir():
        return warn(
            f"Slurm's PMIx keeps what the ranks of a node share in {printable(folder)}, which is not in this container",
            '[slurm.container] binds = the folder above it; or environment = { PMIX_MCA_gds = "hash" }',
        )
    answer = call([sys.executable, "-P", "-c", _PMIX], subject.environment, 6.0)
    if answer.code != 0:
        return skipped("what mpi4py loads brings no libpmix that could be asked")
    return pmix_fits(server, answer.out.strip())


def pmix_fits(server: str, client: str) -> Finding:
    """`server`: of srun, such as 4.2.2; `client`: what the image's library says of itself."""
    theirs, ours = major_minor(server), major_minor(client)
    words = f"srun has PMIx {printable(server)}, the image {printable(client.partition(',')[0])}"
    if theirs is None or ours is None:
        return skipped(f"{words}: no version can be read")
    if abs(theirs[0] - ours[0]) > 1:
        return warn(
            f"{words}: they are more than one major version apart",
            "an image with a PMIx nearer to the cluster's, or srun's own: [slurm] mpi, from `srun --mpi=list`",
        )
    return ok(words)


def memory(subject: Subject) -> Finding:
    """The ranks of a node can read each other's memory, or do not try to."""
    if subject.container is None:
        return skipped(_OUTSIDE)
    if ranks_of_node(subject) < 2:
        return skipped("one rank on a node")
    scope = first_line(subject.root / "proc" / "sys" / "kernel" / "yama" / "ptrace_scope")
    apart = in_user_namespace(subject.root)
    if not apart and scope in ("", "0", "1"):
        return ok("the ranks of a node share one user namespace")
    why = "each rank has a user namespace of its own" if apart else f"ptrace_scope is {scope}"
    given, library = subject.environment, subject.library
    if family(library.version) == "openmpi" and library.major < 5 and given.get(_VADER) != "none":
        fix = f'[slurm.container] environment = {{ {_VADER} = "none" }}, which `fedhpc submit` sets by itself'
        # Seen with 4.1.4: it says that it falls back on something else, and messages of some megabytes never arrive.
        if apart:
            return fail(f"{why}: Open MPI {library.major} hangs in large messages", fix)
        return warn(f"{why}: Open MPI {library.major} may not copy between ranks", fix)
    if "ucx" in given.get("OMPI_MCA_pml", "") and not given.get("UCX_TLS"):
        return warn(
            f"{why}: UCX's posix and cma cannot reach other ranks",
            '[slurm.container] environment = { UCX_TLS = "sysv,ib,self" }, with the transports of your network',
        )
    return ok(f"{why}; nothing here is known to copy between ranks")


def ranks_of_node(subject: Subject) -> int:
    """The most ranks of this site on one node."""
    said = subject.environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = [int(n) for n in re.sub(r"\(x\d+\)", "", said).split(",") if n.isdigit()]  # such as 2(x3),1
    return max([*counts, subject.asked.tasks_per_node])


CHECKS = (
    Check("container-home", GROUP, "caches of PyTorch and the ledger's default home lie below HOME", home),
    Check("container-gpu", GROUP, "a container sees no GPU unless its driver is brought in", gpu),
    Check("container-mpi", GROUP, "programs built for one family's ABI crash with the library of another", mpi_family),
    Check("container-pmix", GROUP, "ranks that cannot talk to srun's PMIx each think that they are alone", pmix),
    Check(
        "container-memory",
        GROUP,
        "ranks in namespaces of their own cannot copy from one another; Open MPI 4 then hangs",
        memory,
    ),
)
