"""AUC, average precision and calibration from the built-in histograms, beside exact values of the raw scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from fedhpc.errors import DataError
from fedhpc.train.evaluate import NEGATIVE, POSITIVE, average_precision, summarise
from fedhpc.train.score_bins import bin_count, bin_of, logits_of, zero_bin
from fedhpc.train.tasks.tables import binary_sums

Scores = tuple[np.ndarray, np.ndarray]  # logits float64 [n], labels bool [n]
# Of 4000 bins: sites with another release must count alike.
FROZEN = {
    -700.0: 159, -12.0: 801, -1.0: 1498, -0.004: 1875, 0.0: 2000, 1e-5: 2001, 0.3: 2395, 5.0: 2797, 19.9: 3625,
    250.0: 3780, 9e3: 3993,
}  # fmt: skip


def rare(mu: float, rows: int = 200_000) -> Callable[[np.random.Generator], Scores]:
    """Well calibrated scores of an outcome whose prevalence `mu` sets."""

    def draw(rng: np.random.Generator) -> Scores:
        x = rng.normal(mu, 1.2, rows)
        y = rng.random(rows) < expit(x)
        y[0] = True  # at least one
        return x, y

    return draw


def shifted(low: float, high: float, deviation: float, positives: int = 5000, negatives: int = 5000):
    """Scores of the two classes around `low` and `high`."""

    def draw(rng: np.random.Generator) -> Scores:
        x = np.concatenate([rng.normal(high, deviation, positives), rng.normal(low, deviation, negatives)])
        return x, np.arange(x.size) < positives

    return draw


CASES = {
    "prevalence 1.3 %": rare(-5), "0.17 %": rare(-7), "0.068 %": rare(-8), "0.023 %": rare(-9), "0.008 %": rare(-10),
    "the base rate moved": shifted(9, 12, 3), "and down": shifted(-12, -9, 3), "common": rare(0), "nearly all": rare(9),
    "1e-5": shifted(-13, -11, 1.2, 2, 198_000), "small scores": shifted(-1e-3, 1e-3, 2e-3),
    "hundreds": shifted(280, 300, 30), "thousands": shifted(-3000, 2000, 4000),
    "four rows": shifted(-1, 1, 1, 2, 2), "narrow": shifted(6.0, 6.1, 0.1),
}  # fmt: skip


def measured(x: np.ndarray, y: np.ndarray, bins: int = 4000) -> dict[str, float | None]:
    sums = binary_sums(torch.from_numpy(x)[:, None], torch.from_numpy(y.astype(np.int64)), bins)
    return summarise({name: value.numpy() for name, value in sums.items()})


def mann_whitney(x: np.ndarray, y: np.ndarray) -> float:
    """By its definition, in integers: a pair counts two if it is in order, one if it is tied."""
    negative = np.sort(x[~y])
    twice = sum(int(np.searchsorted(negative, x[y], side).sum()) for side in ("left", "right"))
    return twice / (2 * int(y.sum()) * negative.size)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_scores_of_any_prevalence_and_size(name: str, seed: int) -> None:
    x, y = CASES[name](np.random.default_rng(seed))
    found = measured(x, y)
    for metric, exact in (("auc", mann_whitney(x, y)), ("average_precision", average_precision_score(y, x))):
        error, proven = abs(found[metric] - exact), found[f"{metric}_half_width"]  # type: ignore[operator]
        assert error <= 0.002, metric
        assert error <= proven + 1e-12, metric  # type: ignore[operator]
    assert found["auc_half_width"] < 0.03  # type: ignore[operator]


def test_the_exact_value_of_this_test_is_that_of_others() -> None:
    x, y = np.round(shifted(0, 1, 1)(np.random.default_rng(0))[0], 1), np.arange(10_000) < 5000
    assert mann_whitney(x, y) == pytest.approx(roc_auc_score(y, x), abs=1e-12)


def discrete(rng: np.random.Generator) -> Scores:
    """A few rows, a few different scores, in a few bins: much is tied, and much shares a bin without being tied."""
    rows = int(rng.integers(2, 30))
    values = rng.choice([0.0, 1e-9, 0.4, 0.41, -0.4, 7.0, 7.001, 1e5, 1e6, -1e308], int(rng.integers(1, 7)))
    return rng.choice(values, rows), rng.random(rows) < rng.random()


@pytest.mark.parametrize("bins", [2, 3, 4, 9, 4000])
def test_the_interval_holds_whatever_the_order_within_bins(bins: int) -> None:
    rng = np.random.default_rng(bins)
    tried = 0
    for _ in range(400):
        x, y = discrete(rng)
        found = measured(x, y, bins)
        if y.all() or not y.any():
            assert found["auc"] is found["auc_half_width"] is None
        else:
            tried += 1
            assert abs(found["auc"] - mann_whitney(x, y)) <= found["auc_half_width"] + 1e-12  # type: ignore[operator]
        if not y.any():
            assert found["average_precision"] is found["average_precision_half_width"] is None
            continue
        error = abs(found["average_precision"] - average_precision_score(y, x))  # type: ignore[operator]
        assert error <= found["average_precision_half_width"] + 1e-12  # type: ignore[operator]
    assert tried > 200


def test_the_interval_of_average_precision_is_no_wider_than_the_orders_are_apart() -> None:
    p, q = np.array([2, 3, 0, 4]), np.array([5, 1, 4, 2])  # low scores first
    tied = np.repeat(np.arange(4), p + q)
    best, worst = [], []
    for bin_ in range(4):  # in each bin: all positives above the negatives, and all different and below them
        best += [bin_ + 0.9] * p[bin_] + [bin_ + 0.1] * q[bin_]
        worst += [*(bin_ + 0.4 * np.arange(1, p[bin_] + 1) / p[bin_]), *[bin_ + 0.9] * q[bin_]]
    label = np.concatenate([np.arange(a + b) < a for a, b in zip(p, q, strict=True)])
    high, low = (average_precision_score(label, scores) for scores in (best, worst))
    value, half_width = average_precision(p, q)  # type: ignore[misc]
    assert low <= value <= high
    assert max(high - value, value - low) == pytest.approx(half_width, abs=2e-3)
    assert low < average_precision_score(label, tied) < high


def test_equal_scores() -> None:
    y = np.arange(10) < 4
    zeros = measured(np.zeros(10), y)  # a model that begins with zeros: known to be ties
    assert (zeros["auc"], zeros["auc_half_width"]) == (0.5, 0.0)
    assert (zeros["average_precision"], zeros["average_precision_half_width"]) == (0.4, 0.0)
    assert zeros["calibration_ratio"] == pytest.approx(0.8)
    assert zeros["calibration_slope"] is zeros["calibration_intercept"] is None
    equal = measured(np.full(10, -3.0), y)  # the bin does not tell that they are equal
    assert (equal["auc"], equal["auc_half_width"]) == (0.5, 0.5)
    assert equal["average_precision_half_width"] > 0.3  # type: ignore[operator]


def test_saturated_scores() -> None:
    x = np.array([-1e3, -1e3, -1e3, 1e3, 1e3])
    apart = measured(x, x > 0)
    assert (apart["auc"], apart["auc_half_width"]) == (1.0, 0.0)
    assert apart["average_precision"] == pytest.approx(1.0)
    assert apart["average_precision_half_width"] == pytest.approx(0.0, abs=1e-12)
    assert measured(-x, x > 0)["auc"] == 0.0
    assert apart["calibration_slope"] is None  # separated: it has no finite value
    beyond = measured(np.array([1e20, 1e30, -1e20, 1.0]), np.array([True, False, False, True]))
    assert beyond["auc_half_width"] == 0.125
    assert beyond["calibration_slope"] is None


def test_one_class_and_no_rows() -> None:
    found = measured(np.array([0.1, 2.0]), np.array([True, True]))
    assert (found["auc"], found["average_precision"]) == (None, 1.0)
    assert found["average_precision_half_width"] == pytest.approx(0, abs=1e-12)
    assert found["calibration_slope"] is None
    found = measured(np.array([0.1, 2.0]), np.array([False, False]))
    assert (found["auc"], found["average_precision"], found["calibration_ratio"]) == (None, None, 0.0)
    assert set(measured(np.zeros(0), np.zeros(0, dtype=bool)).values()) == {None}


def test_counts_of_billions_do_not_overflow() -> None:
    p, q = np.array([2**40, 2**41]), np.array([2**41, 2**40])
    sums = {"n": np.int64(3 * 2**41), POSITIVE: p, NEGATIVE: q}
    found = summarise(sums)
    assert found["auc"] == pytest.approx(2 / 3, abs=0.01)
    assert found["average_precision"] == pytest.approx(2 / 3, abs=0.1)


def test_bins_are_symmetric_ordered_and_public() -> None:
    x = np.sort(np.concatenate([np.random.default_rng(0).normal(0, 8, 1000), [-1e9, -5e-324, 0.0, -0.0, 5e-324, 1e9]]))
    for bins in (2, 3, 8, 1000, 4000):
        at = bin_of(x, bins)
        assert (np.diff(at) >= 0).all()
        np.testing.assert_array_equal(bin_of(-x[::-1], bins), bin_count(bins) - 1 - at[::-1])
        assert (at.min(), at.max()) == (0, bin_count(bins) - 1)
        np.testing.assert_array_equal(np.flatnonzero(x == 0), np.flatnonzero(at == zero_bin(bin_count(bins))))
        middles = logits_of(bin_count(bins))
        np.testing.assert_array_equal(bin_of(middles[1:-1], bins), np.arange(1, bin_count(bins) - 1))
        assert np.isnan(middles[[0, -1]]).all()
    assert bin_of(np.array(list(FROZEN)), 4000).tolist() == list(FROZEN.values())


def exact_recalibration(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, None], y)
    return float(fit.intercept_[0]), float(fit.coef_[0, 0])


@pytest.mark.parametrize(
    ("mu", "intercept", "slope"), [(0, 0, 1), (-2, 0.5, 0.7), (-5, -1, 1.3), (3, 0.3, 0.5), (0, 0, -0.4)]
)
def test_calibration_is_that_of_the_raw_scores(mu: float, intercept: float, slope: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(mu, 1.5, 50_000)
    y = rng.random(x.size) < expit(intercept + slope * x)
    found = measured(x, y)
    assert found["calibration_ratio"] == pytest.approx(y.sum() / expit(x).sum(), rel=1e-9)
    raw = exact_recalibration(x, y)
    assert found["calibration_intercept"] == pytest.approx(raw[0], abs=2e-3)
    assert found["calibration_slope"] == pytest.approx(raw[1], abs=1e-3)
    assert raw[1] == pytest.approx(slope, abs=0.15)


def test_calibration_of_few_rows_and_of_wild_scores_ends() -> None:
    rng = np.random.default_rng(0)
    finite = 0
    for _ in range(300):
        x = rng.choice([-900.0, -30.0, -1.0, 0.0, 1e-7, 0.5, 3.0, 800.0], int(rng.integers(1, 12)))
        y = rng.random(x.size) < 0.5
        slope = measured(x, y)["calibration_slope"]
        if slope is not None:
            finite += 1
            assert np.isfinite(slope)
    assert finite > 50


def test_scores_that_are_not_finite_are_refused() -> None:
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match="not a finite number"):
            measured(np.array([0.0, wrong]), np.array([True, False]))


@pytest.mark.parametrize("y", [[1, 2], [-1, 1], [0.0, 0.7], [0.0, float("nan")]])
def test_classes_other_than_0_and_1_are_refused(y: list[float]) -> None:
    """Of 1 and 2, as many files count, a 2 would be no case: the area would be that of the opposite."""
    with pytest.raises(DataError, match="a class other than 0 and 1"):
        binary_sums(torch.zeros(2, 1), torch.tensor(y), 100)


def test_histograms_of_other_bins_give_no_calibration() -> None:
    found = summarise({"n": np.int64(4), POSITIVE: np.array([0, 1, 1]), NEGATIVE: np.array([1, 1, 0])})
    assert set(found) == {"auc", "auc_half_width", "average_precision", "average_precision_half_width"}
    assert (found["auc"], found["auc_half_width"]) == (0.875, 0.125)
