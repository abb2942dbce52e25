"""The backend `mpi`: gradients averaged by MPI, bucket by bucket, without torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.mpi.collectives import Group
from fedhpc.train.backends.devices import Placement
from fedhpc.train.backends.replicated import Replicated
from fedhpc.train.unused import Reach, trained

BUCKET_BYTES = 25 << 20  # as DDP's: large enough for the network, small enough to stay a part of the model


class MpiBackend(Replicated):
    """Each rank holds the whole model; after a step's last backward pass its gradients are summed in float32."""

    name = "mpi"

    def __init__(self, group: Group, placement: Placement) -> None:
        self.device, self._group = placement.device, group
        self._reach: dict[int, Reach] = {}
        self._unreached: list[str] = []

    @override
    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` itself."""
        self._reach[id(model)] = Reach(model)
        return model

    @override
    @contextmanager
    def averaging(self, wrapped: torch.nn.Module, now: bool) -> Iterator[None]:
        yield
        if now:
            self._unreached = self._reach[id(wrapped)].end_step()
            average_gradients(self._group, trained(wrapped))

    @override
    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """What no pass of the step reached on this rank; it counted as zeros."""
        return self._unreached

    @override
    def close(self) -> None:
        for reach in self._reach.values():
            reach.close()
        self._reach.clear()


def average_gradients(group: Group, parameters: dict[str, torch.nn.Parameter]) -> None:
    """The mean of every gradient over the ranks, in place; one that a rank lacks counts as zeros. Collective.

    Sums are of float32, of doubles float64: MPI adds bfloat16 wrongly, and narrow sums would lose digits. Every rank
    gets the leader's bits.
    """
    for kind in (np.float32, np.float64):
        these = [p for p in parameters.values() if (p.dtype == torch.float64) == (kind is np.float64)]
        for bucket in _buckets(these, BUCKET_BYTES // np.dtype(kind).itemsize):
            flat: NDArray[Any] = np.empty(sum(p.numel() for p in bucket), dtype=kind)
            values = torch.from_numpy(flat)
            places = torch.split_with_sizes(values, [p.numel() for p in bucket])
            for p, place in zip(bucket, places, strict=True):
                if p.grad is None:
                    place.zero_()
                else:
                    place.copy_(p.grad.to_dense().reshape(-1) if p.grad.is_sparse else p.grad.reshape(-1))
            group.sum(flat)
            group.broadcast(flat)  # MPI only advises that all ranks get the same bits
            values /= group.size
            for p, place in zip(bucket, places, strict=True):
                if p.grad is None or p.grad.is_sparse:
                    p.grad = place.view(p.shape).to(p.device, p.dtype, copy=True)
                else:
                    p.grad.copy_(place.view(p.shape))


def _buckets(parameters: list[torch.nn.Parameter], most: int) -> Iterator[list[torch.nn.Parameter]]:
    """`parameters` one after the other, in lists of at most `most` numbers together, or of one parameter."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for p in parameters:
        if bucket and size + p.numel() > most:
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket
