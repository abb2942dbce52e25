"""The cores that a rank may use for its sums: work is split over as many threads, and over none where there is one.

NumPy, AES and the compiled kernel release the interpreter lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
MOST = 16
"""More threads than that only wait for memory."""


class Cores:
    """So many threads, made when they are first needed. Thread-safe."""

    def __init__(self, count: int = 1) -> None:
        """`count`: at least 1."""
        self.count = max(1, min(count, MOST))
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Cores({self.count})"

    def shares(self, count: int) -> list[tuple[int, int]]:
        """(start, stop) of the shares of `count` things, one for each core; none is empty, nor are there too many."""
        shares = max(1, min(self.count, count))
        return [(count * i // shares, count * (i + 1) // shares) for i in range(shares)]

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`work` of each item, in order, the first one in this thread.

        What the first item in order raises is raised, once no thread works any more. `work` does not call `map`.
        """
        if len(items) < 2 or self.count == 1:
            return [work(item) for item in items]
        others = [self._threads().submit(work, item) for item in items[1:]]
        try:
            first = work(items[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.count, "fedhpc-core")
            return self._pool


ONE = Cores()
"""No threads."""
