"""What sums give back to a user, and what they have cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.layout import Vector
from fedhpc.federation.party import Opened
from fedhpc.federation.pipeline import Stages


class SumOptions(TypedDict, total=False):
    """What `Federation.sum` may be told besides `skip`; see there."""

    bound: float | None
    name: str | None
    everyone: bool | None


class MeanOptions(TypedDict, total=False):
    """What `Federation.mean` may be told; see there."""

    weight: float | None
    bound: float | None
    name: str | None


class Sums(dict[str, NDArray[Any]]):
    """Arrays by name, with what the sum cost in precision and who took part."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], quantum: dict[str, float], sites: list[str]) -> None:
        super().__init__(arrays)
        self.quantum = quantum
        """By name: the grid that each site's value was rounded to; 0.0 where the sum is exact."""
        self.sites = sites
        """The sites in the sum."""

    @classmethod
    def of(cls, vector: Vector, opened: Opened, roster: list[str], *, average: bool) -> Sums:
        """From the opened `vector`; `average`: it holds shares 1/N, and an equal mean of who is in the sum is asked."""
        several = len(roster) > 1
        quantum = {t.name: t.quantum if several else 0.0 for t in vector.layout.named}
        again = len(roster) / len(opened.members) if average else 1.0
        sums = {n: v.copy() if again == 1.0 else rescaled(v, again) for n, v in vector.views().items()}
        return cls(sums, quantum, [roster[u - 1] for u in opened.members])


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
    """`array`, integers and bool as float64."""
    return array.astype(np.float64) if array.dtype.kind in "iub" else array
