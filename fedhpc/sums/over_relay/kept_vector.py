"""The whole vector of a sum that a script's site keeps on disk, where each of its ranks holds a part of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.party import SumPlan
from fedhpc.federation.vector import Vector
from fedhpc.mpi.byte_moves import Plan, Span, move
from fedhpc.mpi.collectives import Group
from fedhpc.secure.transcript import u64


def is_gathered(site: Group, plan: SumPlan) -> bool:
    """Whether the leader needs the others' parts to keep the sum, or gives them to them."""
    return plan.by_range and not plan.checkpointed and site.size > 1


def whole_at_leader(site: Group, vector: Vector) -> Vector:
    """A vector of all values, for a moment, at the leader; this rank's own at the others. Collective."""
    whole = Vector(vector.layout) if site.rank == 0 else vector
    _move(site, vector, whole, _spans(site, vector), back=False)
    return whole


def give_parts(site: Group, vector: Vector, whole: Vector) -> None:
    """Fill every rank's `vector` from the `whole` one of the leader. Collective."""
    _move(site, vector, whole, _spans(site, vector), back=True)


def _spans(site: Group, vector: Vector) -> list[list[Span]]:
    """What each rank holds, in bytes of the values."""
    mine = u64(vector.first) + u64(vector.first + vector.buffer.size)
    ends = [np.frombuffer(said, "<u8").tolist() for said in site.gather_bytes(mine)]
    return [[(start, stop)] if start < stop else [] for start, stop in ends]


def _move(site: Group, vector: Vector, whole: Vector, held: list[list[Span]], *, back: bool) -> None:
    everything: list[list[Span]] = [[(0, max(stop for spans in held for _, stop in spans))]]
    at_leader = everything + [[]] * (site.size - 1)
    here, there = (whole, vector) if back else (vector, whole)

    def read(start: int, stop: int, into: NDArray[np.uint8]) -> None:
        into[:] = here.buffer[start - here.first : stop - here.first]

    def write(start: int, stop: int, data: NDArray[np.uint8]) -> None:
        there.buffer[start - there.first : stop - there.first] = data

    move(site, Plan(at_leader, held) if back else Plan(held, at_leader), read, write)
