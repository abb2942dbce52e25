"""What the federation is compared with: each hospital alone, and all rows in one place. The data are public.

The federation's own model, optimiser and number of steps, in one process, so that only the data differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.config import read_section
from fedhpc.data.store import SiteStore
from fedhpc.federation.checkpoint import Tensors
from fedhpc.train.evaluate import auc
from fedhpc.train.held_out import split_rows
from fedhpc.train.linear.logistic_model import (
    BIAS,
    MEAN,
    PARAMETERS,
    SCALE,
    WEIGHT,
    first_tensors,
    logits_of_rows,
    loss_and_gradient,
)
from fedhpc.train.linear.numpy_optimizer import NumpyOptimizer
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.settings import TaskSettings, TrainSettings

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]  # features [n, F], labels [n]


@dataclass(frozen=True)
class Score:
    """A model on the union of all sites' held-out rows; `auc` is None where only one class was held out."""

    accuracy: float
    auc: float | None


@dataclass(frozen=True)
class Split:
    """One split of all hospitals' rows."""

    train: dict[str, Rows]  # by site
    held_out: Rows  # all sites together


def read_split(stores: Mapping[str, Path], held_out: float, split_seed: int) -> Split:
    """The rows that the federation trains on and holds out with this seed."""
    train: dict[str, Rows] = {}
    kept: list[Rows] = []
    for site, path in stores.items():
        with SiteStore.open(path) as store:
            x, y = store.features(), store.labels()
        rows, rest = split_rows(len(y), held_out, split_seed, site, y)
        train[site] = (x[rows], y[rows])
        kept.append((x[rest], y[rest]))
    return Split(train, join_rows(kept))


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Several sites' rows as one table."""
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def fit(rows: Rows, task: TaskSettings, train: TrainSettings, steps: int) -> Tensors:
    """A model trained on `rows` alone, standardised by their own mean and deviation."""
    x, y = rows
    model = first_tensors(read_section(LogisticOptions, task.options, "task.options").features)
    deviation = x.std(axis=0, dtype=np.float64)
    model[MEAN][...] = x.mean(axis=0, dtype=np.float64)
    model[SCALE][...] = np.where(deviation > 0, deviation, 1.0)
    optimizer = NumpyOptimizer({name: model[name] for name in PARAMETERS}, train)
    for _ in range(steps):
        gradient = loss_and_gradient(model, x, y) / len(y)
        optimizer.step({WEIGHT: gradient[:-2].reshape(1, -1), BIAS: gradient[-2:-1]}, train.lr)
    return model


def score(model: Tensors, rows: Rows) -> Score:
    """Accuracy and the exact AUC of `model` on `rows`: every distinct score is a bin of its own."""
    logits = logits_of_rows(model, rows[0])
    positive: NDArray[Any] = rows[1] == 1
    _, bins = np.unique(logits, return_inverse=True)
    counts = [np.bincount(bins[chosen], minlength=int(bins.max()) + 1) for chosen in (positive, ~positive)]
    return Score(float(np.mean((logits > 0) == positive)), auc(*counts))
