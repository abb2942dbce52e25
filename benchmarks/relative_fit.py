"""Least squares of the relative error, with costs that cannot be negative: for times that differ a thousandfold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TURNS = 20
_SLIGHT = 1e-9


def relative_fit(
    sizes: NDArray[np.float64], seconds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Costs [k] and their covariance [k, k], such that `sizes` [n, k] @ costs is nearest to `seconds` [n].

    Errors count relative to what is predicted, turn by turn: relative to what was measured, a time that was disturbed
    would count less than one that was not. A cost that would come out below zero is zero, and has no error.
    """
    norm = np.linalg.norm(sizes, axis=0)
    scaled = sizes / norm
    kept = np.arange(scaled.shape[1])
    while True:
        predicted = seconds
        for _ in range(_TURNS):
            design = scaled[:, kept] / predicted[:, None]
            found, *_ = np.linalg.lstsq(design, seconds / predicted, rcond=None)
            predicted = np.maximum(scaled[:, kept] @ found, _SLIGHT * seconds)
        if (found >= 0).all() or len(kept) == 1:
            break
        kept = np.delete(kept, np.argmin(found))
    residuals = design @ found - seconds / predicted
    free = max(1, len(seconds) - len(kept))
    costs, covariance = np.zeros(len(norm)), np.zeros((len(norm), len(norm)))
    costs[kept] = np.maximum(found, 0.0)
    covariance[np.ix_(kept, kept)] = np.linalg.pinv(design.T @ design) * float(residuals @ residuals) / free
    return costs / norm, covariance / np.outer(norm, norm)
