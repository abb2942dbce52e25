"""Rows of a site's store with a class for each: checked once, and read as NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.data.store import SiteStore
from fedhpc.errors import DataError
from fedhpc.train.batches import Rows

XY = tuple[NDArray[np.float32], NDArray[np.int64]]


class ClassRows:
    """x float32 [m, *shape] and y int64 [m], a class from 0 to classes - 1."""

    def __init__(self, path: Path, features: int, classes: int) -> None:
        """Raises DataError if a row does not hold `features` numbers, or a label is not one of `classes`."""
        self.store: Any = SiteStore.open(path)
        site = self.store.site
        labels = np.asarray(self.store.labels())
        self.labels: NDArray[np.int64] = labels.astype(np.int64)
        """Of every row, int64 [n]."""
        wrong = (self.labels != labels) | (self.labels < 0) | (self.labels >= classes)
        if wrong.any():
            raise DataError(
                f"site {site}: {int(wrong.sum())} rows have a label outside 0..{classes - 1}",
                "task.options.classes is the number of classes; labels count from 0",
            )
        width = math.prod(self.store.feature_set.row_shape)
        if width != features:
            raise DataError(
                f"site {site}: a row holds {width} features, and the task expects {features}",
                "task.options and the site's store must agree",
            )

    def __len__(self) -> int:
        return int(self.labels.size)

    def rows(self, rows: Rows) -> XY:
        """A batch at once, `rows` int64 [m]."""
        return self.store.features(rows), self.labels[rows]

    def read_ahead(self, plan: Sequence[Rows]) -> Iterator[XY]:
        """The batch of each of `plan`, in order; of a large store many of them are read at once."""
        for rows, x in zip(plan, self.store.features_in_turn(plan), strict=True):
            yield x, self.labels[rows]
