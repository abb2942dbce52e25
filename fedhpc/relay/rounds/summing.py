"""Sums of masked vectors that are kept: every stretch is added, hashed and written once, while it is in cache.

Memory is a block and a piece per thread, for vectors of any size and number. NumPy, hashes and reading run outside
the interpreter's lock, so threads on separate stretches use separate cores. Addition mod 2^k commutes, so the order of
the vectors does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.relay.rounds.attempt_objects import Objects
from fedhpc.secure.geometry import Geometry
from fedhpc.secure.suite import Suite
from fedhpc.secure.transcript import TREE_BLOCK_BYTES

PIECE_BYTES = 256 << 10  # the running sum and one vector's part stay in a core's L2 cache
THREADS = 2
MAX_VECTOR_BYTES = 1 << 40
_SPLIT_BLOCKS = 4  # fewer blocks than this for a thread are not worth one

Bytes = NDArray[np.uint8]


def tree_of_sum(objects: Objects, names: Sequence[str], tensors: Sequence[tuple[int, int]]) -> bytes:
    """Tree [32] of the sum of the whole vectors `names`, gaps zero, which is written nowhere. Raises OSError."""
    geometry = Geometry(tensors)

    def digest(at: int, size: int, total: Bytes, part: Bytes) -> bytes:
        copy_stored(objects, names[0], at, total[:size])
        for name in names[1:]:
            add_stored(objects, name, geometry, at, total[:size], part)
        clear_gaps(geometry, at, total[:size])
        return objects.suite.block(total[:size].data)

    return _tree_by_blocks(objects.suite, geometry.nbytes, digest)


def tree_of(objects: Objects, name: str) -> bytes:
    """Tree of a stored vector [32], in the memory of a block per thread. Raises OSError."""

    def digest(at: int, size: int, total: Bytes, _: Bytes) -> bytes:
        copy_stored(objects, name, at, total[:size])
        return objects.suite.block(total[:size].data)

    return _tree_by_blocks(objects.suite, objects.size(name), digest)


def _tree_by_blocks(suite: Suite, nbytes: int, digest: Callable[[int, int, Bytes, Bytes], bytes]) -> bytes:
    """`digest`(first byte, size, memory of a block, memory of a piece) -> the hash of that block."""
    blocks = -(-nbytes // TREE_BLOCK_BYTES)
    digests = [b""] * blocks

    def stretch(first: int, last: int) -> None:
        total, part = np.empty(TREE_BLOCK_BYTES, np.uint8), np.empty(PIECE_BYTES, np.uint8)
        for block in range(first, last):
            at = block * TREE_BLOCK_BYTES
            digests[block] = digest(at, min(TREE_BLOCK_BYTES, nbytes - at), total, part)

    share_out(stretch, blocks)
    return suite.root(nbytes, digests)


# --- bytes at..at+len(total) of a vector; `at` is a multiple of 16, and `total` ends at one or at the vector's end


def add_lanes(geometry: Geometry, at: int, total: Bytes, part: Bytes, op: Any = np.add) -> None:
    """Add (`op`) the lanes of `part` to those of `total`, each in its width. Gaps keep anything."""
    for low, high, bits in geometry.runs(at, at + total.size):
        lanes = total[low - at : high - at].view(f"<u{bits // 8}")
        op(lanes, part[low - at : high - at].view(lanes.dtype), out=lanes)


def clear_gaps(geometry: Geometry, at: int, total: Bytes) -> None:
    """Zeros between tensors: sites may have filled them."""
    for low, high in geometry.gaps(at, at + total.size):
        total[low - at : high - at] = 0


def copy_stored(objects: Objects, name: str, at: int, total: Bytes) -> None:
    """`total` is what a stored vector has there. Raises OSError."""
    objects.read_into(name, at, total.data)


def add_stored(
    objects: Objects, name: str, geometry: Geometry, at: int, total: Bytes, part: Bytes, op: Any = np.add
) -> None:
    """Add what a stored vector has there, piece by piece through `part`. Raises OSError, with `total` spoilt."""
    for low in range(0, total.size, part.size):
        high = min(low + part.size, total.size)
        objects.read_into(name, at + low, part[: high - low].data)
        add_lanes(geometry, at + low, total[low:high], part[: high - low], op)


def subtract_stored(objects: Objects, name: str, geometry: Geometry, at: int, total: Bytes, part: Bytes) -> None:
    """Take a stored vector out again. Raises OSError, with `total` spoilt."""
    add_stored(objects, name, geometry, at, total, part, np.subtract)


def share_out(stretch: Callable[[int, int], None], blocks: int) -> None:
    """Call stretch(first, last) on THREADS equal stretches at once; on one where there is little."""
    if blocks < THREADS * _SPLIT_BLOCKS:
        stretch(0, blocks)
        return
    edges = [blocks * i // THREADS for i in range(THREADS + 1)]
    with ThreadPoolExecutor(THREADS, "sum") as pool:
        for done in [pool.submit(stretch, a, b) for a, b in pairwise(edges)]:
            done.result()
