"""A scale for each element of a statistic, so that a column in large units does not cost a small one its digits.

The sites learn which power of 2^8 the largest value at any site reaches, element by element, by masked sums that hide
how many sites reach it (secure/largest.py). Lanes then hold x · 2^−e, with the public bound 1. Models, and arrays with
many elements, have one scale for a whole tensor instead (scale_choice.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure import labels
from fedhpc.secure.elements import NO_VALUE, exponents_of
from fedhpc.secure.largest import NONE, largest, marks, marks_stream
from fedhpc.secure.ring import Tensor

MOST_ELEMENTS = 4096  # of one call that have a scale each unless it says otherwise
_BIN = 8  # exponents; 64-bit lanes keep 45 bits of the smallest value in a bin for 100 sites, 53 for 3
_BELOW_BOUND = 76  # bins below a public bound: smaller values lose digits only beyond 2^-608 of it
_MOST_CELLS = 1 << 21  # of one sum of marks: 16 MiB


@dataclass(frozen=True)
class ElementScales:
    """What the sums of marks have shown."""

    exponents: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)  # by name, [elements]; 0 where `zero`
    zero: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)  # no site holds anything else: exact
    salt: bytes = field(default=b"", repr=False)  # S of the last of these sums [40]


def with_own_scales(arrays: Mapping[str, NDArray[Any]], bound: float | None, per_element: bool | None) -> list[str]:
    """Names of the float `arrays` whose elements get a scale each, the same at all sites.

    By default, without a bound: the smallest arrays that have MOST_ELEMENTS elements together.
    """
    by_size = sorted((array.size, place, name) for place, (name, array) in enumerate(arrays.items()) if array.size)
    if per_element is False or (per_element is None and bound is not None):
        return []
    total, names = 0, []
    for size, _, name in by_size:
        total += size
        if per_element or total <= MOST_ELEMENTS:
            names.append(name)
    return names


def choose_element_scales(
    session: Session,
    arrays: Mapping[str, NDArray[Any]],
    factor: float,
    purpose: str,
    *,
    bound: float | None = None,
    everyone: bool = False,
) -> ElementScales:
    """An exponent e for each element of float `arrays`, so that |x · factor| ≤ 2^e at every site. By masked sums.

    The values of the site's rank 0 count; they are finite, and within `bound`. `everyone`: as the sum that it is for.
    """
    party, sites = session.party, len(session.sites)
    if not arrays or sites == 1:
        return ElementScales()
    ranges = {name: _Range.of(array.dtype, bound) for name, array in arrays.items()}
    found = {name: np.empty(array.size, dtype=np.int64) for name, array in arrays.items()}
    salt = b""
    for number, part in enumerate(_slices({n: a.size for n, a in arrays.items()}, ranges)):
        what = f"scale {number + 1} of {purpose}" if number else f"scale of {purpose}"
        tensors = [Tensor(n, "int64", (high - low, ranges[n].bins)) for n, (low, high) in part.items()]
        vector = Vector(session.layout(tensors))
        if party.leads:
            hides = party.masked and party.salt_key is not None
            stream = marks_stream(party.salt_key or b"", party.number, what) if hides else None
            lane = 0
            for name, (low, high) in part.items():
                levels = ranges[name].levels(exponents_of(arrays[name].reshape(-1)[low:high], factor))
                vector.fill({name: marks(levels, ranges[name].bins, sites, stream, lane)})
                lane += levels.size * ranges[name].bins
        opened = session.add(vector, session.statistic(what, everyone=everyone, category=labels.CLASS_SCALE))
        assert opened is not None
        salt = opened.salt
        for name, (low, high) in part.items():
            found[name][low:high] = largest(vector.view(name))
    zero = {name: levels == NONE for name, levels in found.items()}
    exponents = {n: np.where(zero[n], 0, ranges[n].tops(levels)).astype(np.int32) for n, levels in found.items()}
    return ElementScales(exponents, zero, salt)


@dataclass(frozen=True)
class _Range:
    """The bins of an array: bin b is for exponents up to highest − 8 · (bins − 1 − b)."""

    highest: int
    bins: int

    @classmethod
    def of(cls, kind: np.dtype[Any], bound: float | None) -> _Range:
        """For all numbers of a float `kind`, or up to a public `bound`."""
        numbers = np.finfo(kind)
        highest = math.frexp(bound)[1] if bound is not None else int(numbers.maxexp)
        smallest = int(numbers.minexp) - int(numbers.nmant)
        bins = max(1, -(-(highest - smallest) // _BIN))
        return cls(highest, min(bins, _BELOW_BOUND) if bound is not None else bins)

    def levels(self, exponents: NDArray[np.int32]) -> NDArray[np.int64]:
        """The bins of `exponents`; smaller ones count as the lowest."""
        level = self.bins - 1 - (self.highest - exponents.astype(np.int64)) // _BIN
        return np.where(exponents == NO_VALUE, NONE, np.maximum(level, 0))

    def tops(self, levels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The largest exponent of each bin."""
        return self.highest - _BIN * (self.bins - 1 - levels)


def _slices(sizes: Mapping[str, int], ranges: Mapping[str, _Range]) -> Iterator[dict[str, tuple[int, int]]]:
    """Elements low..high of arrays by name, so that one sum of marks has at most _MOST_CELLS cells."""
    part: dict[str, tuple[int, int]] = {}
    room = _MOST_CELLS
    for name, size in sizes.items():
        low = 0
        while low < size:
            most = room // ranges[name].bins
            if not most:
                yield part
                part, room = {}, _MOST_CELLS
                continue
            high = min(size, low + most)
            part[name] = (low, high)
            room -= (high - low) * ranges[name].bins
            low = high
    if part:
        yield part
