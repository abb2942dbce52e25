"""A stand-in of Horovod's interface for several ranks in threads of one process, as strict as the real one.

Horovod adds in the background, and what becomes of a gradient that is touched meanwhile depends on time. Here that is
always found out.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedhpc.mpi.collectives import SerialGroup

WAIT_S = 60
DTYPES = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)


class HorovodInternalError(RuntimeError):
    """What horovod.torch calls it."""


@dataclass
class Ranks:
    """What the ranks of one site share."""

    size: int
    sent: dict[tuple[str, int], dict[int, torch.Tensor]] = field(default_factory=dict)
    """(name, how often it was used before) -> rank -> the tensor as it was sent"""
    done: dict[tuple[str, int], int] = field(default_factory=dict)  # (name, rank) -> how many averages of this name
    down: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    board: dict[int, dict[int, Any]] = field(default_factory=dict)  # number of a meeting -> rank -> what it brought
    broken: bool = False


class ThreadGroup(SerialGroup):
    """A rank of a site as the trainer's backends see it: what they call of `Group`."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        super().__init__("site a")
        self.rank, self.size, self.ranks = rank, ranks.size, ranks
        self._meetings = 0

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return list(self._board(data))

    def broadcast(self, array: np.ndarray, root: int = 0) -> None:
        array[...] = self._board(array.copy())[root]

    def sum(self, array: np.ndarray) -> None:
        array[...] = sum(self._board(array.copy()))

    def barrier(self) -> None:
        self._board(None)

    def _board(self, mine: Any) -> list[Any]:
        ranks, number = self.ranks, self._meetings
        self._meetings += 1
        with ranks.changed:
            brought = ranks.board.setdefault(number, {})
            brought[self.rank] = mine
            ranks.changed.notify_all()
            assert ranks.changed.wait_for(lambda: len(brought) == self.size or ranks.broken, WAIT_S)
            assert len(brought) == self.size, "another rank has failed"
        return [brought[rank] for rank in range(self.size)]


class FakeHorovod(types.ModuleType):
    """The module horovod.torch. `init(comm=…)` takes the group itself."""

    Average = 0
    HorovodInternalError = HorovodInternalError

    def __init__(self, **facts: bool) -> None:
        super().__init__("horovod.torch")
        self.facts = {"mpi": True, "cuda": False, "rocm": False} | facts
        self._mine = threading.local()

    def mpi_built(self) -> bool:
        return self.facts["mpi"]

    def cuda_built(self) -> bool:
        return self.facts["cuda"]

    def rocm_built(self) -> bool:
        return self.facts["rocm"]

    def init(self, *, comm: ThreadGroup) -> None:
        assert not self.is_initialized()
        self._mine.group, self._mine.down = comm, False
        comm.barrier()
        comm.ranks.down = False
        comm.barrier()

    def is_initialized(self) -> bool:
        return getattr(self._mine, "group", None) is not None

    def shutdown(self) -> None:
        ranks = self._mine.group.ranks
        with ranks.changed:
            ranks.down = True  # at all ranks
            ranks.changed.notify_all()
        self._mine.group = None

    def rank(self) -> int:
        return self._mine.group.rank

    def size(self) -> int:
        return self._mine.group.size

    def allreduce_async_(self, tensor: torch.Tensor, *, name: str, op: int) -> tuple[str, torch.Tensor]:
        assert op == self.Average
        if tensor.dtype not in DTYPES:
            raise ValueError(f"Tensor type {tensor.type()} is not supported.")
        if not tensor.is_contiguous():
            raise ValueError("Tensor is required to be contiguous.")
        ranks, rank = self._mine.group.ranks, self._mine.group.rank
        with ranks.changed:
            key = name, ranks.done.get((name, rank), 0)
            if rank in ranks.sent.setdefault(key, {}):
                raise HorovodInternalError("Duplicate tensor name")
            ranks.sent[key][rank] = tensor.clone()
            ranks.changed.notify_all()
        return name, tensor

    def synchronize(self, handle: tuple[str, torch.Tensor]) -> torch.Tensor:
        name, tensor = handle
        ranks, rank = self._mine.group.ranks, self._mine.group.rank
        with ranks.changed:
            sent = ranks.sent[name, ranks.done.get((name, rank), 0)]
            ranks.changed.wait_for(lambda: ranks.down or len(sent) == ranks.size, WAIT_S)
            if len(sent) < ranks.size:
                raise HorovodInternalError("Horovod has been shut down.")
            if len({(t.dtype, t.shape) for t in sent.values()}) > 1:
                raise HorovodInternalError("Mismatched allreduce tensor shapes")
            assert torch.equal(sent[rank], tensor), f"{name} was changed while it was on its way"
            tensor.copy_(sum(sent.values()) / ranks.size)
            ranks.done[name, rank] = ranks.done.get((name, rank), 0) + 1
        return tensor


def on_ranks(size: int, work: Callable[[ThreadGroup], Any]) -> list[Any]:
    """What `work` returns, or the error that it raises, on each rank of a site."""
    ranks = Ranks(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(ranks, rank))
        except BaseException as error:
            results[rank] = error
            with ranks.changed:
                ranks.broken = True
                ranks.changed.notify_all()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    return results
