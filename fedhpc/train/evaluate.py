"""Metrics from additive sums: what the masked sum of all sites' measurements says about the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITIVE, NEGATIVE = "hist_positive", "hist_negative"


def auc(positive: NDArray[Any], negative: NDArray[Any]) -> float | None:
    """Area under the ROC curve from counts of scores per bin, each [bins], low scores first.

    Scores in the same bin are ties and count half (the Mann-Whitney statistic), so the value is exact for scores
    rounded to bins. None where a class has no rows.
    """
    pos, neg = [int(c) for c in positive], [int(c) for c in negative]
    total = sum(pos) * sum(neg)
    if not total:
        return None
    # Python integers: pairs of rows overflow int64 from three billion rows on
    below, doubled = 0, 0
    for p, q in zip(pos, neg, strict=True):
        doubled += p * (2 * below + q)
        below += q
    return doubled / (2 * total)


def summarise(sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
    """Metrics from `sums`: `name`/n under its name for every scalar but `n`; `auc` from the two histograms.

    A mean over no rows is None, and so is an AUC without rows of both classes.
    """
    n = float(np.asarray(sums["n"]).item())
    metrics: dict[str, float | None] = {}
    for name in sorted(sums):
        value = np.asarray(sums[name])
        if name not in ("n", POSITIVE, NEGATIVE) and value.size == 1:
            metrics[name] = float(value.item()) / n if n > 0 else None
    if POSITIVE in sums and NEGATIVE in sums:
        metrics["auc"] = auc(sums[POSITIVE], sums[NEGATIVE])
    return metrics
