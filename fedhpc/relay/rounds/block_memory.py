"""The memory in which sums lie while vectors arrive: a fixed number of blocks for all federations, used again.

New memory costs more than the addition that happens in it, so a block is given back and not let go.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from fedhpc.secure.transcript import TREE_BLOCK_BYTES

BLOCKS = 32  # of 1 MiB, beside the blocks that bodies pass through (http/buffers.py): a relay stays below 256 MiB

Block = NDArray[np.uint8]
"""[TREE_BLOCK_BYTES] uint8."""


class BlockMemory:
    """Thread-safe. Beyond `count` blocks that are out, a sum lies in its file and has a single one in memory."""

    def __init__(self, count: int = BLOCKS) -> None:
        self._count, self._out = count, 0
        self._free: list[Block] = []
        self._lock = threading.Lock()

    def take(self, *, needed: bool) -> Block | None:
        """A block with anything in it; None where all are out, unless it is `needed`. Raises MemoryError."""
        with self._lock:
            if self._out >= self._count and not needed:
                return None
            block = self._free.pop() if self._free else np.empty(TREE_BLOCK_BYTES, np.uint8)
            self._out += 1
            return block

    def give(self, block: Block) -> None:
        """Give back what `take` gave."""
        with self._lock:
            self._out -= 1
            if self._out + len(self._free) < self._count:
                self._free.append(block)
