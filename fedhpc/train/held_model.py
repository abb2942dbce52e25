"""A model of which every rank has all tensors, read and written by the parts that each rank holds for the sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.held_stream import spread
from fedhpc.federation.ranges import Form, Forms, Held


def forms_of_model(shared: Mapping[str, torch.Tensor]) -> Forms:
    """Of the shared tensors, as they travel: float64 where the tensor is double, float32 otherwise."""
    return {
        name: Form(np.dtype(np.float64 if value.dtype == torch.float64 else np.float32), tuple(value.shape))
        for name, value in shared.items()
    }


def read_pieces(shared: Mapping[str, torch.Tensor], held: Held, into: Tensors) -> None:
    """Copy what this rank holds into C-contiguous arrays of the same or a wider kind."""
    for name, piece in into.items():
        start, stop = held.cut(name)
        if start < stop:
            flat = shared[name].detach().reshape(-1)[start:stop]
            torch.from_numpy(piece.reshape(-1)).copy_(flat)


def write_pieces(held: Held, shared: Mapping[str, torch.Tensor], pieces: Mapping[str, NDArray[Any]]) -> None:
    """Make the `shared` tensors of every rank those of which the ranks hold `pieces`, window by window. Collective.

    Names that `shared` lacks are left out. Raises DataError, before anything is changed, if they do not fit.
    """
    forms = {name: form for name, form in forms_of_model(shared).items() if held.forms.get(name) != form}
    wrong = [name for name, piece in pieces.items() if piece.shape != held.piece_shape(name)]
    if forms or wrong or pieces.keys() != held.forms.keys():
        name = next(iter([*forms, *wrong, *(pieces.keys() ^ held.forms.keys())]))
        raise DataError(
            f"the model's {name} is not what the given state holds",
            "the checkpoint or the other sites have another task or other options",
        )
    staged = ""
    flat = torch.empty(0)
    with torch.no_grad():
        for name, first, values in spread(held, pieces):
            if name not in shared:
                continue
            if name != staged:
                _settle(shared, staged, flat)
                staged, flat = name, shared[name].detach().reshape(-1)
            # torch shares no read-only memory: a writable array passes without a copy
            flat[first : first + values.size].copy_(torch.from_numpy(np.require(values, requirements=["C", "W"])))
        _settle(shared, staged, flat)


def _settle(shared: Mapping[str, torch.Tensor], name: str, flat: torch.Tensor) -> None:
    """Copy back a tensor whose elements do not lie in order, of which `flat` is a copy; others are written already."""
    if name and flat.data_ptr() != shared[name].data_ptr():
        shared[name].copy_(flat.view(shared[name].shape))
