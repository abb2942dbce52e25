"""Metrics from additive sums: what the masked sum of all sites' measurements says about the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.train.calibration import calibration
from fedhpc.train.score_bins import expected_between, zero_bin

POSITIVE, NEGATIVE = "hist_positive", "hist_negative"
EXPECTED = "hist_expected"  # sum of the predicted probabilities; present if the bins are those of score_bins
NATS, TOKENS, BYTES = "sum_nats", "sum_tokens", "sum_bytes"  # of text: cross entropy, tokens predicted, their bytes
HALF_WIDTH = "_half_width"  # after a metric's name: how far the exact value can be from it
_LARGEST_LOSS = 700.0  # nats whose exponential is a float64
_ROUNDING = 1e-2  # of probabilities that a task has in short floats

Counts = NDArray[Any]  # of scores per bin, whole numbers [bins], low scores first


def auc(positive: Counts, negative: Counts) -> float | None:
    """Area under the ROC curve from counts of scores per bin.

    Scores in the same bin are ties and count half (the Mann-Whitney statistic), so the value is exact for scores
    rounded to bins. None where a class has no rows.
    """
    # Python's numbers: pairs of rows overflow int64 from three billion rows on
    pos, neg = np.asarray(positive).tolist(), np.asarray(negative).tolist()
    total = sum(pos) * sum(neg)
    if not total:
        return None
    below, doubled = 0, 0
    for p, q in zip(pos, neg, strict=True):
        doubled += p * (2 * below + q)
        below += q
    return float(doubled / (2 * total))


def auc_half_width(positive: Counts, negative: Counts, ties: int | None = None) -> float | None:
    """How far the AUC of the scores themselves can be from `auc`: half of the pairs of rows that share a bin.

    `ties` is a bin whose rows are known to have equal scores. None where a class has no rows.
    """
    pos, neg = np.asarray(positive).tolist(), np.asarray(negative).tolist()
    total = sum(pos) * sum(neg)
    unknown = sum(p * q for i, (p, q) in enumerate(zip(pos, neg, strict=True)) if i != ties)
    return float(unknown / (2 * total)) if total else None


def average_precision(positive: Counts, negative: Counts, ties: int | None = None) -> tuple[float, float] | None:
    """Average precision (the step sum of precision over recall), and how far that of the scores can be from it.

    The value is for rows that are mixed evenly within a bin. The bounds are the best and the worst order, equal scores
    included: positives first and all equal; negatives first. None where there are no positives.
    """
    p, q = (np.asarray(c, dtype=np.float64)[::-1] for c in (positive, negative))
    total = float(p.sum())
    if not total:
        return None
    hit, seen = np.cumsum(p) - p, np.cumsum(p + q) - (p + q)  # positives, and all rows, in higher bins
    best = _ratio(p * (hit + p), seen + p)
    # The k-th positive has precision f(k) = (hit + k) / (seen + q + k) or more. f is concave: the sum of f(1) … f(p)
    # is at least that of its chord, which is exact for one or two, and at least the integral from 1/2 to p + 1/2.
    chord = p * (_ratio(hit + 1, seen + q + 1) + _ratio(hit + p, seen + q + p)) / 2
    worst = np.maximum(chord, _integral(hit, seen + q, np.ones_like(p), p))
    mixed = np.clip(_integral(hit, seen, 1 + q / (p + 1), p), worst, best)
    if ties is not None:
        known = p.size - 1 - ties
        equal = _ratio(p * (hit + p), seen + p + q)[known]
        best[known] = worst[known] = mixed[known] = equal
    value = float(mixed.sum())
    half_width = max(float(best.sum()) - value, value - float(worst.sum()), 0.0)
    return value / total, half_width / total


def wrong_histograms(sums: Mapping[str, NDArray[Any]]) -> str:
    """What is wrong with a site's histograms of scores, "" if nothing is."""
    positive, negative = sums.get(POSITIVE), sums.get(NEGATIVE)
    if positive is None or negative is None:
        return ""
    if positive.ndim != 1 or positive.shape != negative.shape:
        return f"{POSITIVE} and {NEGATIVE} must have one dimension, and equally many bins"
    if EXPECTED not in sums:
        return ""
    if positive.size % 2 == 0 or sums[EXPECTED].size != 1:
        return f"{EXPECTED} is a scalar, and goes with the histograms of binary_sums only"
    low, high = expected_between(np.asarray(positive + negative, dtype=np.float64))
    if not low * (1 - _ROUNDING) <= float(sums[EXPECTED].item()) <= high * (1 + _ROUNDING):
        return f"{EXPECTED} is not the sum of the probabilities of logits in the bins of binary_sums"
    return ""


def summarise(sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
    """Metrics from `sums`: `name`/n under its name for every scalar but `n`; more from the two histograms, and of text.

    These are `auc` and `average_precision`, each with `…_half_width`, and, where `hist_expected` says that the bins
    are those of score_bins, `calibration_ratio`, `calibration_intercept` and `calibration_slope`. Of text they are
    `loss`, in nats for each token, `perplexity` and `bits_per_byte`. None stands for what the rows do not determine: a
    mean over no rows, an AUC of one class, bits for each byte of a tokenizer that does not tell bytes.
    """
    n = float(np.asarray(sums["n"]).item())
    metrics: dict[str, float | None] = {}
    for name in sorted(sums):
        value = np.asarray(sums[name])
        if name not in ("n", POSITIVE, NEGATIVE, EXPECTED, NATS, TOKENS, BYTES) and value.size == 1:
            metrics[name] = float(value.item()) / n if n > 0 else None
    if NATS in sums and TOKENS in sums:
        metrics |= text_metrics(sums)
    if POSITIVE in sums and NEGATIVE in sums:
        positive, negative = sums[POSITIVE], sums[NEGATIVE]
        ties = zero_bin(len(positive)) if EXPECTED in sums else None
        precision = average_precision(positive, negative, ties) or (None, None)
        metrics["auc"] = auc(positive, negative)
        metrics["auc" + HALF_WIDTH] = auc_half_width(positive, negative, ties)
        metrics["average_precision"], metrics["average_precision" + HALF_WIDTH] = precision
        if EXPECTED in sums:
            metrics |= calibration(positive, negative, float(np.asarray(sums[EXPECTED]).item()))
    return metrics


def text_metrics(sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
    """`loss`, `perplexity` and `bits_per_byte` from the sums of nats, tokens and bytes."""
    nats, tokens, nbytes = (
        float(np.asarray(sums[name]).item()) if name in sums else 0.0 for name in (NATS, TOKENS, BYTES)
    )
    loss = nats / tokens if tokens > 0 else None
    return {
        "loss": loss,
        "perplexity": None if loss is None else math.exp(min(loss, _LARGEST_LOSS)),
        "bits_per_byte": nats / (nbytes * math.log(2.0)) if nbytes > 0 else None,
    }


def _integral(hit: Counts, seen: Counts, rate: Counts, p: Counts) -> Counts:
    """The integral of (hit + t) / (seen + rate t) for t from 1/2 to p + 1/2, for each bin; 0 where p is 0."""
    start = seen + rate / 2
    return p / rate + (hit - seen / rate) / rate * np.log1p(rate * p / start)


def _ratio(above: Counts, below: Counts) -> Counts:
    """above / below, 0 where both are."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
