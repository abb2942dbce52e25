"""How a site's model begins: its outline, and the values of its tensors, by name.

A task that can give each tensor by itself is never whole anywhere: its outline is made with parameters that have no
memory, the backend deals them out, and each rank keeps its rows of one tensor after the other. All backends make it
that way, so that sites whose ranks share the model begin like sites whose ranks do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

from fedhpc.errors import ConfigError
from fedhpc.train.batches import derive_key
from fedhpc.train.dealt_rows import local_part, rows_of
from fedhpc.train.model_units import default_units

Fill = Callable[[str, tuple[int, ...], torch.Generator], torch.Tensor]
"""The value of one parameter: `fill(name, shape, generator)`, drawn from `generator` only."""


class Values(Protocol):
    """The values of a first model, tensor by tensor."""

    def expect(self, names: Set[str]) -> None:
        """What the model calls its tensors. Raises DataError if there are values for which it has no place."""
        ...

    def rows(self, names: Sequence[str], tensor: torch.Tensor, first: int, last: int) -> torch.Tensor | None:
        """Rows first..last of the parameter or buffer `tensor` (for its shape), which has `names`.

        None leaves a buffer as model() made it.
        """
        ...


class Drawn(Values):
    """Values that a task draws, each from a generator of its own: of the federation's seed and the tensor's name."""

    def __init__(self, fill: Fill, seed: int, where: str) -> None:
        self._fill, self._seed, self._where = fill, seed, where

    def expect(self, names: Set[str]) -> None:
        """Only what is asked for is drawn."""

    def rows(self, names: Sequence[str], tensor: torch.Tensor, first: int, last: int) -> torch.Tensor | None:
        """Draws the whole tensor, for its rows; buffers are those that model() made."""
        if not isinstance(tensor, torch.nn.Parameter):
            return None
        name, shape = names[0], tuple(tensor.shape)
        key = derive_key("fedhpc fill v1", self._seed, name)
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        whole = self._fill(name, shape, generator)
        if not isinstance(whole, torch.Tensor) or tuple(whole.shape) != shape:
            found = list(whole.shape) if isinstance(whole, torch.Tensor) else type(whole).__name__
            raise ConfigError(
                f"fill() of task {self._where} gave {found} for {name}",
                f"it must give a tensor of the shape that it is asked for: {list(shape)}",
            )
        return whole[first:last] if whole.ndim else whole


@dataclass(frozen=True)
class FirstModel:
    """The first model of a federation, not made yet."""

    make: Callable[[], torch.nn.Module]
    """The whole model on the CPU, the same at every site."""
    values: Values | None = None
    """Its values by name; None for a task that only makes whole models."""
    units: Callable[[torch.nn.Module], list[torch.nn.Module]] = default_units
    """The parts of it that are gathered, or computed again, one at a time."""
    bf16: bool = False
    """Whether forward passes are in bfloat16 ([train] precision)."""

    def whole(self) -> torch.nn.Module:
        """The model with all its values, on the CPU."""
        if self.values is None:
            return self.make()
        model = self.outline()
        self.fill(model, torch.device("cpu"))
        return model

    def outline(self) -> torch.nn.Module:
        """The model with parameters that have no memory; its buffers are there."""
        with _parameters_on_meta():
            model = self.make()
        for name, buffer in model.named_buffers():
            if buffer.is_meta:
                raise ConfigError(
                    f"the model's buffer {name} is made from parameters, which fill() gives later",
                    "make it from the options in model(), or in forward()",
                )
        return model

    def fill(self, model: torch.nn.Module, device: torch.device) -> None:
        """Give the outline `model`, dealt out or not, memory on `device` and its values."""
        assert self.values is not None
        self.values.expect({name for names, _ in _with_all_names(model) for name in names})
        _give_memory(model, device)
        with torch.no_grad():
            for names, tensor in _with_all_names(model):
                first, last = rows_of(tensor, names[0])
                rows = self.values.rows(names, tensor, first, last)
                if rows is not None:
                    local_part(tensor).copy_(rows)


def _give_memory(model: torch.nn.Module, device: torch.device) -> None:
    """Memory for the parameters of an outline; torch's `to_empty` empties buffers too, and parts what is shared."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for tensors in (module.named_parameters, module.named_buffers):
            for name, tensor in tensors(recurse=False, remove_duplicate=False):
                places.setdefault(id(tensor), []).append((module, name))
    model.to_empty(device=device)
    for (module, name), *others in places.values():
        for other, alias in others:
            setattr(other, alias, getattr(module, name))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _with_all_names(model: torch.nn.Module) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Parameters, then buffers, each once with all its names."""
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        names: dict[int, list[str]] = {}
        found: dict[int, torch.Tensor] = {}
        for name, tensor in tensors:
            names.setdefault(id(tensor), []).append(name)
            found[id(tensor)] = tensor
        yield from ((names[key], tensor) for key, tensor in found.items())


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside the block modules register parameters without memory in place of those they are given."""
    given: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # shared ones stay shared

    def without_memory(_: torch.nn.Module, __: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        if parameter not in given:
            given[parameter] = torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        known: torch.nn.Parameter = given[parameter]
        return known

    hook = register_module_parameter_registration_hook(without_memory)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()
