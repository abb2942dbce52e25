"""A model's tensors as NumPy arrays: what is shared between sites, and what stays.

Shared are parameters and floating buffers, in state_dict order, one that has several names (tied weights) once, under
the first of them. Integer buffers (counters) stay local, and so do tensors that are a site's own (personal.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.errors import ConfigError, DataError
from fedhpc.train.dealt_rows import local_part, rows_of

# NumPy has no bfloat16: its bits are kept as integers. Other dtypes are kept as they are.
PERSONAL = "fedhpc_personal"
"""Attribute of a model: names of the floating tensors that are the site's own."""

_BITS = {torch.bfloat16: torch.int16}


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in a dtype that NumPy has: bfloat16 as the int16 of the same bits. It aliases it."""
    return tensor.view(_BITS[tensor.dtype]) if tensor.dtype in _BITS else tensor


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A copy of `tensor` on the host, bit for bit; bfloat16 as the int16 of the same bits."""
    return as_bits(tensor.detach().to("cpu").contiguous()).numpy().copy()


def to_tensor(array: NDArray[Any], dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor that `to_array` read; `dtype` is needed for bfloat16 only."""
    tensor = torch.from_numpy(np.array(array, copy=True, order="C"))
    if dtype in _BITS and tensor.dtype == _BITS[dtype]:
        return tensor.view(dtype)
    return tensor


def split_state(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(shared, local) tensors of `model` by name, in state_dict order; they alias the model's own."""
    personal: frozenset[str] = getattr(model, PERSONAL, frozenset())
    shared: dict[str, torch.Tensor] = {}
    local: dict[str, torch.Tensor] = {}
    for name, value in _tensors(model).items():
        (shared if value.is_floating_point() and name not in personal else local)[name] = value
    return shared, local


def floating(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The floating tensors of `model`, shared and personal, by name, in state_dict order; they alias its own."""
    return {name: value for name, value in _tensors(model).items() if value.is_floating_point()}


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors, each once. Raises ConfigError for what cannot be averaged."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or value.is_complex():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ConfigError(
                f"the model's {name} is {kind}, which cannot be averaged",
                "parameters and buffers must be real tensors; write complex ones as pairs of real ones",
            )
        if id(value) not in seen:
            seen.add(id(value))
            found[name] = value
    return found


def kind_of(tensor: torch.Tensor) -> str:
    """The NumPy kind in which sites share `tensor`: float64 of doubles, float32 of all others."""
    return "float64" if tensor.dtype == torch.float64 else "float32"


def read_shared(shared: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Copies: float64 arrays of double tensors, float32 arrays of all others, C-contiguous."""
    return {
        name: np.array(value.detach().to("cpu", getattr(torch, kind_of(value))).numpy(), order="C")
        for name, value in shared.items()
    }


def write_shared(shared: Mapping[str, torch.Tensor], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Copy `tensors` into the model, of which a rank may hold some rows only.

    Raises DataError, before anything is changed, if they do not fit.
    """
    for name, value in shared.items():
        array = tensors.get(name)
        want = np.dtype(kind_of(value))
        if array is None or array.shape != tuple(value.shape) or array.dtype != want:
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise DataError(
                f"the model's {name} is {want} {list(value.shape)}, and the given state holds {found}",
                "the checkpoint or the other sites have another task or other options",
            )
    extra = [name for name in tensors if name not in shared]
    if extra:
        raise DataError(f"the model has no {extra[0]}", "the given state belongs to another task or other options")
    with torch.no_grad():
        for name, value in shared.items():
            # torch shares no read-only memory: a writable array passes without a copy
            whole = torch.from_numpy(np.require(tensors[name], requirements=["C", "W"]))
            first, last = rows_of(value, name)
            local_part(value).copy_(whole[first:last] if whole.ndim else whole)
