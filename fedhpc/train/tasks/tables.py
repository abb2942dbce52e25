"""What the built-in tasks share: rows of a site's store as tensors, and standardising inside the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedhpc.errors import DataError
from fedhpc.train.batches import Rows
from fedhpc.train.class_rows import ClassRows
from fedhpc.train.evaluate import EXPECTED, NEGATIVE, POSITIVE
from fedhpc.train.score_bins import bin_count, bin_of

Batch = tuple[torch.Tensor, torch.Tensor]


class StoreDataset(torch.utils.data.Dataset[Batch]):
    """Rows of a SiteStore: x float32 [*shape], y int64, a class from 0 to classes - 1."""

    def __init__(self, path: Path, features: int, classes: int) -> None:
        """Raises what ClassRows raises."""
        self._rows = ClassRows(path, features, classes)
        self.store = self._rows.store

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Batch:
        x, y = self.rows(np.array([row], dtype=np.int64))
        return x[0], y[0]

    def rows(self, rows: NDArray[np.int64]) -> Batch:
        """A batch at once: x float32 [m, *shape], y int64 [m]."""
        x, y = self._rows.rows(rows)
        return torch.from_numpy(x), torch.from_numpy(y)

    def read_ahead(self, plan: Sequence[Rows]) -> Iterator[Batch]:
        """The batch of each of `plan`, in order; of a large store many of them are read at once."""
        for x, y in self._rows.read_ahead(plan):
            yield torch.from_numpy(x), torch.from_numpy(y)

    def labels(self) -> NDArray[np.int64]:
        """The label of every row, int64 [n]."""
        return self._rows.labels


class TableModel(torch.nn.Module):
    """A network on rows [m, features] that standardises its own input, so that the model is complete by itself.

    `feature_mean` and `feature_scale` [features] are floating buffers: shared state, the same at every site.
    """

    feature_mean: torch.Tensor
    feature_scale: torch.Tensor

    def __init__(self, features: int, network: torch.nn.Module) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [m, outputs] of x [m, features]."""
        return self.network((x - self.feature_mean) / self.feature_scale)  # type: ignore[no-any-return]


def binary_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of logits [m, 1] and classes y [m] of 0 and 1."""
    return functional.binary_cross_entropy_with_logits(logits[:, 0].float(), y.float())


def binary_sums(logits: torch.Tensor, y: torch.Tensor, bins: int) -> dict[str, torch.Tensor]:
    """n, loss, accuracy and the histograms of the scores, from logits [m, 1] and classes y [m] of 0 and 1.

    The histograms count logits in `bins` fixed and public bins (score_bins; one more where `bins` is even). Raises
    DataError for logits that are not finite, and for other classes: 1 and 2 would be 1 and no 1.
    """
    if not bool(((y == 0) | (y == 1)).all()):
        raise DataError("a held-out row has a class other than 0 and 1", "count classes from 0")
    logit, y = logits[:, 0].double(), y.long()
    if not bool(torch.isfinite(logit).all()):
        raise DataError("the model's score of a held-out row is not a finite number", "look for such features")
    at = torch.from_numpy(bin_of(logit.detach().cpu().numpy(), bins))
    positive = (y == 1).cpu()
    return {
        "n": torch.tensor(y.numel()),
        "loss": functional.binary_cross_entropy_with_logits(logit, y.double(), reduction="sum"),
        "accuracy": ((logit > 0) == (y == 1)).sum(),
        POSITIVE: torch.bincount(at[positive], minlength=bin_count(bins)),
        NEGATIVE: torch.bincount(at[~positive], minlength=bin_count(bins)),
        EXPECTED: torch.sigmoid(logit).sum(),
    }


def class_sums(logits: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """n, loss and accuracy from logits [m, classes] and classes y [m]."""
    return {
        "n": torch.tensor(y.numel()),
        "loss": functional.cross_entropy(logits.double(), y.long(), reduction="sum"),
        "accuracy": (logits.argmax(dim=1) == y).sum(),
    }
