"""What users hand to a sum, as NumPy arrays. Values that would lose their meaning on the way are refused.

NumPy reads almost anything as an array, and drops masks, units, labels and the parts of other ranks without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.vector import check_text

_PLAIN = (np.ndarray, np.memmap, np.matrix)  # kinds of arrays that are no more than their numbers
_LABELLED = ("index", "columns", "coords")  # of pandas, polars, xarray
_MEASURED = ("unit", "units", "mask")  # of astropy, pint, unyt and others
_SMALL_FLOATS = ("float16", "bfloat16", "float8")  # float32 holds all their numbers
_DEEPEST = 32  # lists in lists


def given_arrays(arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Each of `arrays` by name as a C-contiguous NumPy array of its own kind; 16-bit floats as float32.

    Raises ConfigError for a name, DataError for what is not a plain array of numbers.
    """
    found = {}
    for name, given in arrays.items():
        check_text(name, "the name of an array")
        found[name] = _as_array(name, given)
    return found


def _as_array(name: str, given: Any, depth: int = 0) -> NDArray[Any]:
    _refuse_more_than_numbers(name, given)
    if _is_tensor(given):
        array = _from_tensor(name, given)
    elif isinstance(given, list | tuple):
        array = _from_sequence(name, given, depth)
    else:
        array = _read(name, given)
    if array.dtype.kind == "O":
        raise DataError(
            f"'{name}' holds objects that are not 64-bit numbers (dtype object)",
            "sums take integers, float32 and float64; convert it first",
        )
    if array.dtype.name.startswith(_SMALL_FLOATS):
        array = array.astype(np.float32)
    return np.asarray(array, order="C")


def _refuse_more_than_numbers(name: str, given: Any) -> None:
    kind = type(given)
    what = f"'{name}' is a {kind.__name__} of {kind.__module__.partition('.')[0]}"
    if isinstance(given, np.ma.MaskedArray):
        raise DataError(
            f"'{name}' is a masked array, whose masked values would be summed too",
            "give filled(0), or compressed() where every site has the same length, and sum the counts as well",
        )
    if isinstance(given, np.ndarray | np.generic):
        if isinstance(given, np.ndarray) and kind not in _PLAIN:
            raise DataError(f"{what}: a sum keeps numbers only, not what it means", "give numpy.asarray() of it")
        return
    if isinstance(given, list | tuple | bytes | str) or _is_tensor(given):
        return
    if any(_has(given, word) for word in _LABELLED) or kind.__module__.partition(".")[0] == "pandas":
        raise DataError(
            f"{what}: a sum does not look at labels, and their order may differ between sites",
            "give to_numpy() of it, with rows and columns in an order that all sites share",
        )
    if any(_has(given, word) for word in _MEASURED):
        raise DataError(f"{what}: a sum keeps numbers only", "give its plain values, in a unit that all sites share")


def _has(given: Any, word: str) -> bool:
    """Whether its type has such a property; a list's index() is none."""
    found = getattr(type(given), word, None)
    return found is not None and not callable(found)


def _is_tensor(given: Any) -> bool:
    torch = sys.modules.get("torch")  # without it there are no tensors, and sums do not need it
    return torch is not None and isinstance(given, torch.Tensor)


def _from_tensor(name: str, given: Any) -> NDArray[Any]:
    """A torch tensor on any device, contiguous or not, with or without a gradient."""
    torch = sys.modules["torch"]
    kind = type(given)
    if kind.__name__ == "DTensor":
        raise DataError(f"'{name}' is a DTensor, of which this rank holds a part", "give full_tensor() of it")
    if kind not in (torch.Tensor, torch.nn.Parameter):
        raise DataError(f"'{name}' is a {kind.__name__}: a sum keeps numbers only", "give a plain tensor of its values")
    if given.layout != torch.strided or given.is_nested:
        raise DataError(f"'{name}' is a sparse or nested tensor", "give to_dense() of it, or padded values")
    if given.is_quantized or given.is_meta:
        raise DataError(f"'{name}' is a tensor without plain numbers (quantised, or on device meta)", "dequantize() it")
    plain = given.detach()
    if plain.is_floating_point() and plain.element_size() < 4:
        plain = plain.float()
    return _read(name, plain.resolve_conj().resolve_neg().cpu().numpy())


def _from_sequence(name: str, given: list[Any] | tuple[Any, ...], depth: int) -> NDArray[Any]:
    """A list, of which every part is looked at: NumPy would drop the mask of an array in it."""
    if depth > _DEEPEST:
        raise DataError(f"'{name}' is a list that is too deep", "give an array")
    if all(isinstance(part, int | float | np.generic) for part in given):
        return _read(name, given)
    return _read(name, [_as_array(name, part, depth + 1) for part in given])


def _read(name: str, given: Any) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except Exception as error:  # whatever a stranger's __array__ raises; its text may hold values
        raise DataError(
            f"'{name}' is not an array of numbers ({type(given).__name__}: {type(error).__name__})",
            "give a NumPy array, a tensor, a number or lists of equal lengths",
        ) from None
