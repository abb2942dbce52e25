"""Checks of the run directory: space, what its file system promises, and whether the next job will find it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fedhpc.agreement.run_folder import checkpoints
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import call, find
from fedhpc.doctor.file_system import Mount, clock_offset, exercise, lock_holds, mount_of, nearest
from fedhpc.doctor.subject import Subject
from fedhpc.errors import DataError, StorageError
from fedhpc.ledger.home import home_of
from fedhpc.wire.units import size, span

GROUP = "Files"
_CODE = StorageError.exit_code
_LEAST_BYTES = 256 << 20
_LEAST_FILES = 1000
_COPIES = 4  # two checkpoints, the one being written, and what waits for an exchange
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "ramfs", "f2fs"}
_LEAST_TEMPORARY = 128 << 20
_MEMORY = {"tmpfs", "ramfs"}
_SKEW_S = 5.0
_SOCKET_PATH = 50  # what Open MPI adds for its sessions and sockets must fit into 107 bytes
_NO_RUN = "the run directory is not known"


def data(subject: Subject) -> Finding:
    """The site's data can be read from here."""
    given = None if subject.site is None else subject.site.data.get("path")
    if subject.site is None or not isinstance(given, str):
        return skipped("the site file names no data")
    path = subject.site.path(Path(given))
    if not path.exists():
        return fail(f"{path} is not there", "is its file system mounted on this node?", DataError.exit_code)
    if not os.access(path, os.R_OK):
        return fail(f"{path} may not be read", "check its owner and mode", DataError.exit_code)
    return ok(str(path))


def space(subject: Subject) -> Finding:
    """Room for checkpoints and what waits for an exchange."""
    if subject.run is None or subject.directory is None:
        return skipped(_NO_RUN)
    folder = nearest(subject.directory)
    found = os.statvfs(folder)
    free, files = found.f_bavail * found.f_frsize, found.f_favail
    newest = largest_checkpoint(subject.directory)
    need = max(_LEAST_BYTES, _COPIES * newest)
    quota = quota_left(subject, folder)
    if quota is not None and quota < free:
        free = quota
    words = f"{size(free)} free for {folder}"
    because = f"{_COPIES} checkpoints of {size(newest)}" if newest else "no checkpoint yet to measure"
    if free < 2 * newest or free < 1 << 20:
        return fail(f"{words}, too little for the next checkpoints", f"free at least {size(need)} ({because})", _CODE)
    if found.f_files and files < _LEAST_FILES:
        return fail(f"{files} files may still be made in {folder}", "remove old files, or raise the quota", _CODE)
    if free < need:
        return warn(f"{words}; {size(need)} are wanted ({because})", "free some space, or raise the quota")
    return ok(f"{words}, {size(need)} wanted" + ("" if quota is None else ", quota included"))


def largest_checkpoint(directory: Path) -> int:
    """Bytes of the largest checkpoint in RUN/SITE; 0 if there is none."""
    found = checkpoints(directory / "checkpoints").values()
    files = [[path] if path.is_file() else path.glob("*.h5") for path in found]
    return max((sum(file.stat().st_size for file in of_round) for of_round in files), default=0)


def quota_left(subject: Subject, folder: Path) -> int | None:
    """Bytes left of this user's quota on Lustre; None where it is not told."""
    mount = _mount(folder)
    if subject.quick or mount is None or mount.kind != "lustre" or find("lfs", subject.environment) is None:
        return None
    answer = call(["lfs", "quota", "-q", "-u", str(os.getuid()), mount.point], subject.environment, 10.0)
    return left_of_quota(answer.out) if answer.code == 0 else None


def left_of_quota(text: str) -> int | None:
    """Bytes left, from `lfs quota -q`: file system, kB used (with * if over), quota, limit, …; limit 0 is none."""
    words = text.split()
    numbers = [w.rstrip("*") for w in words[1:4]]
    if len(numbers) < 3 or not all(n.isdigit() for n in numbers):
        return None
    used, soft, hard = map(int, numbers)
    limit = hard or soft
    return max(0, limit - used) << 10 if limit else None


def semantics(subject: Subject) -> Finding:
    """Files are whole or absent: create, fsync, rename, link, read back; and folders that are their owner's only."""
    if subject.directory is None:
        return skipped(_NO_RUN)
    folder = nearest(subject.directory)
    try:
        trouble = exercise(folder)
    except OSError as error:
        return fail(f"{folder}: {error.strerror}", "the run directory must be writable, with space left", _CODE)
    if trouble:
        return fail(f"{folder}: {trouble}", "give an --out on a parallel or a local file system", _CODE)
    for own in (subject.run, subject.directory):
        if own is not None and own.is_dir() and own.stat().st_mode & 0o077:
            what = f"others can look into {own} (mode {own.stat().st_mode & 0o777:04o}): losses and numbers of rows"
            return warn(what, f"chmod 700 {own}")
    return ok(f"{folder} renames whole files and keeps them")


def locks(subject: Subject) -> Finding:
    """The ledger's locks hold, also between nodes as far as the mount says."""
    if subject.site is None:
        return skipped("the ledger's home is not known")
    folder = nearest(home_of(subject.site).folder)
    fix = "use a file system with flock (Lustre: mounted with -o flock), by [ledger] path"
    try:
        trouble = lock_holds(folder)
    except OSError as error:
        return fail(f"{folder} cannot be locked: {error.strerror}", fix, _CODE)
    if trouble:
        return fail(f"{folder}: {trouble}", fix, _CODE)
    alone = locks_of_one_node(_mount(folder))
    if alone:
        return fail(f"{folder} is mounted with {alone}: locks hold on one node only", fix, _CODE)
    return ok(f"{folder} keeps locks")


def locks_of_one_node(mount: Mount | None) -> str:
    """The mount option that keeps locks from other nodes; '' if there is none."""
    local = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}
    return "" if mount is None else next(iter(sorted(local & mount.options)), "")


def file_clock(subject: Subject) -> Finding:
    """The file server's clock against this machine's."""
    if subject.directory is None:
        return skipped(_NO_RUN)
    offset = clock_offset(nearest(subject.directory))
    if abs(offset) > _SKEW_S:
        word = "ahead of" if offset > 0 else "behind"
        return warn(f"the file server's clock is {span(abs(offset))} {word} this machine's", "tell the operators")
    return ok("the file server's clock is this machine's")


def shared(subject: Subject) -> Finding:
    """The run directory is where the next job, on another node, will find it."""
    if subject.directory is None:
        return skipped(_NO_RUN)
    folder = nearest(subject.directory)
    mount = _mount(folder)
    if mount is None:
        return skipped(f"the mount of {folder} is not known")
    return shared_place(folder, mount, cluster=subject.place != "laptop", temporary=_temporary(subject))


def shared_place(folder: Path, mount: Mount, *, cluster: bool, temporary: list[Path]) -> Finding:
    """`temporary`: directories that end with a job."""
    where = f"{folder} is on {mount.kind}"
    if mount.kind in _MEMORY:
        return warn(f"{where}, in memory: it is lost when this machine restarts", "choose another --out")
    inside = next((t for t in temporary if folder.is_relative_to(t)), None)
    if cluster and inside is not None:
        return warn(f"{folder} is in {inside}, which the next job does not find", "choose an --out that all nodes see")
    if cluster and mount.kind in _LOCAL:
        return warn(f"{where}, a disk of this node", "unless all nodes mount it, choose another --out")
    return ok(where)


def temporary_directory(subject: Subject) -> Finding:
    """TMPDIR takes files, and paths in it are short enough for sockets."""
    folder = Path(subject.environment.get("TMPDIR") or tempfile.gettempdir())
    fix = "export TMPDIR=/tmp in [slurm] setup"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return fail(f"{folder} cannot be written", fix, _CODE)
    if len(str(folder).encode()) > _SOCKET_PATH:
        return warn(f"{folder} is long: Open MPI's sockets have at most 107 bytes of path", fix)
    mount = _mount(folder)
    if mount is not None and "noexec" in mount.options:
        return warn(f"{folder} is mounted noexec: libraries that are compiled there cannot be loaded", fix)
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < _LEAST_TEMPORARY:
        return warn(
            f"{size(free.f_bavail * free.f_frsize)} free in {folder}",
            "export another TMPDIR in [slurm] setup; in a container the host's /tmp, without --contain",
        )
    return ok(str(folder))


def _mount(path: Path) -> Mount | None:
    try:
        with open("/proc/self/mounts") as table:
            return mount_of(path.resolve(), table)
    except OSError:
        return None


def _temporary(subject: Subject) -> list[Path]:
    names = ("TMPDIR", "SLURM_TMPDIR", "JOB_TMPDIR", "LOCAL_SCRATCH")
    given = [Path(v) for n in names if (v := subject.environment.get(n, "")).startswith("/")]
    return [*given, Path("/tmp"), Path("/dev/shm"), Path("/var/tmp")]  # noqa: S108 - where nothing should be kept


CHECKS = (
    Check("data", GROUP, "training reads it in every round", data),
    Check("run-space", GROUP, "a full disk ends the run at its next checkpoint", space),
    Check(
        "run-files",
        GROUP,
        "checkpoints and the spool need renames that are atomic and last; losses and numbers of rows stay at the site",
        semantics,
    ),
    Check("run-locks", GROUP, "the ledger's locks keep two jobs from summing the same at once", locks),
    Check("run-clock", GROUP, "ages of files are measured by the file server's clock", file_clock),
    Check("run-shared", GROUP, "the next job runs on another node and goes on from these files", shared),
    Check("tmpdir", GROUP, "MPI and PyTorch put sockets and libraries there", temporary_directory),
)
