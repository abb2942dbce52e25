"""The federation's mean and deviation of every feature, by two masked sums, set in every site's model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.mpi.collectives import Group
from fedhpc.train.batches import share
from fedhpc.train.over_ranks import add_over_ranks
from fedhpc.train.site_trainer import SiteTrainer

SLICE_VALUES = 1 << 21  # in memory at a time
_MOST_ROWS = 2.0**40  # of a site; public
_MOST_NAMES = 5
_LEAST_SQUARE = 2.0**-1022  # of what differs at all: a square that is 0 for float64 is not that of a constant
_FEW_DIGITS = 2.0**-900  # below, squares are near the smallest numbers of float64, and lose digits

Sums = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

_log = logging.getLogger("fedhpc.train")


def standardise(sum_function: Callable[..., Sums], trainer: SiteTrainer) -> None:
    """Set the buffers feature_mean and feature_scale of the model of `trainer` to the federation's mean and deviation.

    `sum_function(arrays, name=…, bound=…, per_element=True)` adds `arrays` over all sites, each element on a grid of
    its own. It is called twice, on every rank, with equal arrays on all ranks of a site: `n` int64 [] and `sum` float64
    [*shape]; then, with c the mean as the model's buffer holds it, `shift` and `squares` float64 [*shape], the sums of
    x - c and of (x - c)^2. Both cover the training rows only; what is held out stays unseen.

    A feature gets the scale 1 if no row of any site differs from c, or by no more than the rounding of float64. Where
    the buffer holds the mean more coarsely than the feature varies, a warning names it, and its values are kept
    within 1 of 0. Raises ConfigError for a model without the two buffers; DataError, on every rank of the site, for
    features that are not finite, and on every rank of all sites where a deviation cannot be told from 0.
    """
    scaling = trainer.scaling()
    shape = scaling.shape
    # The sums of numbers that the buffer can hold, so that fewer powers of two need be asked about.
    largest = scaling.largest
    bounds = [b if b < 1e300 else None for b in (largest * _MOST_ROWS, largest * largest * 4 * _MOST_ROWS)]

    local = np.zeros(shape)
    for x in _slices(trainer, shape):
        local += x.sum(axis=0)
    (local,) = _over_site(trainer, bounds[0], local)
    n = np.array(trainer.train_rows.size, dtype=np.int64)
    total = sum_function({"n": n, "sum": local}, name="standardise.mean", bound=bounds[0], per_element=True)
    rows = int(np.asarray(total["n"]).item())
    mean = _floats(total["sum"], shape) / rows

    centre = scaling.as_held(mean)
    _refuse(trainer, ~np.isfinite(centre), f"the mean is beyond {scaling.kind}", "a larger")
    shift, squares = np.zeros(shape), np.zeros(shape)
    for x in _slices(trainer, shape):
        x -= centre
        shift += x.sum(axis=0)
        differs = x.any(axis=0)
        with np.errstate(over="ignore"):  # then it is not finite, and refused
            squares += np.maximum(np.square(x, out=x).sum(axis=0), np.where(differs, _LEAST_SQUARE, 0.0))
    shift, squares = _over_site(trainer, bounds[1], shift, squares)
    arrays = {"shift": shift, "squares": squares}
    total = sum_function(arrays, name="standardise.variance", bound=bounds[1], per_element=True)
    offset = _floats(total["shift"], shape) / rows
    square = _floats(total["squares"], shape) / rows
    quantum = np.broadcast_to(getattr(total, "quantum", {}).get("squares", 0.0), shape)
    lost = np.where(square == 0, quantum > 0, square < _FEW_DIGITS)  # of what varies, and so is not a constant
    _refuse(trainer, lost, "the deviation is too small to be told from 0", "a smaller")
    variance = square - offset**2
    # A constant that the buffer cannot hold is as far from c in all rows; the rest is the rounding of these sums.
    varies = variance > (rows + 4) * 2.0**-52 * square
    deviation = np.sqrt(np.where(varies, variance, 0.0))
    mean = centre + offset
    apart = np.abs(mean - scaling.as_held(mean))
    coarse = varies & (apart > deviation)
    if coarse.any() and trainer.group.rank == 0:
        _log.warning(
            "%s: the deviation is smaller than what %s holds of the mean; subtract a constant from such features",
            _names(trainer, coarse), scaling.kind,
        )  # fmt: skip
    scale = np.where(varies, np.maximum(deviation, np.where(coarse, apart, 0.0)), np.maximum(1.0, apart))
    scaling.set(mean, scale)


def _slices(trainer: SiteTrainer, shape: tuple[int, ...]) -> Iterator[Floats]:
    """This rank's share of the site's training rows, a slice at a time: float64 [m, *shape], the caller's own."""
    mine = share(trainer.train_rows, trainer.group.rank, trainer.group.size)
    step = max(1, SLICE_VALUES // max(1, math.prod(shape)))
    for start in range(0, mine.size, step):
        x = trainer.inputs(mine[start : start + step])
        if x.shape[1:] != shape:
            raise DataError(
                f"site {trainer.site}: a row has the shape {list(x.shape[1:])}, and feature_mean {list(shape)}",
                "check task.options",
            )
        yield x


def _over_site(trainer: SiteTrainer, bound: float | None, *local: Floats) -> list[Floats]:
    """The sums of `local` over the ranks of the site, checked on all of them."""
    group: Group = trainer.group
    whole = add_over_ranks(group, {str(i): array for i, array in enumerate(local)})
    sums = [whole[str(i)] for i in range(len(local))]
    wrong = np.zeros(local[0].shape, dtype=bool)
    for array in sums:
        wrong |= ~np.isfinite(array) if bound is None else ~(np.abs(array) <= bound)
    if wrong.any():
        raise DataError(
            f"site {trainer.site}: {int(wrong.sum())} of {wrong.size} features hold values that are not finite, or too "
            "large for the model's buffers",
            "fill or drop missing values before ingesting them",
        )
    return sums


def _refuse(trainer: SiteTrainer, which: NDArray[np.bool_], why: str, unit: str) -> None:
    """DataError for features, told by the sums of all sites, so at all of them."""
    if which.any():
        raise DataError(f"{_names(trainer, which)}: {why}", f"give such features in {unit} unit")


def _floats(array: NDArray[Any], shape: tuple[int, ...]) -> Floats:
    return np.asarray(array, dtype=np.float64).reshape(shape)


def _names(trainer: SiteTrainer, which: NDArray[np.bool_]) -> str:
    """For people: the features that are meant, by name where the site's store knows them."""
    features = () if trainer.features is None else trainer.features.names
    places = np.flatnonzero(which)
    known = len(features) == which.size
    shown = [f"'{features[i]}'" if known else str(i) for i in places[:_MOST_NAMES]]
    more = f" and {places.size - _MOST_NAMES} more" if places.size > _MOST_NAMES else ""
    return f"feature{'s' if places.size > 1 else ''} {', '.join(shown)}{more}"
