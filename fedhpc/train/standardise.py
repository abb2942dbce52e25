"""The federation's mean and deviation of every feature, by two masked sums, set in every site's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.errors import ConfigError, DataError
from fedhpc.mpi.collectives import Group
from fedhpc.train.batches import share
from fedhpc.train.loading import fetch
from fedhpc.train.state import add_over_ranks
from fedhpc.train.trainer import TorchTrainer

SLICE_ROWS = 4096  # rows in memory at a time

Sums = Mapping[str, NDArray[Any]]


def standardise(sum_function: Callable[..., Sums], trainer: TorchTrainer) -> None:
    """Set the buffers feature_mean and feature_scale of `trainer.model` to the federation's mean and deviation.

    `sum_function(arrays, name=…)` adds `arrays` over all sites. It is called twice, on every rank, with equal
    arrays on all ranks of a site: `n` int64 [] and `sum` float64 [*shape], then `squares` float64 [*shape], the
    sum of (x - mean)^2. Both cover the training rows only; what is held out stays unseen.

    A feature that does not vary gets the scale 1. So does one whose deviation is below a millionth of its mean:
    float32 holds no more digits, and the sums are rounded. Raises ConfigError for a model without the two buffers,
    DataError, on every rank of the site, for features that are not finite.
    """
    buffers = dict(trainer.model.named_buffers())
    try:
        mean_buffer, scale_buffer = buffers["feature_mean"], buffers["feature_scale"]
    except KeyError as missing:
        raise ConfigError(
            f"task.standardise is set, and the model has no buffer {missing}",
            "register feature_mean and feature_scale in the model and use them in forward(), or set it to false",
        ) from None
    shape = tuple(mean_buffer.shape)

    local = np.zeros(shape)
    for x in _slices(trainer, shape):
        local += x.sum(axis=0)
    local = _over_site(trainer, local)
    n = np.array(trainer.train_rows.size, dtype=np.int64)
    total = sum_function({"n": n, "sum": local}, name="standardise.mean")
    rows = int(np.asarray(total["n"]).item())
    mean = np.asarray(total["sum"], dtype=np.float64).reshape(shape) / rows

    squares = np.zeros(shape)
    for x in _slices(trainer, shape):
        squares += ((x - mean) ** 2).sum(axis=0)
    squares = _over_site(trainer, squares)
    total = sum_function({"squares": squares}, name="standardise.variance")
    deviation = np.sqrt(np.maximum(np.asarray(total["squares"], dtype=np.float64).reshape(shape), 0.0) / rows)
    scale = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1.0)
    with torch.no_grad():
        mean_buffer.copy_(torch.from_numpy(mean))
        scale_buffer.copy_(torch.from_numpy(scale))


def _slices(trainer: TorchTrainer, shape: tuple[int, ...]) -> Iterator[NDArray[np.float64]]:
    """This rank's share of the site's training rows, a slice at a time: float64 [m, *shape]."""
    mine = share(trainer.train_rows, trainer.group.rank, trainer.group.size)
    for start in range(0, mine.size, SLICE_ROWS):
        x = np.asarray(fetch(trainer.dataset, mine[start : start + SLICE_ROWS])[0], dtype=np.float64)
        if x.shape[1:] != shape:
            raise DataError(
                f"site {trainer.site}: a row has the shape {list(x.shape[1:])}, and feature_mean {list(shape)}",
                "check task.options",
            )
        yield x


def _over_site(trainer: TorchTrainer, local: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of `local` over the ranks of the site, checked on all of them."""
    group: Group = trainer.group
    whole = add_over_ranks(group, {"sum": local})["sum"]
    wrong = int((~np.isfinite(whole)).sum())
    if wrong:
        raise DataError(
            f"site {trainer.site}: {wrong} of {whole.size} features hold values that are not finite",
            "fill or drop missing values before ingesting them",
        )
    return whole
