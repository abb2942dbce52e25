"""The backend `fsdp`: torch's FSDP2. Each rank holds some rows of every parameter, of its gradient and optimiser state.

A unit's parameters are gathered when its forward or backward pass needs them, and dropped after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from typing_extensions import override

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import Group
from fedhpc.train.backends.base import Backend
from fedhpc.train.backends.devices import Placement
from fedhpc.train.backends.process_group import ProcessGroup
from fedhpc.train.first_model import FirstModel
from fedhpc.train.model_units import separable
from fedhpc.train.unused import trained

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class FsdpBackend(Backend):
    """FSDP2 over the ranks of the site. Every pass must call the same units of the model on all ranks."""

    name = "fsdp"
    sharded = True

    def __init__(self, group: Group, placement: Placement) -> None:
        """Collective over the site. Raises ConfigError without FSDP2 in torch, PeersError if the ranks do not meet."""
        if not has_fsdp():
            raise ConfigError(
                f"{group.label}: compute.backend = 'fsdp', and torch {torch.__version__} has no FSDP2 that gives zeros "
                "for what a rank's rows leave out",
                "it is there from torch 2.13 on; backend = 'ddp' works with older ones",
            )
        self.device, self._label = placement.device, group.label
        self._process_group = ProcessGroup(group, placement)
        self._reach: dict[int, _ShardedReach] = {}
        self._unreached: list[str] = []

    @override
    def build(self, first: FirstModel) -> torch.nn.Module:
        """The model, dealt out before it has values. Raises ConfigError for a task that only makes whole models."""
        if first.values is None:
            raise ConfigError(
                f"{self._label}: compute.backend = 'fsdp', and the task only makes whole models",
                "add fill(name, shape, generator) to the task, which gives one parameter at a time (docs/backends.md), "
                "or name a folder of safetensors: [task] weights_sha256 and [data] weights",
            )
        model = first.outline()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                raise ConfigError(
                    f"{self._label}: the model's {name} is a scalar, which fsdp cannot deal out by rows",
                    "give it the shape [1], or use backend = 'ddp'",
                )
            if not parameter.numel():  # torch deals out its gradient too, and fails in that
                parameter.requires_grad_(False)
        self._shard(model, first)
        first.fill(model, self.device)
        self._reach[id(model)] = _ShardedReach(model)
        return model

    def _shard(self, model: torch.nn.Module, first: FirstModel) -> None:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = DeviceMesh.from_group(dist.group.WORLD, self.device.type)  # type: ignore[arg-type]
        low = torch.bfloat16 if first.bf16 else None
        for unit in separable(model, first.units(model)):
            fully_shard(unit, mesh=mesh, mp_policy=MixedPrecisionPolicy(low, torch.float32))
        # The model's own inputs keep their digits: it may standardise them first.
        whole = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False)
        fully_shard(model, mesh=mesh, mp_policy=whole)
        for module in _units(model):
            # A rank whose rows leave a parameter out would reduce other tensors than the rest: it gives zeros.
            module.set_reduce_scatter_unused_params(True)

    @override
    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model`, which was dealt out when it was built."""
        return model

    @override
    @contextmanager
    def averaging(self, wrapped: torch.nn.Module, now: bool) -> Iterator[None]:
        _root(wrapped).set_requires_gradient_sync(now)
        reach = self._reach[id(wrapped)]
        reach.begin()
        yield
        if not reach.any():
            raise ConfigError(
                f"{self._label}: the loss of some rows does not depend on the model",
                "under fsdp every pass goes through the whole model; use backend = 'ddp' for such a loss",
            )
        if now:
            self._unreached = reach.end_step()

    @override
    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """What no pass of the step reached; it got zeros."""
        return self._unreached

    @override
    def clip(self, model: torch.nn.Module, max_norm: float) -> torch.Tensor:
        """Collective: the norm is that of all ranks' rows."""
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    @override
    def settled(self, model: torch.nn.Module) -> None:
        """After a forward pass without a backward pass the root's parameters are whole, and what is written is lost."""
        root = _root(model)
        # Also after a pass that has failed; before the first one torch has nothing to reset, and fails.
        if self._reach[id(model)].entered:
            root.reset_iter_state()
        for unit in _units(model):
            unit.reshard()

    @override
    def close(self) -> None:
        """Destroy the process group."""
        for reach in self._reach.values():
            reach.close()
        self._reach.clear()
        self._process_group.leave()


class _ShardedReach:
    """Which parameters this rank's backward passes reach; they are looked at while they are whole."""

    def __init__(self, model: torch.nn.Module) -> None:
        names = {id(p): name for name, p in trained(model).items()}
        self._trained = list(names.values())
        self.entered = False
        """Whether there has been a forward pass."""
        self._pass: set[str] = set()
        self._step: set[str] = set()
        self._known: dict[int, Any] = {}  # whole parameters, each with its hook
        self._hooks = []
        left = dict(names)
        for unit in reversed(_units(model)):  # inner ones first: they have taken their parameters
            own = [
                (left.pop(id(parameter)), module, attribute)
                for module in unit.modules()  # type: ignore[attr-defined]
                for attribute, parameter in module.named_parameters(recurse=False)
                if id(parameter) in left
            ]
            self._hooks.append(unit.register_forward_pre_hook(partial(self._watch, own)))  # type: ignore[attr-defined]

    def begin(self) -> None:
        self._pass.clear()

    def any(self) -> bool:
        return bool(self._pass)

    def end_step(self) -> list[str]:
        left = [name for name in self._trained if name not in self._step]
        self._step.clear()
        return left

    def close(self) -> None:
        for hook in (*self._hooks, *(hook for _, hook in self._known.values())):
            hook.remove()
        self._known.clear()

    def _watch(self, own: list[tuple[str, torch.nn.Module, str]], _: torch.nn.Module, __: Any) -> None:
        self.entered = True
        for name, module, attribute in own:
            parameter = getattr(module, attribute)
            if id(parameter) not in self._known and parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(partial(self._mark, name))
                self._known[id(parameter)] = (parameter, hook)

    def _mark(self, name: str, _: torch.Tensor) -> None:
        self._pass.add(name)
        self._step.add(name)


def has_fsdp() -> bool:
    """Whether this torch has FSDP2 with all that is used of it here."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        return False
    return all(hasattr(FSDPModule, name) for name in ("set_reduce_scatter_unused_params", "reset_iter_state"))


def _root(model: torch.nn.Module) -> FSDPModule:
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    return model


def _units(model: torch.nn.Module) -> list[FSDPModule]:
    """The root, then its units, outer ones first."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
