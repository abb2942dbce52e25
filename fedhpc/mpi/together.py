"""An error of one rank is raised on all ranks of its group, so that none of them waits for it in a collective."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from fedhpc import errors
from fedhpc.errors import FedhpcError
from fedhpc.mpi.collectives import Group

_Made = TypeVar("_Made")


def together(group: Group, work: Callable[[], _Made], *, name_rank: bool = False) -> _Made:
    """What `work` makes on this rank. Collective.

    A FedhpcError of one rank is raised on all, as the nearest class of fedhpc.errors; of several that of the lowest
    rank. `name_rank`: its message says which rank it was. Any other exception is raised here alone: it ends the job.
    """
    made: list[_Made] = []
    said, own = b"", None
    try:
        made.append(work())
    except FedhpcError as error:
        said, own = json.dumps([_kind(error), error.what, error.hint]).encode(), error
    for rank, words in enumerate(group.gather_bytes(said)):
        if words:
            kind, what, hint = json.loads(words)
            where = f"{group.label}, rank {rank}: " if name_rank and group.size > 1 else ""
            raise getattr(errors, kind)(where + what, hint) from own
    return made[0]


def _kind(error: FedhpcError) -> str:
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
