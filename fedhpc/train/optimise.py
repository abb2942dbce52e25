"""The local optimiser: how it is made, its learning rate over all rounds, and its state as plain arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.mpi.collectives import Group
from fedhpc.train.dealt_rows import dealt_like, is_sharded
from fedhpc.train.moves import whole_at_leader
from fedhpc.train.settings import TrainSettings
from fedhpc.train.shards import named_shards
from fedhpc.train.state import to_array, to_tensor


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of [train] over every parameter of `model` that requires gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "adamw":
        beta1, beta2 = settings.betas
        return torch.optim.AdamW(parameters, lr=settings.lr, betas=(beta1, beta2), weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of a site's step number `step`, counted from 0 over all rounds.

    It rises linearly, reaching lr at step warmup_steps; then it stays, or falls to 0 at total_steps.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup_steps) / (settings.total_steps - settings.warmup_steps)
    done = min(done, 1.0)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.lr * (1.0 - done)


def _names(model: torch.nn.Module) -> list[str]:
    """Names in the order in which the optimiser numbers its parameters."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as tensors named `parameter:key`, dealt out as the parameters are; empty at first."""
    names = _names(model)
    return {
        f"{names[index]}:{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def optimizer_arrays(model: torch.nn.Module, optimizer: torch.optim.Optimizer, group: Group) -> dict[str, NDArray[Any]]:
    """`optimizer_tensors` as arrays, whole at the leader, who keeps them; nothing at the others. Collective."""
    tensors = optimizer_tensors(model, optimizer)
    if any(is_sharded(tensor) for tensor in tensors.values()):
        return whole_at_leader(group, named_shards(tensors))
    return {} if group.rank else {name: to_array(tensor) for name, tensor in tensors.items()}


def load_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Continue with what `optimizer_arrays` gave. Raises DataError if it belongs to another model."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    index = {name: i for i, name in enumerate(parameters)}
    without_elements = {
        name for name, p in model.named_parameters() if not p.numel()
    }  # not trained under every backend
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, array in arrays.items():
        name, _, key = full.rpartition(":")
        if name in without_elements:
            continue
        if name not in index or array.shape not in ((), tuple(parameters[name].shape)):
            raise DataError(
                f"the checkpoint has optimiser state for {name} {list(array.shape)}, which this model does not have",
                "the checkpoint belongs to another task",
            )
        tensor = to_tensor(array, parameters[name].dtype if array.ndim else None)
        state.setdefault(index[name], {})[key] = dealt_like(parameters[name], tensor) if array.ndim else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
