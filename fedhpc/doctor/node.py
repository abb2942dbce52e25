"""Checks of this machine: cores for each rank, the kernel that masks, limits of the shell, shared memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from fedhpc.doctor.check import Check, Finding, fail, ok, warn
from fedhpc.doctor.subject import Subject
from fedhpc.kernel.choice import PYTHON, VARIABLE, Running, running
from fedhpc.wire.units import size

GROUP = "This machine"
_LEAST_FILES = 1024
_LEAST_LOCKED = 64 << 20
_LEAST_STACK = 2 << 20
_LEAST_SHARED = 128 << 20
_WRONG = "known answers"


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


def kernel(subject: Subject) -> Finding:
    """Which path hides and opens vectors in this Python."""
    return kernel_fits(running(), subject.environment.get(VARIABLE, ""))


def kernel_fits(found: Running, wish: str) -> Finding:
    """`wish`: FEDHPC_KERNEL, '' where it is not set. All paths give the same sums."""
    flags = f"of this CPU's instructions: {' '.join(found.cpu_flags) or 'none that it could use'}"
    chosen = f", by {VARIABLE}" if wish else ""
    if found.name != PYTHON:
        return ok(f"{found.name}{chosen}; {flags}")
    if _WRONG in found.reason:
        return fail(
            f"a compiled kernel is there and gives wrong answers: {found.reason}",
            f"report it, with this CPU; {VARIABLE}={PYTHON} sums without it until then",
        )
    if wish == PYTHON:
        return warn(f"{PYTHON}{chosen}; {flags}", f"without {VARIABLE} the compiled kernel runs where it can")
    return warn(
        f"{PYTHON}: {found.reason}; {flags}",
        "install fedhpc where there is a C compiler (module load gcc), for a CPU with AES instructions",
    )


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


CHECKS = (
    Check("threads", GROUP, "more threads than cores take turns, fewer leave cores idle", threads),
    Check(
        "kernel",
        GROUP,
        "without its compiled kernel a site takes up to three times the processor time to hide and open a vector",
        kernel,
        quick=False,
        of_ranks=True,
    ),
    Check("limits", GROUP, "limits of the login shell follow a job to its nodes", limits),
    Check(
        "shared-memory",
        GROUP,
        "ranks of one node talk through /dev/shm; containers often have 64 MB of it",
        shared_memory,
    ),
)
