"""The one communicator that leaves the door: Horovod duplicates it, and talks on its copy from a thread of its own."""

from __future__ import annotations

from typing import Any

from fedhpc.errors import ConfigError, InternalError
from fedhpc.mpi.collectives import Group, MpiGroup


def communicator_for_horovod(group: Group) -> Any:
    """The mpi4py communicator of a site of several ranks, for `hvd.init(comm=…)` and nothing else.

    Raises ConfigError if MPI was started without MPI_THREAD_MULTIPLE: Horovod would only warn, and its thread would
    meet ours in the middle of a sum.
    """
    from mpi4py import MPI

    if not isinstance(group, MpiGroup):
        raise InternalError(f"{group.label}: one process has no communicator to lend")
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise ConfigError(
            f"{group.label}: MPI was started for one thread at a time, and Horovod talks from a thread of its own",
            "unset MPI4PY_RC_THREAD_LEVEL, or load an MPI with MPI_THREAD_MULTIPLE; backend = 'mpi' does without",
        )
    return group.lend()
