"""The first value of each parameter, from its name and the federation's seed alone, in whatever order they are made."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedhpc.errors import ConfigError
from fedhpc.train.batches import derive_key

Fill = Callable[[str, tuple[int, ...], torch.Generator], torch.Tensor]
"""A task's `fill(name, shape, generator)`: the first value of a parameter, a float tensor of `shape` on the CPU."""


def first_value(fill: Fill, name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The whole first value of the parameter `name`. Raises ConfigError for another shape."""
    key = derive_key("fedhpc first value v1", seed, name)
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    value = fill(name, shape, generator)
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ConfigError(f"fill() gives {found} for {name}, which is {list(shape)}", "it returns a tensor of `shape`")
    return value


def fill_model(model: torch.nn.Module, fill: Fill, seed: int) -> None:
    """Give every parameter of a whole model on the CPU its first value; a shared one by its first name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(first_value(fill, name, tuple(parameter.shape), seed))
