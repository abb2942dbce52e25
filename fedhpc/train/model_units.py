"""The parts of a model that are gathered, or computed again, one at a time: its blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from fedhpc.errors import ConfigError

CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict)
"""Modules that are never called: no unit."""


def default_units(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The direct children of every ModuleList: a transformer's blocks."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return [child for module in lists for child in module if not isinstance(child, CONTAINERS)]


def separable(model: torch.nn.Module, units: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Those of `units` that share no parameter with the rest of `model`, the inner ones first.

    What is tied to something outside stays with the root, where both are.
    """
    places: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    wanted = {id(unit) for unit in units}
    inner_first = [module for module in reversed(list(model.modules())) if id(module) in wanted]

    def is_apart(unit: torch.nn.Module) -> bool:
        within: dict[int, int] = {}
        for _, parameter in unit.named_parameters(remove_duplicate=False):
            within[id(parameter)] = within.get(id(parameter), 0) + 1
        return all(places[key] == count for key, count in within.items())

    return [unit for unit in inner_first if unit is not model and is_apart(unit)]


def compute_again(units: list[torch.nn.Module]) -> None:
    """Keep no activations inside `units`: the backward pass computes them again.

    Raises ConfigError for a unit with running statistics, which would count every batch twice.
    """
    for unit in units:
        if any(isinstance(module, _NormBase) and module.track_running_stats for module in unit.modules()):
            raise ConfigError(
                f"compute.activation_checkpointing: a {type(unit).__name__} of the model keeps running statistics, and "
                "what is computed again counts twice in them",
                "switch it off, or let fsdp_units() of the task name modules without batch norm",
            )
        unit.forward = _Again(unit.forward)


class _Again:
    """A forward method whose activations are not kept."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*inputs, **named)
        return checkpoint(partial(self._forward, **named), *inputs, use_reentrant=False)
