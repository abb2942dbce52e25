"""Logistic regression on tables: two classes, one logit, linear in the features.

Options: `features`, the number of columns; `bins` of the histograms of logits behind the AUC (4000). Ranks that train
on CPUs do without this module and torch: train/linear/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fedhpc.config import read_section
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.tasks.tables import Batch, StoreDataset, TableModel, binary_loss, binary_sums


class LogisticModel(TableModel):
    """One logit per row; weights start at 0, so that every start is the same."""

    def __init__(self, features: int, bins: int) -> None:
        linear = torch.nn.Linear(features, 1)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        super().__init__(features, linear)
        self.bins = bins


def model(options: dict[str, Any]) -> torch.nn.Module:
    """The model for `options`."""
    read = read_section(LogisticOptions, options, "task.options")
    return LogisticModel(read.features, read.bins)


def dataset(path: Path, options: dict[str, Any]) -> StoreDataset:
    """The site's store at `path`, with labels 0 and 1."""
    return StoreDataset(path, read_section(LogisticOptions, options, "task.options").features, 2)


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross entropy."""
    x, y = batch
    return binary_loss(model(x), y)


def sums(model: LogisticModel, batch: Batch) -> dict[str, torch.Tensor]:
    """n, loss, accuracy, hist_positive, hist_negative, hist_expected."""
    x, y = batch
    return binary_sums(model(x), y, model.bins)
