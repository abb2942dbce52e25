"""How a site's ranks average gradients in the user's own training loop.

Such a loop calls `backward()` itself. What `fedhpc run` does between its passes happens at the end of each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import Group
from fedhpc.train.backends.base import Backend
from fedhpc.train.backends.ddp import DdpBackend
from fedhpc.train.backends.open_backend import open_backend
from fedhpc.train.settings import ComputeSettings
from fedhpc.train.unused import Reach, refusal, without_gradient

UnusedParameters = Literal["refuse", "allow"]


def open_own_loop(
    site: Group, device: Literal["auto", "cpu", "cuda"], unused_parameters: UnusedParameters
) -> OwnLoopBackend:
    """The backend of one rank of `site`; documented where users find it (`fedhpc.site_backend`)."""
    if unused_parameters not in ("refuse", "allow"):
        raise ConfigError(f"unused_parameters = {unused_parameters!r}", "it must be 'refuse' or 'allow'")
    return OwnLoopBackend(open_backend(ComputeSettings(device=device), site), site.label, unused_parameters)


class OwnLoopBackend:
    """One rank's part in the user's own loop. `device` is where the model belongs."""

    def __init__(self, backend: Backend, label: str, unused_parameters: UnusedParameters) -> None:
        self.name, self.device = backend.name, backend.device
        self._backend, self._label, self._allowed = backend, label, unused_parameters == "allow"
        self._watches: list[_Watch] = []

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """What the loss is computed with: `model`, or `model` behind DDP."""
        wrapped = self._backend.wrap(model)
        if isinstance(self._backend, DdpBackend):
            self._watches.append(_Watch(wrapped, self._backend.reach[wrapped], self._label, self._allowed, self.device))
        elif not self._allowed:
            self._watches.append(_Watch(wrapped, Reach(wrapped), self._label, self._allowed, self.device))
        return wrapped

    def averaging(self, wrapped: torch.nn.Module, now: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: average at its end if `now`, else only accumulate."""
        return nullcontext() if now or not isinstance(wrapped, DistributedDataParallel) else wrapped.no_sync()

    def close(self) -> None:
        """Leave the process group. The wrapped models must not be used afterwards."""
        for watch in self._watches:
            watch.close()
        self._watches.clear()
        self._backend.close()


class _Watch:
    """Looks at the end of each backward pass through a wrapped model for parameters that it left out."""

    def __init__(self, wrapped: torch.nn.Module, reach: Reach, label: str, allowed: bool, device: torch.device) -> None:
        self._reach, self._label, self._allowed, self._device = reach, label, allowed, device
        self._parameters = reach.parameters
        self._pass = -1  # torch's number of the backward pass that is looked at
        self._hook = wrapped.register_forward_hook(self._after_forward)

    def close(self) -> None:
        """Take the hooks off the model."""
        self._hook.remove()
        self._reach.close()

    def _after_forward(self, wrapped: torch.nn.Module, _: Any, output: Any) -> None:
        # DDP decides here whether the backward pass averages. A hook on the outputs is called in the pass itself,
        # while those on parameters may be called in a pass within it (reentrant checkpoints).
        averages = not isinstance(wrapped, DistributedDataParallel) or wrapped.require_backward_grad_sync
        for tensor in _leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._in_backward, wrapped, averages))  # type: ignore[no-untyped-call]

    def _in_backward(self, wrapped: torch.nn.Module, averages: bool, _: torch.Tensor) -> None:
        running = torch._C._current_graph_task_id()
        if running != self._pass:
            self._pass = running
            _at_end_of_backward(partial(self._after_backward, wrapped, averages))

    def _after_backward(self, wrapped: torch.nn.Module, averages: bool) -> None:
        if not self._reach.any():
            return
        if not isinstance(wrapped, DistributedDataParallel):
            left = without_gradient(self._parameters)
            self._reach.begin()
        elif averages:
            left = self._reach.complete(wrapped)
        else:
            self._reach.begin()
            return
        if self._allowed:
            _at_end_of_backward(partial(self._forget, left))  # after DDP's own end
        elif left:
            raise refusal(
                f"{self._label}: backward()",
                left,
                len(self._parameters),
                'site_backend(fed, unused_parameters="allow")',
            )

    def _forget(self, left: list[str]) -> None:
        """No gradient for what no rank reached, as on one rank."""
        mine = [int(name in left) for name in self._parameters]
        counts = torch.tensor(mine, dtype=torch.int32, device=self._device)
        dist.all_reduce(counts)
        for parameter, count in zip(self._parameters.values(), counts.tolist(), strict=True):
            if count == dist.get_world_size():
                parameter.grad = None


def _leaves(output: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(output):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves(vars(leaf))
        else:
            yield leaf


def _at_end_of_backward(call: Any) -> None:
    """`call` when the running backward pass ends. torch has no public name for it; its FSDP uses the same."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
