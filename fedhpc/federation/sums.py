"""What sums give back to a user, and what they have cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.party import Opened
from fedhpc.federation.pipeline import Stages


class Sums(dict[str, NDArray[Any]]):
    """Arrays by name, with what the sum cost in precision and who took part."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], quantum: dict[str, float], sites: list[str]) -> None:
        super().__init__(arrays)
        self.quantum = quantum
        """By name: the grid that each site's value was rounded to; 0.0 where the sum is exact."""
        self.sites = sites
        """The sites in the sum."""


@dataclass
class Spent:
    """What sums have cost since the last `take`: seconds by stage, bytes of this site."""

    stages: Stages = field(default_factory=Stages)
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, opened: Opened) -> None:
        """Count one sum."""
        for stage, seconds in vars(opened.stages).items():
            setattr(self.stages, stage, getattr(self.stages, stage) + seconds)
        self.bytes_up += opened.bytes_up
        self.bytes_down += opened.bytes_down


def rescaled(values: NDArray[Any], factor: float) -> NDArray[Any]:
    """`values` · `factor` in float64, rounded once to their own kind: a mean over those who are in the sum."""
    return np.asarray(values.astype(np.float64) * factor).astype(values.dtype)


def as_float(array: NDArray[Any]) -> NDArray[Any]:
    """Integers and truth values as float64; floats as they are."""
    return array.astype(np.float64) if array.dtype.kind in "iub" else array
