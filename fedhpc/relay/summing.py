"""The sum of masked vectors, chunk by chunk: memory is two chunks whatever the vectors' size and number.

A vector is added when it is whole. Addition mod 2^k commutes, so the order in which vectors arrive does not matter.
What was added is remembered in memory only: after a crash the sum on disk is not trusted, and is made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from fedhpc.relay.objects import SUM, Objects
from fedhpc.secure.ring import ALIGN_BYTES
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, tree_root

CHUNK_BYTES = 1 << 20


def vector_runs(tensors: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int, int]], int]:
    """(start, stop, bits) of each tensor's bytes in a vector of `tensors` (bits, lanes), and the vector's bytes."""
    runs, at = [], 0
    for bits, lanes in tensors:
        start = -(-at // ALIGN_BYTES) * ALIGN_BYTES
        at = start + lanes * bits // 8
        if lanes:
            runs.append((start, at, bits))
    return runs, at


class VectorSum:
    """The sum of vectors kept in `objects`, itself kept there."""

    def __init__(self, objects: Objects, tensors: Sequence[tuple[int, int]]) -> None:
        self._objects = objects
        self._runs, self.nbytes = vector_runs(tensors)
        self.added: list[str] = []

    def add(self, name: str) -> None:
        """Add the whole vector `name`. The first one is copied, gaps set to zero."""
        first = not self.added
        for start in range(0, self.nbytes, CHUNK_BYTES):
            stop = min(start + CHUNK_BYTES, self.nbytes)
            total = np.zeros(stop - start, dtype=np.uint8)
            if not first:
                total[:] = np.frombuffer(self._objects.read(SUM, start, stop - start), dtype=np.uint8)
            part = np.frombuffer(self._objects.read(name, start, stop - start), dtype=np.uint8)
            for low, high, bits in self._runs:
                a, b = max(low, start) - start, min(high, stop) - start
                if a < b:
                    lanes = total[a:b].view(f"<u{bits // 8}")
                    np.add(lanes, part[a:b].view(lanes.dtype), out=lanes)
            self._objects.write(SUM, start, total)
        self.added.append(name)

    def tree(self, name: str = SUM) -> bytes:
        """Tree of a stored vector [32]."""
        return tree_root(
            self.nbytes,
            (
                hashlib.sha256(self._objects.read(name, at, min(TREE_BLOCK_BYTES, self.nbytes - at))).digest()
                for at in range(0, self.nbytes, TREE_BLOCK_BYTES)
            ),
        )
