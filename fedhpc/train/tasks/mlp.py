"""A multi-layer perceptron on tables: one logit for two classes, or one per class.

Options: `features`, the number of columns; `hidden` widths ([64, 64]); `classes` (2); `dropout` (0); `bins` of the
histograms of logits behind the AUC (4000; two classes only).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from fedhpc.config import read_section
from fedhpc.errors import ConfigError
from fedhpc.train.tasks.tables import Batch, StoreDataset, TableModel, binary_loss, binary_sums, class_sums


@dataclass(frozen=True)
class _Options:
    features: int
    hidden: tuple[int, ...] = (64, 64)
    classes: int = 2
    dropout: float = 0.0
    bins: int = 4000

    def __post_init__(self) -> None:
        if min(self.features, *self.hidden) < 1 or min(self.classes, self.bins) < 2:
            raise ConfigError("task.options: sizes must be 1 or more, classes and bins 2 or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"task.options.dropout = {self.dropout} must be at least 0 and less than 1")


class MlpModel(TableModel):
    """Linear, ReLU and dropout for every hidden width, then one linear layer: logits [m, 1 or classes]."""

    def __init__(self, options: _Options) -> None:
        layers: list[torch.nn.Module] = []
        for inputs, outputs in itertools.pairwise((options.features, *options.hidden)):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
            if options.dropout:
                layers.append(torch.nn.Dropout(options.dropout))
        last = options.hidden[-1] if options.hidden else options.features
        layers.append(torch.nn.Linear(last, 1 if options.classes == 2 else options.classes))
        super().__init__(options.features, torch.nn.Sequential(*layers))
        self.bins = options.bins


def model(options: dict[str, Any]) -> torch.nn.Module:
    """The model for `options`."""
    return MlpModel(read_section(_Options, options, "task.options"))


def dataset(path: Path, options: dict[str, Any]) -> StoreDataset:
    """The site's store at `path`, with labels 0..classes-1."""
    read = read_section(_Options, options, "task.options")
    return StoreDataset(path, read.features, read.classes)


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross entropy."""
    x, y = batch
    logits = model(x)
    return binary_loss(logits, y) if logits.shape[1] == 1 else functional.cross_entropy(logits.float(), y)


def sums(model: MlpModel, batch: Batch) -> dict[str, torch.Tensor]:
    """n, loss, accuracy; for two classes also hist_positive, hist_negative, hist_expected."""
    x, y = batch
    logits = model(x)
    return binary_sums(logits, y, model.bins) if logits.shape[1] == 1 else class_sums(logits, y)
