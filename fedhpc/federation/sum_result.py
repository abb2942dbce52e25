"""What sums give back to a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.element_scales import ElementScales
from fedhpc.federation.party import Opened
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Tensor


class Sums(dict[str, NDArray[Any]]):
    """Arrays by name, with what the sum cost in precision and who took part."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], quantum: dict[str, Any], sites: list[str]) -> None:
        super().__init__(arrays)
        self.quantum = quantum
        """By name: the grid that each site's value was rounded to, 0 where the sum is exact. A float, or float64 in the
        array's shape where each element has its own."""
        self.sites = sites
        """The sites in the sum."""

    @classmethod
    def of(
        cls,
        vector: Vector,
        opened: Opened,
        roster: list[str],
        own: ElementScales,
        kinds: Mapping[str, str],
        *,
        average: bool,
    ) -> Sums:
        """From the opened `vector`; `average`: it holds shares 1/N, and an equal mean of who is in the sum is asked.

        `own`: the scales of elements, `kinds` of what comes back, by name. Raises DataError for a sum of finite values
        that is beyond its kind.
        """
        again = len(roster) / len(opened.members) if average else 1.0
        sums, quantum = {}, {}
        for tensor in vector.layout.named:
            name = tensor.name
            found = vector.view(name)
            with np.errstate(over="ignore"):
                sums[name] = (found.copy() if again == 1.0 else rescaled(found, again)).astype(kinds[name], copy=False)
            if found.size and not np.isfinite([sums[name].max(), sums[name].min()]).all():
                raise DataError(
                    f"the sum of '{name}' is beyond {kinds[name]}", "sum it in a larger unit, or in float64"
                )
            quantum[name] = _quantum(tensor, own) if len(roster) > 1 else 0.0
        return cls(sums, quantum, [roster[u - 1] for u in opened.members])


def _quantum(tensor: Tensor, own: ElementScales) -> float | NDArray[np.float64]:
    """The grid of a tensor, or that of each element."""
    if tensor.name not in own.exponents:
        return tensor.quantum
    steps = np.ldexp(1.0, own.exponents[tensor.name] - tensor.scale)
    each = np.where(own.zero[tensor.name], 0.0, steps).reshape(tensor.shape)
    return each if each.shape else float(each)


def rescaled(values: NDArray[Any], factor: float) -> NDArray[Any]:
    """`values` · `factor` in float64, rounded once to their own kind: a mean over those who are in the sum."""
    return np.asarray(values.astype(np.float64) * factor).astype(values.dtype)


def as_float(array: NDArray[Any]) -> NDArray[Any]:
    """`array`, integers and bool as float64."""
    return array.astype(np.float64) if array.dtype.kind in "iub" else array
