"""AUC from histograms is the AUC of the binned scores; means are sums over n."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedhpc.train.evaluate import auc, summarise


@pytest.mark.parametrize(("bins", "rows"), [(1, 30), (3, 50), (10, 400), (1000, 5000)])
def test_auc_equals_sklearn_on_binned_scores(bins: int, rows: int) -> None:
    rng = np.random.default_rng(bins)
    label = rng.integers(0, 2, rows)
    score = np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1)
    at = np.minimum((score * bins).astype(int), bins - 1)
    positive = np.bincount(at[label == 1], minlength=bins)
    negative = np.bincount(at[label == 0], minlength=bins)
    assert auc(positive, negative) == pytest.approx(roc_auc_score(label, at), abs=1e-14)


def test_auc_of_one_class_is_none_and_extremes_are_exact() -> None:
    zero, one = np.array([0, 0]), np.array([0, 5])
    assert auc(one, zero) is None
    assert auc(zero, one) is None
    assert auc(np.array([0, 3]), np.array([4, 0])) == 1.0
    assert auc(np.array([3, 0]), np.array([0, 4])) == 0.0
    assert auc(np.array([3]), np.array([4])) == 0.5
    assert auc(np.array([0.25, 0.5]), np.array([0.5, 0.0])) == pytest.approx(5 / 6)  # counts that are weighted
    huge = np.array([2**40, 2**40])
    assert auc(huge, huge) == 0.5


def test_summarise() -> None:
    sums = {
        "n": np.int64(4), "loss": np.array(2.0), "accuracy": np.array([3]), "confusion": np.ones((2, 2)),
        "hist_positive": np.array([0, 2]), "hist_negative": np.array([2, 0]),
    }  # fmt: skip
    ranks = {"auc": 1.0, "auc_half_width": 0.0, "average_precision": 1.0, "average_precision_half_width": 0.0}
    assert summarise(sums) == {"loss": 0.5, "accuracy": 0.75} | ranks
    empty = {name: np.zeros_like(value) for name, value in sums.items()}
    assert summarise(empty) == dict.fromkeys(["loss", "accuracy", *ranks])
