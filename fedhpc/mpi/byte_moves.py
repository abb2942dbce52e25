"""Moves the bytes of one long stream between the ranks that hold them and the ranks that want them, by windows.

The stream is never whole anywhere: a model's values in their canonical order, of which each rank holds some intervals.
Who sends what to whom is a static plan, worked out from the intervals alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import InternalError
from fedhpc.mpi.collectives import Group

Span = tuple[int, int]
"""(start, stop) in bytes of the stream."""

Read = Callable[[int, int, NDArray[np.uint8]], None]
"""`read(start, stop, into)`: copy bytes start..stop of the stream, held by this rank, into `into` [stop - start]."""

Write = Callable[[int, int, NDArray[np.uint8]], None]
"""`write(start, stop, data)`: bytes start..stop of the stream, which this rank wants, are `data` [stop - start]."""

_LARGEST_WINDOW, _ALL_WINDOWS = 8 << 20, 64 << 20
_GRAIN = 16  # windows end between numbers, whatever their kind


def window_bytes(ranks: int) -> int:
    """What a rank sends to each other one at a time: a move takes 2 x ranks x this of memory."""
    return max(_GRAIN, min(_LARGEST_WINDOW, _ALL_WINDOWS // ranks) // _GRAIN * _GRAIN)


class Plan:
    """Which rank gives which bytes to which rank. Pure arithmetic: every rank works out the same."""

    def __init__(self, held: Sequence[Sequence[Span]], wanted: Sequence[Sequence[Span]]) -> None:
        """`held` and `wanted`: of each rank, its spans, ascending and disjoint; those of two ranks may overlap.

        A rank takes from itself what it holds. Of several others that hold a byte, the one whose span begins first
        gives it, the lowest rank among equals. Raises InternalError if a byte is wanted that nobody holds.
        """
        if len(held) != len(wanted):
            raise InternalError(f"a plan between {len(held)} and {len(wanted)} ranks")
        for spans in (*held, *wanted):
            _require_ascending(spans)
        self.ranks = len(held)
        self._own = [list(_both(h, w)) for h, w in zip(held, wanted, strict=True)]
        givers = _givers(held)
        self._received = [list(_from(givers, _without(w, own))) for w, own in zip(wanted, self._own, strict=True)]
        pairs = np.zeros((self.ranks, self.ranks), dtype=np.int64)
        for to, cuts in enumerate(self._received):
            for giver, start, stop in cuts:
                pairs[giver, to] += stop - start
        self.moved_bytes: NDArray[np.int64] = pairs
        """[giver, receiver]: what crosses between two ranks."""
        self.sha256 = _digest(held, wanted)
        """Of all spans: ranks that plan alike have the same."""

    def own(self, rank: int) -> list[Span]:
        """What `rank` wants and holds itself."""
        return self._own[rank]

    def between(self, giver: int, receiver: int) -> list[Span]:
        """What crosses from one rank to another, in the order in which it is sent."""
        return [(start, stop) for rank, start, stop in self._received[receiver] if rank == giver]


def agree(group: Group, plan: Plan) -> None:
    """Compare the plans of all ranks once. Collective. Raises InternalError on every rank if they differ."""
    if len({*group.gather_bytes(plan.sha256)}) > 1 or plan.ranks != group.size:
        raise InternalError(f"{group.label}: the ranks plan different moves", "please report it")


def move(group: Group, plan: Plan, read: Read, write: Write, window: int = 0) -> None:
    """Carry out `plan`. Collective; `window` in bytes for each other rank, 0 for the usual one."""
    window = window or window_bytes(group.size)
    me = group.rank
    for start, stop in _pieces(plan.own(me), window):
        data = np.empty(stop - start, dtype=np.uint8)
        read(start, stop, data)
        write(start, stop, data)
    others = [rank if rank != me else None for rank in range(group.size)]
    gives = [[] if rank is None else list(_windows(plan.between(me, rank), window)) for rank in others]
    takes = [[] if rank is None else list(_windows(plan.between(rank, me), window)) for rank in others]
    steps = -(-int(plan.moved_bytes.max(initial=0)) // window)
    for step in range(steps):
        given = [spans[step] if step < len(spans) else [] for spans in gives]
        taken = [spans[step] if step < len(spans) else [] for spans in takes]
        given_bytes, taken_bytes = [_total(spans) for spans in given], [_total(spans) for spans in taken]
        sent, received = np.empty(sum(given_bytes), dtype=np.uint8), np.empty(sum(taken_bytes), dtype=np.uint8)
        for (start, stop), place in _places(given, sent):
            read(start, stop, place)
        group.alltoall(sent, given_bytes, received, taken_bytes)
        for (start, stop), place in _places(taken, received):
            write(start, stop, place)


def _places(spans_of_ranks: list[list[Span]], buffer: NDArray[np.uint8]) -> Iterator[tuple[Span, NDArray[np.uint8]]]:
    """Each span, and where it lies in a buffer that holds all of them one after the other."""
    at = 0
    for spans in spans_of_ranks:
        for start, stop in spans:
            yield (start, stop), buffer[at : at + stop - start]
            at += stop - start


def _windows(spans: Sequence[Span], window: int) -> Iterator[list[Span]]:
    """`spans` taken apart into lists of `window` bytes together, the last one of what is left."""
    now: list[Span] = []
    room = window
    for start, stop in spans:
        while start < stop:
            end = min(stop, start + room)
            now.append((start, end))
            room -= end - start
            start = end
            if not room:
                yield now
                now, room = [], window
    if now:
        yield now


def _pieces(spans: Sequence[Span], window: int) -> Iterator[Span]:
    for start, stop in spans:
        for at in range(start, stop, window):
            yield at, min(stop, at + window)


def _total(spans: Sequence[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def _require_ascending(spans: Sequence[Span]) -> None:
    at = 0
    for start, stop in spans:
        if not at <= start <= stop:
            raise InternalError(f"a rank's bytes {start}..{stop} come after {at}")
        at = stop


def _both(one: Sequence[Span], two: Sequence[Span]) -> Iterator[Span]:
    """What lies in both."""
    i = j = 0
    while i < len(one) and j < len(two):
        start, stop = max(one[i][0], two[j][0]), min(one[i][1], two[j][1])
        if start < stop:
            yield start, stop
        if one[i][1] < two[j][1]:
            i += 1
        else:
            j += 1


def _without(spans: Sequence[Span], taken: Sequence[Span]) -> Iterator[Span]:
    """What of `spans` does not lie in `taken`."""
    j = 0
    for start, stop in spans:
        while j < len(taken) and taken[j][1] <= start:
            j += 1
        k = j
        while start < stop:
            if k == len(taken) or taken[k][0] >= stop:
                yield start, stop
                break
            if taken[k][0] > start:
                yield start, taken[k][0]
            start = taken[k][1]
            k += 1


def _givers(held: Sequence[Sequence[Span]]) -> list[tuple[int, int, int]]:
    """(start, stop, rank), ascending and disjoint: who gives which bytes to those who do not have them."""
    givers: list[tuple[int, int, int]] = []
    at = 0
    for start, rank, stop in sorted((a, rank, b) for rank, spans in enumerate(held) for a, b in spans):
        if stop > at and stop > start:
            givers.append((max(start, at), stop, rank))
            at = stop
    return givers


def _from(givers: list[tuple[int, int, int]], spans: Iterator[Span]) -> Iterator[tuple[int, int, int]]:
    """(rank, start, stop): who gives `spans`, which ascend."""
    i = 0
    for start, stop in spans:
        while start < stop:
            while i < len(givers) and givers[i][1] <= start:
                i += 1
            if i == len(givers) or givers[i][0] > start:
                raise InternalError(f"no rank holds byte {start}", "please report it")
            end = min(stop, givers[i][1])
            yield givers[i][2], start, end
            start = end


def _digest(held: Sequence[Sequence[Span]], wanted: Sequence[Sequence[Span]]) -> bytes:
    digest = hashlib.sha256()
    for spans in (*held, *wanted):
        digest.update(len(spans).to_bytes(8, "little"))
        digest.update(np.array(spans, dtype="<i8").tobytes())
    return digest.digest()
