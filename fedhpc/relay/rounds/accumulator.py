"""The sum of one attempt while its vectors arrive: each block is added once, from the memory it was received in.

A block of the sum that has every member of the attempt in it is hashed and written into Y's file at once. One that
lacks some lies in memory, or in the same file where memory is short; `finish` takes out or adds what the survivors
differ by, from the copies. So a sum without losses reads no vector back, and memory has a bound for any model.

What is said here is lost with the process: the next one begins with nothing and finds everything in the copies. An
error here is therefore nobody's business: that block of the sum is forgotten, and made from the copies in the end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np

from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.attempt_objects import Objects
from fedhpc.relay.rounds.block_memory import Block, BlockMemory
from fedhpc.relay.rounds.summing import (
    PIECE_BYTES,
    add_lanes,
    add_stored,
    clear_gaps,
    copy_stored,
    share_out,
    subtract_stored,
)
from fedhpc.secure.geometry import Geometry
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.wire import kinds

_TROUBLE = (OSError, Problem, MemoryError)


class Accumulator:
    """Thread-safe: `add` is called by every connection that brings blocks."""

    def __init__(
        self, objects: Objects, tensors: Sequence[tuple[int, int]], members: Sequence[int], memory: BlockMemory
    ) -> None:
        """`members`: who may send a vector, U2; `tensors`: (bits, lanes) of each."""
        self._objects, self._geometry, self._memory = objects, Geometry(tensors), memory
        self._bits = {u: 1 << i for i, u in enumerate(members)}
        self._everyone = (1 << len(members)) - 1
        self._in: dict[int, int] = {}  # block -> the bits of the sites whose bytes are in it
        self._held: dict[int, Block] = {}  # of those that lack somebody: in memory, the longest untouched first
        self._hashes: dict[int, bytes] = {}  # of the blocks that lie finished in Y's file
        self._sources: dict[int, object] = {}
        self._lock = threading.Condition()
        self._busy, self._over = 0, False
        objects.make(kinds.Y.name, self._geometry.nbytes)

    # --- while vectors arrive

    def add(self, site: int, source: object, index: int, block: memoryview) -> None:
        """Add block `index` of the vector of `site`, once it is kept and recorded; again does nothing.

        `source`: the upload that it came by. Another one of the same site may have other bytes: then all is forgotten.
        """
        bit = self._bits.get(site, 0)
        with self._lock:
            if self._over or not bit:
                return
            if self._sources.setdefault(site, source) is not source:
                self._forget_all()
                self._sources[site] = source
            have = self._in.get(index, 0)
            if have & bit:
                return
            try:
                total = self._held_block(index, have)
                part = np.frombuffer(block, np.uint8)
                if have:
                    add_lanes(self._geometry, index * TREE_BLOCK_BYTES, total[: part.size], part)
                else:
                    total[: part.size] = part
            except _TROUBLE:
                self._forget(index)
                return
            self._in[index] = have | bit
            if self._in[index] != self._everyone:
                return
            del self._held[index]
            self._busy += 1
        self._complete(index, total)

    def _complete(self, index: int, total: Block) -> None:
        """Every member is in: hash and write it, while others go on."""
        digest: bytes | None = None
        try:
            digest = self._put(index, total)
        except _TROUBLE:
            pass
        finally:
            with self._lock:
                self._memory.give(total)
                if digest is None:
                    self._forget(index)
                else:
                    self._hashes[index] = digest
                self._busy -= 1
                self._lock.notify_all()

    def _put(self, index: int, total: Block) -> bytes:
        """Write a finished block [at most TREE_BLOCK_BYTES] into Y's file; its hash [32]."""
        at, size = self._place(index)
        clear_gaps(self._geometry, at, total[:size])
        self._objects.write(kinds.Y.name, at, total[:size].data)
        return self._objects.suite.block(total[:size].data)

    def _held_block(self, index: int, have: int) -> Block:
        """The block in memory, from Y's file if it was put there; new ones have anything in them."""
        held = self._held.pop(index, None)
        if held is None:
            held = self._take()
            if have:
                try:
                    self._read_back(index, held)
                except BaseException:
                    self._memory.give(held)
                    raise
        self._held[index] = held
        return held

    def _take(self) -> Block:
        """A block, if need be that of the one which was longest untouched."""
        block = self._memory.take(needed=not self._held)
        if block is not None:
            return block
        index = next(iter(self._held))
        at, size = self._place(index)
        block = self._held.pop(index)
        try:
            self._objects.write(kinds.Y.name, at, block[:size].data)
        except _TROUBLE:
            self._in.pop(index, None)
        return block

    def _read_back(self, index: int, block: Block) -> None:
        at, size = self._place(index)
        self._objects.read_made(kinds.Y.name, at, block[:size].data)

    def _forget(self, index: int) -> None:
        """The block is made from the copies in the end. The caller holds the lock."""
        self._in.pop(index, None)
        self._hashes.pop(index, None)
        held = self._held.pop(index, None)
        if held is not None:
            self._memory.give(held)

    def _forget_all(self) -> None:
        """The caller holds the lock. Waits for blocks on their way into the file, which come back finished."""
        self._lock.wait_for(lambda: not self._busy)
        for index in list(self._in):
            self._forget(index)

    def _place(self, index: int) -> tuple[int, int]:
        """First byte and size of a block."""
        at = index * TREE_BLOCK_BYTES
        return at, min(TREE_BLOCK_BYTES, self._geometry.nbytes - at)

    # --- the end

    def finish(self, sites: Iterable[int]) -> bytes:
        """Have Y's file hold the sum over `sites`, whose vectors are whole; Tree(Y) [32]. May be called again.

        Reads the copies of those that are in the sum and should not be, or the reverse. Raises Problem (507), and
        OSError where the copy of one of `sites` cannot be read.
        """
        with self._lock:
            self._over = True
            self._lock.wait_for(lambda: not self._busy)
        want = sum(self._bits[u] for u in sites)
        blocks = -(-self._geometry.nbytes // TREE_BLOCK_BYTES)
        digests = [b""] * blocks

        def stretch(first: int, last: int) -> None:
            spare, part = np.empty(TREE_BLOCK_BYTES, np.uint8), np.empty(PIECE_BYTES, np.uint8)
            for index in range(first, last):
                digests[index] = self._settled(index, want, spare, part)

        share_out(stretch, blocks)
        return self._objects.suite.root(self._geometry.nbytes, digests)

    def close(self) -> None:
        """Nothing is added any more, and the memory is free for others. After `finish`, or in its place."""
        with self._lock:
            self._over = True
            self._forget_all()

    def _settled(self, index: int, want: int, spare: Block, part: Block) -> bytes:
        """Hash [32] of a block of Y, which is then in its file. For several blocks at once."""
        with self._lock:
            have, held = self._in.get(index, 0), self._held.pop(index, None)
            known = self._hashes.get(index)
            if have == want and known is not None:
                return known
            self._forget(index)  # until it is written
        total = spare if held is None else held
        try:
            if not self._mended(index, have, want, total, part, held=held is not None):
                self._sum_anew(index, want, total, part)
            digest = self._put(index, total)
        finally:
            if held is not None:
                self._memory.give(held)
        with self._lock:
            self._in[index], self._hashes[index] = want, digest
        return digest

    def _mended(self, index: int, have: int, want: int, total: Block, part: Block, *, held: bool) -> bool:
        """Whether the sum could be had by taking out and adding what differs, and it is cheaper."""
        if not have or (have ^ want).bit_count() >= want.bit_count():
            return False
        try:
            if not held:
                self._read_back(index, total)
            at, size = self._place(index)
            for name in self._names(have & ~want):
                subtract_stored(self._objects, name, self._geometry, at, total[:size], part)
            for name in self._names(want & ~have):
                add_stored(self._objects, name, self._geometry, at, total[:size], part)
        except OSError:  # such as a copy that is gone
            return False
        return True

    def _sum_anew(self, index: int, want: int, total: Block, part: Block) -> None:
        at, size = self._place(index)
        first, *others = self._names(want)
        copy_stored(self._objects, first, at, total[:size])
        for name in others:
            add_stored(self._objects, name, self._geometry, at, total[:size], part)

    def _names(self, bits: int) -> list[str]:
        return [f"{kinds.M3V.name}/{u}" for u, bit in self._bits.items() if bits & bit]
