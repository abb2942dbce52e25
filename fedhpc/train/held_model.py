"""A model of which every rank has all tensors, read and written by the parts that each rank holds for the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.held_stream import Runs, raw, spread
from fedhpc.federation.ranges import Form, Forms, Held
from fedhpc.train.held_arrays import refuse_other
from fedhpc.train.moves import Moves
from fedhpc.train.shards import Shard


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
    refuse_other(held, forms_of_model(shared), pieces)
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


# --- under a backend that deals the rows of tensors to the ranks


def read_shards(held: Held, shards: Sequence[Shard], into: Tensors) -> None:
    """Copy what this rank holds for the sums, from the `shards` of all ranks. Collective."""
    pieces = into
    if any(array.dtype != held.forms[name].dtype for name, array in into.items()):
        pieces = held.empty()  # numbers are moved in their own kind
    _moves(held, shards).gather_to(_runs(held, pieces).write)
    if pieces is not into:
        for name, array in into.items():
            np.copyto(array, pieces[name])


def write_shards(held: Held, shards: Sequence[Shard], pieces: Mapping[str, NDArray[Any]]) -> None:
    """Write the `shards` of all ranks, of some of the tensors, from what the ranks hold. Collective.

    Raises DataError, before anything is changed, if they do not fit.
    """
    refuse_other(held, {s.name: Form(np.dtype(s.kind), s.shape) for s in shards}, pieces)
    _moves(held, shards).scatter_from(_runs(held, {n: np.ascontiguousarray(p) for n, p in pieces.items()}).read)


def _moves(held: Held, shards: Sequence[Shard]) -> Moves:
    """Between shards and what each rank holds of the tensors' bytes, one after another."""
    ranges = held.byte_ranges
    return Moves(held.site, shards, held.byte_offsets, ranges * (held.site.size if held.replicated else 1))


def _runs(held: Held, pieces: Mapping[str, NDArray[Any]]) -> Runs:
    runs = [
        (held.byte_offsets[name] + held.cut(name)[0] * piece.itemsize, raw(piece)) for name, piece in pieces.items()
    ]
    return Runs(sorted((run for run in runs if run[1].size), key=lambda run: run[0]))  # in whatever order they come
