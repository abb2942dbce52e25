"""The ranks of a site as threads, for code that talks by a Group and needs no MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T")


class ThreadRanks:
    """A group of `size` ranks; each call of a collective is checked to be the same one on all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._slots: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def run(self, work: Callable[[Any], _T]) -> list[_T]:
        """What `work(group)` gives at each rank."""
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(lambda rank: self._of(work, rank), range(self.size)))

    def _of(self, work: Callable[[Any], _T], rank: int) -> _T:
        try:
            return work(_Rank(self, rank))
        except BaseException:
            self._barrier.abort()
            raise

    def meet(self, rank: int, what: str, data: Any) -> list[Any]:
        self._slots[rank] = what, data
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        assert {name for name, _ in found} == {what}, found
        return [value for _, value in found]


class _Rank:
    def __init__(self, ranks: ThreadRanks, rank: int) -> None:
        self._ranks, self.rank, self.size, self.label = ranks, rank, ranks.size, f"rank {rank}"

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return self._ranks.meet(self.rank, "gather", bytes(data))

    def broadcast_bytes(self, data: bytes | None, root: int = 0) -> bytes:
        found = self._ranks.meet(self.rank, "broadcast bytes", data)[root]
        assert isinstance(found, bytes)
        return found

    await_bytes = broadcast_bytes

    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        found = self._ranks.meet(self.rank, "broadcast", array.copy())[root]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        array[...] = found

    def gather_parts(self, buffer: NDArray[np.uint8], bounds: Sequence[tuple[int, int]]) -> None:
        for root, (start, stop) in enumerate(bounds):
            self.broadcast(buffer[start:stop], root)

    def exchange(
        self, outgoing: NDArray[np.uint8], sends: Sequence[int], incoming: NDArray[np.uint8], receives: Sequence[int]
    ) -> None:
        assert (sum(sends), sum(receives)) == (outgoing.size, incoming.size)
        found = self._ranks.meet(self.rank, "exchange", (outgoing.copy(), list(sends)))
        coming = []
        for (data, counts), count in zip(found, receives, strict=True):
            first = sum(counts[: self.rank])
            assert counts[self.rank] == count
            coming.append(data[first : first + count])
        incoming[:] = np.concatenate(coming)

    def barrier(self) -> None:
        self._ranks.meet(self.rank, "barrier", None)
