"""Byte ranges of an object: what is missing, what is there, and how connections share the work.

All ranges are [first, end), begin at a multiple of 2^20 and end at one, or at the object's end.
"""

from __future__ import annotations

from typing import Any

from fedhpc.transport.link_problems import RelayProblem
from fedhpc.wire.object_names import BLOCK_BYTES

Range = tuple[int, int]
Gaps = list[Range]

_SHARES = 8  # no piece is smaller than this part of one connection's share


def read_gaps(answer: dict[str, Any]) -> Gaps:
    """The missing ranges a relay names. Raises RelayProblem unless they are whole blocks in rising order."""
    gaps: Gaps = []
    try:
        for first, end in answer["missing"]:
            if type(first) is not int or type(end) is not int or first % BLOCK_BYTES or first >= end:
                raise ValueError
            if gaps and first < gaps[-1][1]:
                raise ValueError
            gaps.append((first, end))
    except (KeyError, TypeError, ValueError):
        raise RelayProblem(200, "nonsense", "the list of missing parts has another form") from None
    if gaps and gaps[0][0] < 0:
        raise RelayProblem(200, "nonsense", "a missing part begins before the object")
    return gaps


def overlap(gaps: Gaps, wanted: Gaps) -> Gaps:
    """What lies in both."""
    return [(max(a, f), min(b, e)) for a, b in gaps for f, e in wanted if max(a, f) < min(b, e)]


def without(whole: Range, gaps: Gaps) -> Gaps:
    """The parts of `whole` that lie in none of the rising `gaps`."""
    first, end = whole
    found: Gaps = []
    for low, high in overlap(gaps, [whole]):
        if first < low:
            found.append((first, low))
        first = high
    return [*found, (first, end)] if first < end else found


def size_of(gaps: Gaps) -> int:
    """Bytes of all ranges together."""
    return sum(end - first for first, end in gaps)


def cut(ranges: Gaps, most: int, ways: int) -> Gaps:
    """Pieces of at most `most` bytes for `ways` connections, large ones first, so that all end at nearly the same time.

    Each batch of `ways` pieces takes half of the rest: few requests, and a slow connection delays the end by a
    small piece only.
    """
    left = -(-size_of(ranges) // BLOCK_BYTES)
    least = max(1, left // (_SHARES * ways))
    sizes: list[int] = []
    pieces: Gaps = []
    for first, end in ranges:
        while first < end:
            if not sizes:
                sizes = [max(least, -(-left // (2 * ways)))] * ways
            step = min(sizes.pop() * BLOCK_BYTES, most, end - first)
            pieces.append((first, first + step))
            first, left = first + step, left - -(-step // BLOCK_BYTES)
    return pieces
