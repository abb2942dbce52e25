"""Which ranks carry which bytes of a sum in one job, and in which order: sites may have any numbers of ranks.

Each site deals the vector to its ranks by `parts`. The vector is cut where any site goes on to its next rank: what lies
between two cuts is a segment, carried by one rank of each site. Every rank works all of it out and asks nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fedhpc.federation.vector import parts
from fedhpc.secure.ring import Layout

Owners = tuple[int, ...]
"""For each site, in roster order, the rank that carries something."""


@dataclass(frozen=True)
class Segment:
    """Bytes start..stop of the vector, whole blocks of 2^20 or up to its end."""

    start: int
    stop: int
    owners: Owners
    turn: int  # segments of one turn have no rank in common


@dataclass(frozen=True)
class Chunk:
    """Bytes start..stop of the vector, lanes of one width, which their owners add in one meeting."""

    start: int
    stop: int
    bits: int
    owners: Owners


def segments(nbytes: int, rails: Sequence[int]) -> list[Segment]:
    """The segments of a vector of `nbytes`, in order. `rails`: the ranks of each site that carry a part of it.

    There are at most sum(rails) - len(rails) + 1, and vectors of all sizes have no more sets of owners than that, since
    `parts` cuts each of them at the same fractions.
    """
    ranges = [parts(nbytes, count) for count in rails]
    cuts = sorted({start for site in ranges for start, stop in site if start < stop})
    owners = [0] * len(rails)
    found: list[Segment] = []
    taken: list[int] = []  # for each turn, how far the ranks reach that have been in it
    for start, stop in itertools.pairwise([*cuts, nbytes]):
        for site, parted in enumerate(ranges):
            while parted[owners[site]][1] <= start:
                owners[site] += 1
        reach = max(parted[owner][1] for parted, owner in zip(ranges, owners, strict=True))
        turn = next((turn for turn, end in enumerate(taken) if end <= start), len(taken))
        taken[turn : turn + 1] = [reach]
        found.append(Segment(start, stop, tuple(owners), turn))
    return found


def carried(nbytes: int, rails: Sequence[int], site: int, rank: int) -> list[Segment]:
    """The segments of rank `rank` of a site, in order; `site` counts from 0."""
    return [segment for segment in segments(nbytes, rails) if segment.owners[site] == rank]


def schedule(layout: Layout, own: Sequence[Segment], chunk_bytes: int) -> list[Chunk]:
    """The chunks of a rank's segments, of at most `chunk_bytes`, cut where the lane width changes, in their order.

    It is one order of all chunks of the job, of which each rank has its own, so ranks cannot wait for each other in a
    circle. First come the first chunks of all segments, turn by turn, then the second ones. By rising bytes alone a
    rank would wait until its neighbours had finished all that comes before: with 7 and 8 ranks, seven times as long.
    """
    placed = []
    for segment in own:
        for index, (start, stop, bits) in enumerate(_cut(layout, segment, chunk_bytes)):
            placed.append(((index, segment.turn, start), Chunk(start, stop, bits, segment.owners)))
    return [chunk for _, chunk in sorted(placed, key=lambda entry: entry[0])]


def _cut(layout: Layout, segment: Segment, chunk_bytes: int) -> list[tuple[int, int, int]]:
    cut = []
    for run_start, run_stop, bits in layout.runs(segment.start, segment.stop):
        for at in range(run_start, run_stop, chunk_bytes):
            cut.append((at, min(at + chunk_bytes, run_stop), bits))
    return cut
