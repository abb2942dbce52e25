"""The public bins in which scores are counted by class: fixed, alike at every site, symmetric about 0.

A score is a logit. A rarer outcome moves all logits and leaves their distances as they are, so half of the edges lie
at equal distances up to 20. The other half are equal in asinh(logit / 0.001) up to 10,000, for scores that are all
small or all large. Exactly 0, where a model that begins with zeros puts every row, has the middle bin for itself.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_EVEN_TO = 20.0  # probabilities of 2e-9 and 1 - 2e-9
_SMALLEST, _LARGEST = 0.001, 10_000.0


def bin_count(bins: int) -> int:
    """How many bins a histogram has where `bins` (2 or more) are asked for: the next odd number, for the one at 0."""
    return bins // 2 * 2 + 1


def zero_bin(count: int) -> int:
    """Which of `count` bins holds nothing but 0: rows in it are known to have equal scores."""
    return count // 2


def bin_of(logits: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """The bin of each finite logit [m], int64 [m], from 0 to bin_count(bins) - 1, low scores first."""
    half = bins // 2
    beyond = np.searchsorted(_edges(half), np.abs(logits), side="right") + 1
    return (half + np.sign(logits).astype(np.int64) * beyond).astype(np.int64)


def logits_of(count: int) -> NDArray[np.float64]:
    """The middle of each of `count` bins [count]; the outermost two have no end, and NaN."""
    edges = _edges(count // 2)
    middles = (np.concatenate([[0.0], edges[:-1]]) + edges) / 2 if edges.size else edges
    return np.concatenate([[math.nan], -middles[::-1], [0.0], middles, [math.nan]])


def expected_between(counts: NDArray[np.float64]) -> tuple[float, float]:
    """Between what the sum of the predicted probabilities lies for `counts` of rows per bin, an odd number of bins."""
    outer = np.concatenate([_edges(counts.size // 2), [math.inf]])
    low = np.concatenate([-outer[::-1], [0.0], np.concatenate([[0.0], outer[:-1]])])
    return float(counts @ _probability(low)), float(counts @ _probability(-low[::-1]))


def _probability(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(logits / 2))


@lru_cache(maxsize=8)
def _edges(half: int) -> NDArray[np.float64]:
    """Edges between the `half` bins above 0, rising, float64 [half - 1]."""
    even = (half - 1) // 2
    scaled = np.linspace(0.0, math.asinh(_LARGEST / _SMALLEST), half - even)[1:]
    edges = np.sort(np.concatenate([np.linspace(0.0, _EVEN_TO, even + 1)[1:], _SMALLEST * np.sinh(scaled)]))
    edges.flags.writeable = False
    return edges
