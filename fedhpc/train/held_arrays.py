"""Whole NumPy tensors at every rank of a site, read and written by the parts that each rank holds for the sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.held_stream import whole_tensors
from fedhpc.federation.ranges import Forms, Held, forms_of


def read_arrays(arrays: Mapping[str, NDArray[Any]], held: Held, into: Tensors) -> None:
    """Copy what this rank holds of the whole `arrays` into arrays of the same or a wider kind."""
    for name, piece in into.items():
        np.copyto(piece, held.piece(name, arrays[name]))


def write_arrays(held: Held, arrays: Tensors, pieces: Mapping[str, NDArray[Any]]) -> None:
    """Make the whole `arrays` of every rank those of which the ranks hold `pieces`. Collective over the site.

    Names that `arrays` lacks are left out. Raises DataError, before anything is changed, if they do not fit.
    """
    refuse_other(held, forms_of(arrays), pieces)
    for name, array in whole_tensors(held, pieces).items():
        if name in arrays:
            np.copyto(arrays[name], array)


def refuse_other(held: Held, forms: Forms, pieces: Mapping[str, NDArray[Any]]) -> None:
    """DataError unless the model's `forms` are those of which `pieces` are held."""
    other = [name for name, form in forms.items() if held.forms.get(name) != form]
    wrong = [name for name, piece in pieces.items() if name in held.forms and piece.shape != held.piece_shape(name)]
    for name in [*other, *wrong, *(pieces.keys() ^ held.forms.keys())]:
        raise DataError(
            f"the model's {name} is not what the given state holds",
            "the checkpoint or the other sites have another task or other options",
        )
