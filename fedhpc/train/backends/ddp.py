"""The backend `ddp`: torch's DistributedDataParallel over the ranks of the site."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from fedhpc.mpi.collectives import Group
from fedhpc.train.backends.devices import Placement
from fedhpc.train.backends.process_group import ProcessGroup
from fedhpc.train.backends.replicated import Replicated
from fedhpc.train.unused import Reach


class DdpBackend(Replicated):
    """Each rank holds the whole model; gradients are averaged bucket by bucket while they are computed."""

    name = "ddp"

    def __init__(self, group: Group, placement: Placement) -> None:
        """Collective over the site. Raises PeersError if the ranks cannot meet."""
        self.device = placement.device
        self._process_group = ProcessGroup(group, placement)
        # Of the models behind DDP, while they are in use.
        self.reach: weakref.WeakKeyDictionary[torch.nn.Module, Reach] = weakref.WeakKeyDictionary()
        self._unreached: list[str] = []

    @override
    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` behind DDP. It does not broadcast running statistics: the trainer takes the leader's."""
        # torch 2.13 renamed the option, and warns about the old name.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
        if self.device.type == "cuda":
            options["device_ids"] = [self.device.index]
        wrapped = DistributedDataParallel(model, **options)
        self.reach[wrapped] = Reach(wrapped)
        return wrapped

    @override
    @contextmanager
    def averaging(self, wrapped: torch.nn.Module, now: bool) -> Iterator[None]:
        """DDP's `no_sync` unless `now`; with `now`, parameters that the pass does not reach get zeros."""
        assert isinstance(wrapped, DistributedDataParallel)
        reach = self.reach[wrapped]
        reach.begin()
        with nullcontext() if now else wrapped.no_sync():
            yield
        if now:
            self._unreached = reach.complete(wrapped)

    @override
    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """What the last averaging pass did not reach; DDP gave zeros for it."""
        return self._unreached

    @override
    def close(self) -> None:
        """Destroy the process group."""
        # The end of a gloo group waits for its threads, which may want Python's lock. torch releases the lock where
        # the group's last owner is Python, and not where it is a DDP module's reducer: collected later, or at the
        # interpreter's exit, that would wait forever (pytorch issue 56297). So the reducers go first.
        for reach in self.reach.values():
            reach.close()
        wrapped = list(self.reach)  # in case something still holds them
        gone = [_drop(vars(model), name) for model in wrapped for name in ("logger", "reducer")]
        if not all(gone):  # a collection walks over all of torch, and takes a good part of a second
            gc.collect()
        self._process_group.leave()


def _drop(attributes: dict[str, Any], name: str) -> bool:
    """Remove an attribute; returns whether it was the last reference, so that its object is gone."""
    if name not in attributes:
        return True
    still_there = weakref.ref(attributes[name])
    del attributes[name]
    return still_there() is None
