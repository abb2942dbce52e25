"""Whether predicted probabilities are as high as the outcomes are frequent, from counts of logits by class.

Two standard measures (Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7): observed over expected outcomes, and
Cox's logistic recalibration: intercept a and slope b of log odds = a + b · logit. Right are 1, 0 and 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.train.score_bins import logits_of

_MOST_STEPS = 100
_Floats = NDArray[np.float64]


def calibration(positive: NDArray[Any], negative: NDArray[Any], expected: float) -> dict[str, float | None]:
    """`calibration_ratio`, `calibration_intercept` and `calibration_slope`.

    `positive` and `negative` are counts in the bins of score_bins; `expected` is the sum of the predicted
    probabilities. The ratio is exact; the other two take a row for the middle of its bin. None where the rows do not
    determine it: no rows, classes that the score separates, one score for all, logits beyond the last edge.
    """
    observed = float(np.sum(positive))
    fit = recalibration(positive, negative)
    return {
        "calibration_ratio": observed / expected if expected > 0 else None,
        "calibration_intercept": None if fit is None else fit[0],
        "calibration_slope": None if fit is None else fit[1],
    }


def recalibration(positive: NDArray[Any], negative: NDArray[Any]) -> tuple[float, float] | None:
    """Intercept and slope of greatest likelihood, by Newton's method; None where they are not finite or not unique."""
    used = np.flatnonzero(np.asarray(positive) + np.asarray(negative))
    p, q = (np.asarray(c, dtype=np.float64)[used] for c in (positive, negative))
    x = logits_of(len(positive))[used]
    if not np.isfinite(x).all() or _separated(p > 0, q > 0):
        return None
    n = p + q
    mean = float(np.average(x, weights=n))
    deviation = float(np.sqrt(np.average((x - mean) ** 2, weights=n)))
    z = (x - mean) / deviation
    found = _newton(z, p, n)
    if found is None:
        return None
    slope = float(found[1]) / deviation
    return float(found[0]) - slope * mean, slope


def _separated(positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> bool:
    """Whether a threshold parts the classes, but for rows at the threshold itself; also where a class has no rows."""
    pos, neg = np.flatnonzero(positive), np.flatnonzero(negative)
    return not (pos.size and neg.size) or bool(neg[-1] <= pos[0] or pos[-1] <= neg[0])


def _newton(z: _Floats, p: _Floats, n: _Floats) -> _Floats | None:
    """The [2] parameters that minimise the logistic loss of p of n outcomes at each z; None if it does not settle."""
    design = np.stack([np.ones_like(z), z])
    rate = float(p.sum() / n.sum())
    at: _Floats = np.array([np.log(rate / (1 - rate)), 0.0])
    loss = _loss(at @ design, p, n)
    for _ in range(_MOST_STEPS):
        probability = 0.5 * (1 + np.tanh(at @ design / 2))
        gradient = design @ (n * probability - p)
        curvature = (design * (n * probability * (1 - probability))) @ design.T
        try:
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            return None
        size = 1.0
        while (after := _loss((at - size * step) @ design, p, n)) > loss and size > 1e-6:
            size /= 2
        if after > loss:
            return at  # no step makes it smaller: the rounding of a float64 sum
        at, loss = at - size * step, after
        if np.abs(size * step).max() < 1e-10 * (1 + np.abs(at).max()):
            return at
    return None


def _loss(logits: _Floats, p: _Floats, n: _Floats) -> float:
    return float(np.sum(n * np.logaddexp(0, logits) - p * logits))
