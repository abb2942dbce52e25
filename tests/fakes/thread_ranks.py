"""Ranks of a group as threads of one process: arrays are summed, bytes gathered and exchanged as by MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from fedhpc.mpi.collectives import SerialGroup

T = TypeVar("T")


class ThreadGroup(SerialGroup):
    """One rank; what the ranks share is `shared`."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, shared: dict[int, Any]) -> None:
        super().__init__("site a")
        self.rank, self.size, self._barrier, self._shared = rank, size, barrier, shared

    def _all(self, mine: Any) -> list[Any]:
        self._barrier.wait()
        self._shared[self.rank] = mine
        self._barrier.wait()
        return [self._shared[rank] for rank in range(self.size)]

    def sum(self, array: Any) -> None:
        super().sum(array)
        array[...] = np.sum(self._all(array.copy()), axis=0, dtype=array.dtype)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return self._all(data)

    def broadcast_bytes(self, data: bytes | None, root: int = 0) -> bytes:
        found: bytes = self._all(data)[root]
        return found

    def await_bytes(self, data: bytes | None) -> bytes:
        return self.broadcast_bytes(data)

    def broadcast(self, array: Any, root: int = 0) -> None:
        found = self._all(array.copy())[root]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        array[...] = found

    def barrier(self) -> None:
        self._all(None)

    def alltoall(self, sent: Any, sent_bytes: Sequence[int], received: Any, received_bytes: Sequence[int]) -> None:
        assert sum(sent_bytes) == sent.size
        assert sum(received_bytes) == received.size
        parts = np.split(sent.copy(), np.cumsum(sent_bytes)[:-1])
        mine = [of_rank[self.rank] for of_rank in self._all(parts)]
        assert [part.size for part in mine] == list(received_bytes)
        received[:] = np.concatenate(mine) if mine else []


def run_ranks(size: int, function: Callable[[ThreadGroup], T]) -> list[T]:
    """`function(group)` on `size` ranks at once; their results, or the first error."""
    barrier, shared = threading.Barrier(size, timeout=60), {}
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(ThreadGroup(rank, size, barrier, shared))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return results
