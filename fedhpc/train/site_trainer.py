"""What both trainers of a site offer beside the main loop's interface: its rows, and how its features are scaled."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fedhpc.data.schema import FeatureSet
from fedhpc.federation.checkpoint import Tensors
from fedhpc.mpi.collectives import Group
from fedhpc.rounds.interfaces import Trainer
from fedhpc.train.batches import Rows

Floats = NDArray[np.float64]


class Scaling(Protocol):
    """The tensors feature_mean and feature_scale of a model."""

    shape: tuple[int, ...]
    kind: str
    """Their dtype, as people read it."""
    largest: float
    """The largest number that they hold."""

    def as_held(self, values: Floats) -> Floats:
        """`values` as the tensors hold them, in their dtype."""
        ...

    def set(self, mean: Floats, scale: Floats) -> None:
        """Replace both."""
        ...


class SiteTrainer(Trainer, Protocol):
    """One site's local training. Every rank of the site makes every call; close it, or use it as a context."""

    site: str
    group: Group
    train_rows: Rows
    held_out_rows: Rows
    features: FeatureSet | None
    """What the columns of the site's store mean, where it has such a list."""

    def scaling(self) -> Scaling:
        """Raises ConfigError if the model does not standardise its features."""
        ...

    def inputs(self, rows: Rows) -> Floats:
        """The features of `rows` [m], float64 [m, *shape], the caller's own."""
        ...

    def measure_test(self) -> Tensors:
        """As `measure`, over the site's test rows; {} where the federation has none."""
        ...

    def close(self) -> None:
        """End what the trainer has started."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
