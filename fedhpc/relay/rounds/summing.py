"""The sum of masked vectors in one pass: every stretch of Y is added, hashed and written once, while it is in cache.

Memory is a block and a piece per thread, whatever the vectors' size and number. NumPy, hashlib and reading run outside
the interpreter's lock, so threads on separate stretches use separate cores. Addition mod 2^k commutes, so the order of
the vectors does not matter.
"""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from fedhpc.relay.rounds.attempt_objects import Objects
from fedhpc.secure.ring import ALIGN_BYTES
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, tree_root
from fedhpc.wire import kinds

PIECE_BYTES = 256 << 10  # the running sum and one vector's part stay in a core's L2 cache
THREADS = 2
MAX_VECTOR_BYTES = 1 << 40
_SPLIT_BLOCKS = 4  # fewer blocks than this for a thread are not worth one

Run = tuple[int, int, int]


def vector_runs(tensors: Sequence[tuple[int, int]]) -> tuple[list[Run], int]:
    """(start, stop, bits) of each tensor's bytes in a vector of `tensors` (bits, lanes), and the vector's bytes."""
    runs, at = [], 0
    for bits, lanes in tensors:
        start = -(-at // ALIGN_BYTES) * ALIGN_BYTES
        at = start + lanes * bits // 8
        if lanes:
            runs.append((start, at, bits))
    return runs, at


class _Plan:
    """Which bytes are lanes of which width, and which are gaps, for any stretch of the vector."""

    def __init__(self, tensors: Sequence[tuple[int, int]]) -> None:
        runs, self.nbytes = vector_runs(tensors)
        self.gaps = [(a[1], b[0]) for a, b in pairwise(runs) if a[1] < b[0]]
        self.runs: list[Run] = []  # neighbours of one width joined; a gap between them is added too, then zeroed
        for start, stop, bits in runs:
            if self.runs and self.runs[-1][2] == bits:
                self.runs[-1] = (self.runs[-1][0], stop, bits)
            else:
                self.runs.append((start, stop, bits))
        self._run_stops = [run[1] for run in self.runs]
        self._gap_stops = [gap[1] for gap in self.gaps]

    def runs_in(self, start: int, stop: int) -> list[Run]:
        """The runs of bytes start..stop of the vector, counted from `start`."""
        found = []
        for low, high, bits in self.runs[bisect.bisect_right(self._run_stops, start) :]:
            if low >= stop:
                break
            found.append((max(low, start) - start, min(high, stop) - start, bits))
        return found

    def gaps_in(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The gaps in bytes start..stop of the vector, counted from `start`."""
        found = []
        for low, high in self.gaps[bisect.bisect_right(self._gap_stops, start) :]:
            if low >= stop:
                break
            found.append((max(low, start) - start, min(high, stop) - start))
        return found


def sum_vectors(objects: Objects, names: Sequence[str], tensors: Sequence[tuple[int, int]]) -> bytes:
    """Write the sum of the whole vectors `names` as Y, gaps zero; gives Tree(Y) [32]. What was there is overwritten."""
    plan = _Plan(tensors)
    blocks = -(-plan.nbytes // TREE_BLOCK_BYTES)
    digests = [b""] * blocks
    writing = threading.Lock()  # the kernel writes a file one call at a time, and others would spin

    def stretch(first: int, last: int) -> None:
        total, part = np.empty(TREE_BLOCK_BYTES, np.uint8), np.empty(PIECE_BYTES, np.uint8)
        for block in range(first, last):
            at = block * TREE_BLOCK_BYTES
            size = min(TREE_BLOCK_BYTES, plan.nbytes - at)
            for low in range(0, size, PIECE_BYTES):
                high = min(low + PIECE_BYTES, size)
                _add_piece(objects, names, plan, at + low, total[low:high], part[: high - low])
            digests[block] = hashlib.sha256(total[:size].data).digest()
            with writing:
                objects.write(kinds.Y.name, at, total[:size].data)

    _share_out(stretch, blocks)
    return tree_root(plan.nbytes, digests)


def tree_of(objects: Objects, name: str) -> bytes:
    """Tree of a stored vector [32], in the memory of a block per thread."""
    nbytes = objects.size(name)
    blocks = -(-nbytes // TREE_BLOCK_BYTES)
    digests = [b""] * blocks

    def stretch(first: int, last: int) -> None:
        buffer = memoryview(bytearray(TREE_BLOCK_BYTES))
        for block in range(first, last):
            at = block * TREE_BLOCK_BYTES
            view = buffer[: min(TREE_BLOCK_BYTES, nbytes - at)]
            objects.read_into(name, at, view)
            digests[block] = hashlib.sha256(view).digest()

    _share_out(stretch, blocks)
    return tree_root(nbytes, digests)


def _add_piece(
    objects: Objects,
    names: Sequence[str],
    plan: _Plan,
    at: int,
    total: np.ndarray[tuple[int], np.dtype[np.uint8]],
    part: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> None:
    """Bytes at..at+len(total) of all vectors into `total`; both are whole numbers of 16 bytes from the start."""
    runs = plan.runs_in(at, at + total.size)
    for index, name in enumerate(names):
        if index == 0:
            objects.read_into(name, at, total.data)
            continue
        objects.read_into(name, at, part.data)
        for low, high, bits in runs:
            lanes = total[low:high].view(f"<u{bits // 8}")
            np.add(lanes, part[low:high].view(lanes.dtype), out=lanes)
    for low, high in plan.gaps_in(at, at + total.size):
        total[low:high] = 0


def _share_out(stretch: Callable[[int, int], None], blocks: int) -> None:
    """Call stretch(first, last) on THREADS equal stretches at once; on one where there is little."""
    if blocks < THREADS * _SPLIT_BLOCKS:
        stretch(0, blocks)
        return
    edges = [blocks * i // THREADS for i in range(THREADS + 1)]
    with ThreadPoolExecutor(THREADS, "sum") as pool:
        for done in [pool.submit(stretch, a, b) for a, b in pairwise(edges)]:
            done.result()
