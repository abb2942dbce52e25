"""The sum of masked vectors in one pass: every stretch of Y is added, hashed and written once, while it is in cache.

Memory is a block and a piece per thread, for vectors of any size and number. NumPy, hashes and reading run outside
the interpreter's lock, so threads on separate stretches use separate cores. Addition mod 2^k commutes, so the order of
the vectors does not matter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from fedhpc.relay.rounds.attempt_objects import Objects
from fedhpc.secure.geometry import Geometry
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.wire import kinds

PIECE_BYTES = 256 << 10  # the running sum and one vector's part stay in a core's L2 cache
THREADS = 2
MAX_VECTOR_BYTES = 1 << 40
_SPLIT_BLOCKS = 4  # fewer blocks than this for a thread are not worth one


def sum_vectors(objects: Objects, names: Sequence[str], tensors: Sequence[tuple[int, int]]) -> bytes:
    """Write the sum of the whole vectors `names` as Y, gaps zero; gives Tree(Y) [32]. What was there is overwritten."""
    geometry = Geometry(tensors)
    blocks = -(-geometry.nbytes // TREE_BLOCK_BYTES)
    digests = [b""] * blocks
    writing = threading.Lock()  # the kernel writes a file one call at a time, and the others would spin

    def stretch(first: int, last: int) -> None:
        total, part = np.empty(TREE_BLOCK_BYTES, np.uint8), np.empty(PIECE_BYTES, np.uint8)
        for block in range(first, last):
            at = block * TREE_BLOCK_BYTES
            size = min(TREE_BLOCK_BYTES, geometry.nbytes - at)
            for low in range(0, size, PIECE_BYTES):
                high = min(low + PIECE_BYTES, size)
                _add_piece(objects, names, geometry, at + low, total[low:high], part[: high - low])
            digests[block] = objects.suite.block(total[:size].data)
            with writing:
                objects.write(kinds.Y.name, at, total[:size].data)

    _share_out(stretch, blocks)
    return objects.suite.root(geometry.nbytes, digests)


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
            digests[block] = objects.suite.block(view)

    _share_out(stretch, blocks)
    return objects.suite.root(nbytes, digests)


def _add_piece(
    objects: Objects,
    names: Sequence[str],
    geometry: Geometry,
    at: int,
    total: np.ndarray[tuple[int], np.dtype[np.uint8]],
    part: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> None:
    """Bytes at..at+len(total) of all vectors into `total`; both are whole numbers of 16 bytes from the start."""
    runs = geometry.runs(at, at + total.size)
    for index, name in enumerate(names):
        if index == 0:
            objects.read_into(name, at, total.data)
            continue
        objects.read_into(name, at, part.data)
        for low, high, bits in runs:
            lanes = total[low - at : high - at].view(f"<u{bits // 8}")
            np.add(lanes, part[low - at : high - at].view(lanes.dtype), out=lanes)
    for low, high in geometry.gaps(at, at + total.size):
        total[low - at : high - at] = 0


def _share_out(stretch: Callable[[int, int], None], blocks: int) -> None:
    """Call stretch(first, last) on THREADS equal stretches at once; on one where there is little."""
    if blocks < THREADS * _SPLIT_BLOCKS:
        stretch(0, blocks)
        return
    edges = [blocks * i // THREADS for i in range(THREADS + 1)]
    with ThreadPoolExecutor(THREADS, "sum") as pool:
        for done in [pool.submit(stretch, a, b) for a, b in pairwise(edges)]:
            done.result()
