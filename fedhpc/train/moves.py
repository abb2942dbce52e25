"""Moves a model's values between the shards of a site's ranks and ranges of the vector that sites sum.

A sharded tensor is never gathered by itself: the plan cuts all of them at once, and windows of bytes cross.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import ConfigError
from fedhpc.mpi.byte_moves import Plan, Read, Span, Write, agree, move
from fedhpc.mpi.collectives import Group
from fedhpc.train.shards import Shard


class Moves:
    """Between the `shards` of a site's ranks and the bytes that each rank has of the stream of whole tensors."""

    def __init__(
        self, group: Group, shards: Sequence[Shard], offsets: Mapping[str, int], ranges: Sequence[Span]
    ) -> None:
        """`offsets`: by tensor, where it begins in the stream, in bytes; `ranges` [ranks]: what each rank has of it.

        Bytes of a range that no tensor holds are left as they are. Collective over the site. Raises ConfigError, on
        every rank, if the ranks do not hold the same tensors, or not all of each.
        """
        self._group = group
        mine = [(offsets[s.name] + s.start, offsets[s.name] + s.stop, s) for s in shards]
        self._placed = sorted((place for place in mine if place[0] < place[1]), key=lambda place: place[0])
        self._starts = [start for start, _, _ in self._placed]
        whole = [(offsets[s.name], offsets[s.name] + whole_bytes(s), s.name) for s in shards]
        held = self._agree(shards, whole, ranges)
        wanted = [list(_within(sorted(whole), *span)) for span in ranges]
        self._range = ranges[group.rank]
        self._out = Plan(held, wanted)
        self._back = Plan(wanted, held)
        agree(group, self._out)

    def gather(self, into: NDArray[np.uint8], window: int = 0) -> None:
        """Read the shards of all ranks into this rank's range `into`. Collective."""

        def write(start: int, stop: int, data: NDArray[np.uint8]) -> None:
            into[start - self._range[0] : stop - self._range[0]] = data

        self.gather_to(write, window)

    def gather_to(self, write: Write, window: int = 0) -> None:
        """As `gather`, where the range is not in one piece of memory."""
        move(self._group, self._out, self._read, write, window)

    def scatter_from(self, read: Read, window: int = 0) -> None:
        """As `scatter`, where the range is not in one piece of memory."""
        move(self._group, self._back, read, self._write, window)

    @property
    def moved_bytes(self) -> int:
        """What this rank sends to others in `gather`."""
        me = self._group.rank
        return int(self._out.moved_bytes[me].sum() - self._out.moved_bytes[me, me])

    def _read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        for at, end, first, shard in self._parts(start, stop):
            shard.read(shard.start + at - first, shard.start + end - first, into[at - start : end - start])

    def _write(self, start: int, stop: int, data: NDArray[np.uint8]) -> None:
        for at, end, first, shard in self._parts(start, stop):
            shard.write(shard.start + at - first, shard.start + end - first, data[at - start : end - start])

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int, Shard]]:
        """(start, stop, first byte of the shard, shard) of the shards that bytes start..stop of the stream lie in."""
        index = bisect.bisect_right(self._starts, start) - 1
        found = []
        while start < stop:
            first, end, shard = self._placed[index]
            found.append((start, min(stop, end), first, shard))
            start, index = end, index + 1
        return found

    def _agree(
        self, shards: Sequence[Shard], whole: Sequence[tuple[int, int, str]], ranges: Sequence[Span]
    ) -> list[list[Span]]:
        """The spans that each rank holds; the ranks are told apart here, and nowhere later."""
        described = [[s.name, s.shape, s.kind, start] for s, (start, _, _) in zip(shards, whole, strict=True)]
        layout = hashlib.sha256(json.dumps([described, ranges]).encode()).digest()
        mine = np.array([span[:2] for span in self._placed], dtype="<i8").reshape(-1, 2)
        gathered = self._group.gather_bytes(layout + mine.tobytes())
        if len({said[: len(layout)] for said in gathered}) > 1:
            raise ConfigError(
                f"{self._group.label}: the ranks of the site hold models of different tensors",
                "all ranks must build the same model",
            )
        held = [
            [(int(a), int(b)) for a, b in np.frombuffer(said[len(layout) :], dtype="<i8").reshape(-1, 2)]
            for said in gathered
        ]
        every = _joined(span for spans in held for span in spans)
        starts = [start for start, _ in every]
        for start, stop, name in whole:
            index = bisect.bisect_right(starts, start) - 1
            if start < stop and (index < 0 or every[index][1] < stop):
                raise ConfigError(
                    f"{self._group.label}: the ranks of the site do not hold all of {name} together",
                    "a model must be sharded over the ranks of its own site, and over all of them",
                )
        return held


def whole_bytes(shard: Shard) -> int:
    """Of the whole tensor, in its kind."""
    return int(np.prod(shard.shape, dtype=np.int64)) * np.dtype(shard.kind).itemsize


def whole_at_leader(group: Group, shards: Sequence[Shard]) -> dict[str, NDArray[Any]]:
    """Every tensor whole, in its kind and shape, at the leader; nothing at the other ranks. Collective."""
    offsets, size = _one_after_the_other(shards)
    leads = group.rank == 0
    data = np.empty(size if leads else 0, dtype=np.uint8)
    Moves(group, shards, offsets, [(0, size), *[(0, 0)] * (group.size - 1)]).gather(data)
    if not leads:
        return {}
    return {
        s.name: data[offsets[s.name] : offsets[s.name] + whole_bytes(s)].view(s.kind).reshape(s.shape) for s in shards
    }


def _one_after_the_other(shards: Sequence[Shard]) -> tuple[dict[str, int], int]:
    offsets, at = {}, 0
    for shard in shards:
        at = -(-at // 8) * 8
        offsets[shard.name] = at
        at += whole_bytes(shard)
    return offsets, at


def _within(whole: Sequence[tuple[int, int, str]], start: int, stop: int) -> list[Span]:
    return [(max(a, start), min(b, stop)) for a, b, _ in whole if max(a, start) < min(b, stop)]


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The bytes in any of `spans`, ascending, in as few spans as they take."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
