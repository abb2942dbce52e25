"""A local optimiser's state: as plain arrays, whole or as each rank holds its part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import Held
from fedhpc.mpi.collectives import Group
from fedhpc.train.dealt_rows import dealt_like, is_sharded
from fedhpc.train.held_model import read_pieces, read_shards, write_pieces, write_shards
from fedhpc.train.moves import whole_at_leader
from fedhpc.train.shards import named_shards, shard_of
from fedhpc.train.state import kind_of, split_state, to_array, to_tensor
from fedhpc.train.unused import trained


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
    """`optimizer_tensors` as whole arrays at the leader, none elsewhere. Collective over the site."""
    tensors = optimizer_tensors(model, optimizer)
    if any(is_sharded(tensor) for tensor in tensors.values()):
        return whole_at_leader(group, named_shards(tensors))
    return {name: to_array(tensor) for name, tensor in tensors.items()} if group.rank == 0 else {}


class SavedState:
    """What `optimizer_arrays` gave, array by array: of each, this rank keeps its part."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # They are not trained under every backend.
        self._empty = {name for name, p in model.named_parameters() if not p.numel()}
        self._state: dict[str, dict[str, torch.Tensor]] = {}
        self._foreign = ""

    def add(self, full: str, array: NDArray[Any]) -> None:
        """`full`: `parameter:key`."""
        name, _, key = full.rpartition(":")
        if name in self._empty:
            return
        if name not in self._parameters or array.shape not in ((), tuple(self._parameters[name].shape)):
            self._foreign = self._foreign or f"{name} {list(array.shape)}"
            return
        parameter = self._parameters[name]
        tensor = to_tensor(array, parameter.dtype if array.ndim else None)
        self._state.setdefault(name, {})[key] = dealt_like(parameter, tensor) if array.ndim else tensor

    def load_into(self, optimizer: torch.optim.Optimizer) -> None:
        """Continue with it; `optimizer` trains the parameters of the model in their order.

        Raises DataError if it belongs to another model.
        """
        if self._foreign:
            raise DataError(
                f"the checkpoint has optimiser state for {self._foreign}, which this model does not have",
                "the checkpoint belongs to another task",
            )
        state = {i: self._state[name] for i, name in enumerate(self._parameters) if name in self._state}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def divide_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """(by kind and parameter what has the shared parameter's shape, the rest named `parameter:key`).

    Parameters without elements are left out: they are not trained under every backend.
    """
    parameters, shared = trained(model), split_state(model)[0]
    cut: dict[str, dict[str, torch.Tensor]] = {}
    others: dict[str, torch.Tensor] = {}
    for full, tensor in optimizer_tensors(model, optimizer).items():
        name, _, key = full.rpartition(":")
        if not parameters[name].numel():
            continue
        if tensor.ndim and tensor.shape == parameters[name].shape and name in shared:
            cut.setdefault(key, {})[name] = tensor
        else:
            others[full] = tensor
    return cut, others


def read_part(held: Held, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Of optimiser state by parameter, what `held` gives this rank, in the kind in which sites share the parameter.

    Short floats become longer ones, which loses nothing. Collective over the site.
    """
    some = held.of(tensors)
    pieces = some.empty()
    if any(is_sharded(tensor) for tensor in tensors.values()):
        read_shards(some, [shard_of(name, tensors[name], kind_of(tensors[name])) for name in some.forms], pieces)
    else:
        read_pieces(tensors, some, pieces)
    return pieces


def write_part(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, held: Held, kind: str, pieces: Tensors
) -> None:
    """Set the state `kind` from what `read_part` gave on the ranks that hold it now. Collective over the site.

    Raises DataError if it is of another model.
    """
    parameters = trained(model)
    if other := sorted(pieces.keys() - parameters.keys()):
        raise DataError(f"the checkpoint has optimiser state for {other[0]}, which this model does not train")
    some = held.of(pieces)
    tensors = {name: torch.zeros_like(parameters[name].detach()) for name in some.forms}
    if any(is_sharded(tensor) for tensor in tensors.values()):
        write_shards(some, [shard_of(name, t, kind_of(t)) for name, t in tensors.items()], pieces)
    else:
        write_pieces(some, tensors, pieces)
    for name, tensor in tensors.items():
        if parameters[name].numel():
            optimizer.state[parameters[name]][kind] = tensor
