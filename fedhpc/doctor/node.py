"""Checks of this machine: cores for each rank, limits of the shell, shared memory, a container runtime."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import call, find
from fedhpc.doctor.subject import Subject
from fedhpc.wire.units import size

GROUP = "This machine"
_LEAST_FILES = 1024
_LEAST_LOCKED = 64 << 20
_LEAST_STACK = 2 << 20
_LEAST_SHARED = 128 << 20
_RUNTIMES = ("apptainer", "singularity")
_USER_NAMESPACES = (Path("/proc/sys/user/max_user_namespaces"), Path("/proc/sys/kernel/unprivileged_userns_clone"))


def threads(subject: Subject) -> Finding:
    """Every rank has the cores that its threads need."""
    wanted = subject.compute.threads
    given = subject.environment.get("SLURM_CPUS_PER_TASK", "") if subject.in_job else ""
    # A step of one task, such as the one before the ranks start, has fewer cores than a rank will have.
    sees = subject.place == "laptop" or (subject.place == "step" and subject.ranks_of_step > 1)
    cores = len(os.sched_getaffinity(0)) if sees else None
    return threads_fit(
        wanted,
        subject.asked.cpus_per_task if subject.submits else None,
        int(given) if given.isdigit() else None,
        cores,
    )


def threads_fit(wanted: int, asked: int | None, given: int | None, cores: int | None) -> Finding:
    """`wanted`: compute.threads; `asked`: [slurm] cpus_per_task; `given`: the job's; `cores`: what we may use."""
    if asked is not None and wanted > asked:
        return warn(
            f"[compute] threads = {wanted}, but [slurm] cpus_per_task = {asked}",
            "make them equal: more threads than cores only take turns",
        )
    if given is not None and wanted > given:
        return warn(f"[compute] threads = {wanted}, but each task has {given} cores", "[slurm] cpus_per_task")
    if cores is not None and given is not None and cores < given:
        return warn(
            f"this task may use {cores} cores of the {given} that Slurm gave it",
            "newer srun does not take --cpus-per-task from the job: export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        )
    if cores is not None and asked is None and wanted > cores:
        return warn(f"[compute] threads = {wanted}, but this machine has {cores} cores", "fewer threads")
    if asked is not None and wanted < asked // 2:
        return warn(f"[compute] threads = {wanted} leave most of [slurm] cpus_per_task = {asked} idle", "more threads")
    parts = [f"threads a rank: {wanted}"]
    parts += [f"cores asked for: {asked}"] if asked is not None else []
    return ok(", ".join(parts + ([f"usable here: {cores}"] if cores is not None else [])))


def limits(subject: Subject) -> Finding:
    """Open files, locked memory, stack."""
    return limits_fit(lambda which: resource.getrlimit(which)[0], infiniband=Path("/sys/class/infiniband").is_dir())


def limits_fit(limit: Callable[[int], int], *, infiniband: bool) -> Finding:
    """`limit`: the soft limit of a resource."""

    def below(which: int, least: int) -> bool:
        return limit(which) != resource.RLIM_INFINITY and limit(which) < least

    if below(resource.RLIMIT_NOFILE, _LEAST_FILES):
        return warn(f"{limit(resource.RLIMIT_NOFILE)} files may be open", f"ulimit -n {_LEAST_FILES} in [slurm] setup")
    if infiniband and below(resource.RLIMIT_MEMLOCK, _LEAST_LOCKED):
        have = size(limit(resource.RLIMIT_MEMLOCK))
        return warn(
            f"{have} may be locked: InfiniBand needs more",
            "ulimit -l unlimited in [slurm] setup; if refused, Slurm's PropagateResourceLimitsExcept=MEMLOCK",
        )
    if below(resource.RLIMIT_STACK, _LEAST_STACK):
        return warn(f"the stack has {size(limit(resource.RLIMIT_STACK))}", "ulimit -s 8192 in [slurm] setup")
    files = limit(resource.RLIMIT_NOFILE)
    return ok(f"{'any number of' if files == resource.RLIM_INFINITY else files} open files")


def shared_memory(subject: Subject) -> Finding:
    """The shared memory of this machine is there and large enough."""
    return shared_memory_at(Path("/dev/shm"))  # noqa: S108 - measured, not written


def shared_memory_at(path: Path) -> Finding:
    """Ranks of one node talk through it, and so do a DataLoader's workers."""
    fix = "start the container with more (--shm-size), or bind the host's /dev/shm"
    try:
        found = os.statvfs(path)
    except OSError:
        return fail(f"{path} is not there", fix)
    free = found.f_bavail * found.f_frsize
    if free < _LEAST_SHARED:
        return warn(f"{size(free)} free in {path}", fix)
    return ok(f"{size(free)} free in {path}")


def container(subject: Subject) -> Finding:
    """A runtime for the site's container, and namespaces for it."""
    image = str(getattr(subject.asked, "container", ""))
    if not image:
        return skipped("[slurm] names no container")
    name = next((n for n in _RUNTIMES if find(n, subject.environment)), None)
    if name is None:
        return fail(f"no {' or '.join(_RUNTIMES)} on PATH", "load its module in [slurm] setup (module load apptainer)")
    answer = call([name, "--version"], subject.environment, 5.0)
    if answer.code != 0:
        return fail(f"{name} --version fails: {answer.words}", "ask the operators: this node's installation is broken")
    if "://" not in image and subject.site is not None and not subject.site.path(Path(image)).exists():
        return fail(f"the container {image} is not there", "build or copy it; paths start at the site file")
    return namespaces(answer.out.strip(), [_first(path) for path in _USER_NAMESPACES])


def namespaces(version: str, settings: list[str]) -> Finding:
    """`settings`: what the kernel says of user namespaces; "0" forbids them, "" says nothing."""
    if "0" in settings:
        return warn(
            f"{version}; user namespaces are switched off", "fine if it was installed setuid; else ask the operators"
        )
    return ok(f"{version}, user namespaces allowed")


def _first(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


CHECKS = (
    Check("threads", GROUP, "more threads than cores take turns, fewer leave cores idle", threads),
    Check("limits", GROUP, "limits of the login shell follow a job to its nodes", limits),
    Check(
        "shared-memory",
        GROUP,
        "ranks of one node talk through /dev/shm; containers often have 64 MB of it",
        shared_memory,
    ),
    Check("container", GROUP, "a job in a container needs its runtime on the compute node", container),
)
