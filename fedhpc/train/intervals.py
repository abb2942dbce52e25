"""95 % intervals of metrics, where a formula exists: from the sums alone, without drawing rows again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.train.evaluate import HALF_WIDTH, NEGATIVE, POSITIVE

Z = 1.959963984540054  # 97.5 % of the standard normal distribution


def wilson(hits: float, n: float) -> tuple[float, float] | None:
    """Of a share of `hits` of `n` rows. Wilson 1927, J. Am. Stat. Assoc. 22:209. None without rows."""
    if n <= 0:
        return None
    share, z2 = hits / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def hanley_mcneil(auc: float, positives: float, negatives: float) -> tuple[float, float] | None:
    """Of an area under the ROC curve. Hanley and McNeil 1982, Radiology 143:29. None where a class has no rows."""
    if positives <= 0 or negatives <= 0:
        return None
    one, two = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (one - auc * auc) + (negatives - 1) * (two - auc * auc)
    half = Z * math.sqrt(max(0.0, variance) / (positives * negatives))
    return max(0.0, auc - half), min(1.0, auc + half)


def with_intervals(
    metrics: Mapping[str, float | None], sums: Mapping[str, NDArray[Any]]
) -> dict[str, dict[str, float | None]]:
    """{metric: {value, low, high, n}}; low and high are None where there is no formula, value where it is not defined.

    `sums`: those that `metrics` were made of (evaluate.summarise).
    """
    n = float(np.asarray(sums["n"]).item())
    found: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        if name.endswith(HALF_WIDTH):
            continue
        limits = None
        if name == "accuracy" and value is not None:
            limits = wilson(value * n, n)
        elif name == "auc" and value is not None:
            limits = hanley_mcneil(value, float(sums[POSITIVE].sum()), float(sums[NEGATIVE].sum()))
        low, high = limits or (None, None)
        found[name] = {"value": value, "low": low, "high": high, "n": n}
    return found
