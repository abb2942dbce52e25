"""A small convolutional network on square images, for example 8 x 8 digits from a site's store.

Options: `classes` (10); `side` of an image in pixels (8); `planes`, 1 for grey and 3 for colour (1); `channels` of
the convolutions ([16, 32]); `dropout` before the last layer (0).
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
from fedhpc.train.tasks.tables import Batch, StoreDataset, class_sums


@dataclass(frozen=True)
class _Options:
    classes: int = 10
    side: int = 8
    planes: int = 1
    channels: tuple[int, ...] = (16, 32)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.side, self.planes, *self.channels) < 1 or not self.channels or self.classes < 2:
            raise ConfigError("task.options: sizes must be 1 or more, channels not empty, classes 2 or more")
        if self.side >> len(self.channels) < 1:
            raise ConfigError(
                f"task.options.channels halves an image of {self.side} pixels {len(self.channels)} times",
                "use fewer channels or larger images",
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"task.options.dropout = {self.dropout} must be at least 0 and less than 1")


class CnnModel(torch.nn.Module):
    """A 3 x 3 convolution, ReLU and halving for each of `channels`, then one linear layer."""

    def __init__(self, options: _Options) -> None:
        super().__init__()
        self.shape = (options.planes, options.side, options.side)
        layers: list[torch.nn.Module] = []
        for inputs, outputs in itertools.pairwise((options.planes, *options.channels)):
            layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        side = options.side >> len(options.channels)
        layers += [torch.nn.Flatten(), torch.nn.Dropout(options.dropout)]
        layers.append(torch.nn.Linear(options.channels[-1] * side * side, options.classes))
        self.network = torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [m, classes] of x [m, planes, side, side], or the same numbers in any shape [m, ...]."""
        return self.network(x.reshape(x.shape[0], *self.shape))  # type: ignore[no-any-return]


def model(options: dict[str, Any]) -> torch.nn.Module:
    """The model for `options`."""
    return CnnModel(read_section(_Options, options, "task.options"))


def dataset(path: Path, options: dict[str, Any]) -> StoreDataset:
    """The site's store at `path`: images as features, labels 0..classes-1."""
    read = read_section(_Options, options, "task.options")
    return StoreDataset(path, read.planes * read.side * read.side, read.classes)


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross entropy."""
    x, y = batch
    return functional.cross_entropy(model(x).float(), y)


def sums(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """n, loss, accuracy."""
    x, y = batch
    return class_sums(model(x), y)
