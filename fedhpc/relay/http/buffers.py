"""The memory that bodies pass through at the relay: a fixed number of blocks for all transfers."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator

from fedhpc.relay.problems import Problem
from fedhpc.wire.object_names import BLOCK_BYTES

SMALL_BYTES = 64 << 10


class Buffers:
    """A fixed number of blocks; who finds none waits, and so does its peer: that is the back-pressure.

    One site holds at most a quarter of them, so its slow connections do not stop the others; messages need none.
    """

    def __init__(self, count: int, patience_s: float) -> None:
        self._free: list[mmap.mmap] = []
        self._left, self._most = count, max(1, count // 4)
        self._held: dict[bytes, int] = {}
        self._patience_s = patience_s
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def one(self, pin: bytes, size: int) -> Iterator[memoryview]:
        """A buffer for a body of `size` bytes, at most one block. Raises Problem (503) if none becomes free."""
        if size <= SMALL_BYTES:
            yield memoryview(bytearray(size))
            return
        with self._freed:
            if not self._freed.wait_for(lambda: self._left and self._held.get(pin, 0) < self._most, self._patience_s):
                raise Problem("stopping", "too many transfers at once", close=True)
            try:
                buffer = self._free.pop() if self._free else mmap.mmap(-1, BLOCK_BYTES)  # on a page: block_file.py
            except (OSError, MemoryError):
                raise Problem("stopping", "the relay has no memory left for a transfer", close=True) from None
            self._left -= 1
            self._held[pin] = self._held.get(pin, 0) + 1
        try:
            yield memoryview(buffer)
        finally:
            with self._freed:
                self._free.append(buffer)
                self._left += 1
                self._held[pin] -= 1
                if not self._held[pin]:
                    del self._held[pin]
                self._freed.notify_all()
