"""What the federation is compared with: each hospital alone, and all rows in one place. The data are public.

Plain PyTorch with the federation's own model, optimiser and number of steps, so that only the data differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.data.store import SiteStore
from fedhpc.train.evaluate import auc
from fedhpc.train.held_out import split_rows
from fedhpc.train.settings import TaskSettings, TrainSettings
from fedhpc.train.tasks import logistic

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


def fit(rows: Rows, task: TaskSettings, train: TrainSettings, steps: int) -> torch.nn.Module:
    """A model trained on `rows` alone, standardised by their own mean and deviation."""
    x, y = torch.from_numpy(rows[0]), torch.from_numpy(rows[1])
    model = logistic.model(task.options)
    scale = x.double().std(0, correction=0)
    with torch.no_grad():
        model.get_buffer("feature_mean").copy_(x.double().mean(0))
        model.get_buffer("feature_scale").copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay
    )
    for _ in range(steps):
        optimizer.zero_grad()
        logistic.loss(model, (x, y)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def score(model: torch.nn.Module, rows: Rows) -> Score:
    """Accuracy and the exact AUC of `model` on `rows`: every distinct score is a bin of its own."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(rows[0])).reshape(-1).numpy()
    positive: NDArray[Any] = rows[1] == 1
    _, bins = np.unique(logits, return_inverse=True)
    counts = [np.bincount(bins[chosen], minlength=int(bins.max()) + 1) for chosen in (positive, ~positive)]
    return Score(float(np.mean((logits > 0) == positive)), auc(*counts))
