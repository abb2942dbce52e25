"""Where the lanes of a vector lie: each tensor at the next multiple of 16 bytes (docs/protocol.md section 3).

All that follows from (bits, lanes) of each tensor, which is all that the relay knows of a vector.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from fedhpc.errors import PolicyError

ALIGN_BYTES = 16
LANE_BITS = (32, 64)
"""The widths that sites sum in. The engine can do 8 and 16 too; their rounding errors would have to be carried from
round to round first."""

Run = tuple[int, int, int]
"""(start, stop, bits): bytes start..stop of a vector are lanes of `bits`."""


class Stretch(NamedTuple):
    """Bytes start..stop of a vector, all of tensor number `tensor`, from its lane number `lane` on."""

    tensor: int
    start: int
    stop: int
    lane: int


class Geometry:
    """Offsets, runs and gaps of a vector."""

    def __init__(self, tensors: Sequence[tuple[int, int]]) -> None:
        """`tensors`: (bits, lanes) of each, in order."""
        self.tensors = tuple((bits, lanes) for bits, lanes in tensors)
        self.offsets: list[int] = []
        """First byte of each tensor."""
        at = 0
        for bits, lanes in self.tensors:
            at = -(-at // ALIGN_BYTES) * ALIGN_BYTES
            self.offsets.append(at)
            at += lanes * bits // 8
        self.nbytes = at

    def end(self, index: int) -> int:
        """The byte behind tensor number `index`."""
        bits, lanes = self.tensors[index]
        return self.offsets[index] + lanes * bits // 8

    def stretches(self, start: int, stop: int) -> list[Stretch]:
        """The parts of tensors in bytes start..stop. Both must be multiples of 16 or the end."""
        found = []
        # Empty tensors share their offset with the next one, so the search steps back to the first of equals.
        first = max(bisect.bisect_right(self.offsets, start) - 1, 0)
        while first and self.offsets[first - 1] == self.offsets[first]:
            first -= 1
        for index in range(first, len(self.tensors)):
            offset = self.offsets[index]
            if offset >= stop:
                break
            low, high = max(start, offset), min(stop, self.end(index))
            if low < high:
                found.append(Stretch(index, low, high, (low - offset) * 8 // self.tensors[index][0]))
        return found

    def runs(self, start: int, stop: int) -> list[Run]:
        """The stretches of bytes start..stop with lanes of one width, gaps inside included."""
        runs: list[Run] = []
        for index, low, high, _ in self.stretches(start, stop):
            bits = self.tensors[index][0]
            if runs and runs[-1][2] == bits:
                runs[-1] = (runs[-1][0], high, bits)
            else:
                runs.append((low, high, bits))
        return runs

    def gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(start, stop) of what lies between tensors in bytes start..stop."""
        found, at = [], start
        for _, low, high, _ in self.stretches(start, stop):
            if at < low:
                found.append((at, low))
            at = high
        if at < stop:
            found.append((at, stop))
        return found


def refuse_lane_bits(bits: int, what: str) -> None:
    """PolicyError unless sites may sum in lanes of `bits`; `what` has them."""
    if bits not in LANE_BITS:
        raise PolicyError(f"{what} has lanes of {bits} bits", "lanes have 32 or 64 bits; smaller ones are not built")
