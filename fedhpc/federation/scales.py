"""The arithmetic of one scale for a whole tensor: marks of exponents, and the power of two that their sum gives.

scale_choice.py asks the other sites with it; element_scales.py gives each element a scale of its own.

Where no bound is agreed, each site marks the exponent of its largest absolute value, and the marks are summed under
masks. The sites learn a small histogram of exponents and take the scale of the largest, so that every value fits its
lane.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.mpi.collectives import Group
from fedhpc.secure.ring import scale_for_exponent

# Bins by kind: exponents lowest..highest; values below 2^lowest count as lowest. A float64 statistic may be anything,
# a float32 model update beyond 2^63 has diverged.
_RANGES = {"float32": (-64, 63), "float64": (-512, 1024)}


@dataclass(frozen=True)
class Scales:
    """The scales of one vector, and the sum that they were chosen from."""

    by_name: Mapping[str, int] = field(default_factory=dict)
    salt: bytes = field(default=b"", repr=False)  # S of the sum that they were chosen from [40]; empty: all may
    lost: Sequence[str] = ()  # at the leader: whose values here are not zero, and are all rounded to zero
    exponents: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)  # of tensors whose elements have their own


PUBLIC = Scales()


@dataclass(frozen=True)
class Largest:
    """The largest absolute value of a tensor; NaN or infinity where one is among them."""

    value: float
    dtype: np.dtype[Any]


def largest_values(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Largest]:
    """Of each array, 0 of an empty one."""
    return {
        name: Largest(max(float(array.max()), -float(array.min())) if array.size else 0.0, array.dtype)
        for name, array in arrays.items()
    }


def largest_of_site(site: Group, pieces: Mapping[str, NDArray[Any]]) -> dict[str, Largest]:
    """Of tensors of which each rank of the site holds `pieces`, on every rank. Collective."""
    found = largest_values(pieces)
    mine = np.array([each.value for each in found.values()])
    values = np.stack([np.frombuffer(m, np.float64) for m in site.gather_bytes(mine.tobytes())]).max(axis=0)
    return {n: Largest(float(value), each.dtype) for (n, each), value in zip(found.items(), values, strict=True)}


def exponent_counts(tensors: Mapping[str, Largest], factor: float, site: str) -> dict[str, NDArray[np.int64]]:
    """By name: int64 [bins] with a 1 at the exponent e of the largest |x · factor| ≤ 2^e.

    Raises DataError that names tensor and site for NaN, infinity or a value beyond the bins.
    """
    counts = {}
    for name, each in tensors.items():
        lowest, highest = _RANGES[each.dtype.name]
        largest = _finite(name, each, site)
        exponent = math.frexp(largest * factor)[1] if largest * factor else lowest
        if exponent > highest:
            raise DataError(
                f"tensor '{name}' of site {site} holds a value beyond 2^{highest}",
                "has the training diverged? Give statistics as float64, or use per_element=True",
            )
        marks = np.zeros(highest - lowest + 1, dtype=np.int64)
        marks[max(exponent, lowest) - lowest] = 1
        counts[name] = marks
    return counts


def refuse_beyond(tensors: Mapping[str, Largest], bound: float, site: str) -> None:
    """Raise DataError that names tensor and site for NaN, infinity or an absolute value above the agreed `bound`.

    The grid alone would let values pass up to the next power of two.
    """
    for name, each in tensors.items():
        if _finite(name, each, site) > float(each.dtype.type(bound)):
            raise DataError(
                f"tensor '{name}' of site {site} holds a value beyond the bound {bound:g}",
                "values are never clipped in silence: raise the bound, or leave it out to have the scale chosen",
            )


def refuse_not_finite(tensors: Mapping[str, Largest], site: str) -> None:
    """Raise DataError that names tensor and site for NaN or infinity."""
    for name, each in tensors.items():
        _finite(name, each, site)


def _finite(name: str, largest: Largest, site: str) -> float:
    """The value of `largest`. DataError if it is none."""
    if not math.isfinite(largest.value):
        what = "NaN" if math.isnan(largest.value) else "infinity"
        raise DataError(
            f"tensor '{name}' of site {site} holds {what}",
            "nothing was sent; look for a diverging loss or missing values in the data",
        )
    return largest.value


def exponent_scales(totals: Mapping[str, NDArray[Any]], bits: Mapping[str, int], sites: int) -> dict[str, int]:
    """By name: the scale for the largest exponent that a site in the sum has marked.

    `totals` as summed, checked (scale_choice.py); `bits` of each lane; `sites` of the roster, for all of which a lane
    has room.
    """
    scales = {}
    for name, counts in totals.items():
        lowest = _RANGES[f"float{bits[name]}"][0]
        scales[name] = scale_for_exponent(int(np.flatnonzero(counts)[-1]) + lowest, bits[name], sites)
    return scales


def lost_to_rounding(
    marks: Mapping[str, NDArray[Any]], scales: Mapping[str, int], bits: Mapping[str, int]
) -> list[str]:
    """The names of a site's arrays that are not zero and of which every value is rounded to 0 at the chosen scale.

    `marks` as `exponent_counts` gave them: what is in the lowest bin counts as zero.
    """
    exponents = {n: int(np.flatnonzero(m)[0]) + _RANGES[f"float{bits[n]}"][0] for n, m in marks.items()}
    return [n for n, e in exponents.items() if not marks[n][0] and e + scales[n] < 0]
