"""Logistic regression in NumPy: its tensors, the gradient of its loss, and its sums over held-out rows.

The tensors have the names, shapes and order of the torch model of the same task (tasks/logistic.py). They are float32,
and all arithmetic on them is float64. No BLAS: its threads would compete with the other ranks of the node, and what
order it adds in depends on their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.train.evaluate import EXPECTED, NEGATIVE, POSITIVE
from fedhpc.train.score_bins import bin_count, bin_of

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]

WEIGHT, BIAS = "network.weight", "network.bias"
PARAMETERS = (WEIGHT, BIAS)
MEAN, SCALE = "feature_mean", "feature_scale"
BUFFERS = (MEAN, SCALE)
SLICE_VALUES = 1 << 16  # of features, in float64 at a time: half of a core's L2 cache


def first_tensors(features: int, kind: type[np.floating[Any]] = np.float32) -> Arrays:
    """The model that every federation begins from: zeros, in the order of the torch model's state_dict."""
    return {
        MEAN: np.zeros(features, kind),
        SCALE: np.ones(features, kind),
        WEIGHT: np.zeros((1, features), kind),
        BIAS: np.zeros(1, kind),
    }


def loss_and_gradient(tensors: Mapping[str, NDArray[Any]], x: NDArray[Any], y: NDArray[np.int64]) -> Floats:
    """Sums over rows x [m, features] of classes y [m] (0 or 1): gradient of weight and bias, and the loss.

    float64 [features + 2]; of no rows, zeros.
    """
    total = np.zeros(tensors[MEAN].size + 2)
    for z, logits, part in _slices(tensors, x):
        labels = y[part]
        residual = probability(logits) - labels
        total[:-2] += np.einsum("ij,i->j", z, residual)
        total[-2] += residual.sum()
        total[-1] += _losses(logits, labels).sum()
    return total


def logits_of_rows(tensors: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> Floats:
    """Logits [m] of rows x [m, features]."""
    return np.concatenate([np.zeros(0), *(logits for _, logits, _ in _slices(tensors, x))])


def held_out_sums(tensors: Mapping[str, NDArray[Any]], x: NDArray[Any], y: NDArray[np.int64], bins: int) -> Arrays:
    """n, loss, accuracy, hist_positive, hist_negative, hist_expected over rows, as tables.binary_sums of torch.

    Counts int64 and sums float64. Raises DataError for logits that are not finite.
    """
    logits = logits_of_rows(tensors, x)
    if not np.isfinite(logits).all():
        raise DataError("the model's score of a held-out row is not a finite number", "look for such features")
    at, positive = bin_of(logits, bins), y == 1
    count = bin_count(bins)
    return {
        "n": np.array(y.size, np.int64),
        "loss": np.array(_losses(logits, y).sum()),
        "accuracy": np.array(((logits > 0) == positive).sum(), np.int64),
        POSITIVE: np.bincount(at[positive], minlength=count).astype(np.int64),
        NEGATIVE: np.bincount(at[~positive], minlength=count).astype(np.int64),
        EXPECTED: np.array(probability(logits).sum()),
    }


def probability(logits: Floats) -> Floats:
    """The logistic function, to the last digits of its own size at both ends."""
    result: Floats = np.exp(-np.logaddexp(0.0, -logits))
    return result


def _losses(logits: Floats, y: NDArray[np.int64]) -> Floats:
    """The cross entropy of each row [m]."""
    result: Floats = np.logaddexp(0.0, np.where(y == 1, -logits, logits))
    return result


def _slices(tensors: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> Iterator[tuple[Floats, Floats, slice]]:
    """(standardised rows [k, features], logits [k], which rows), a few rows at a time."""
    mean, scale = (tensors[name].astype(np.float64) for name in BUFFERS)
    weight, bias = tensors[WEIGHT].reshape(-1).astype(np.float64), float(tensors[BIAS][0])
    step = max(1, SLICE_VALUES // max(1, mean.size))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        # A model that diverged shows in its loss, which is checked: no warnings of each operation.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            z = (x[part].astype(np.float64) - mean) / scale
            yield z, np.einsum("ij,j->i", z, weight) + bias, part
