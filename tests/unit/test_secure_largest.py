"""The largest level of any site, and nothing else: not how many sites reach it, nor who."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fakes import key_of

from fedhpc.secure.largest import NONE, largest, marks
from fedhpc.secure.ring import lane_bound

BINS = 12


def cells(levels: list[list[int]], *, sites: int = 0, purpose: str = "p", masked: bool = True) -> list[np.ndarray]:
    """Of sites 1, 2, … with `levels` each."""
    return [
        marks(np.array(own), BINS, sites or len(levels), key_of("salt", u) if masked else None, u, purpose)
        for u, own in enumerate(levels, 1)
    ]


LEVELS = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(NONE, BINS - 1), min_size=n, max_size=n), min_size=2, max_size=5)
)


@settings(max_examples=100, deadline=None)
@given(LEVELS, st.booleans())
def test_the_sum_of_the_cells_gives_the_largest_level(levels: list[list[int]], masked: bool) -> None:
    total = np.add.reduce(cells(levels, masked=masked))
    assert largest(total).tolist() == np.max(levels, axis=0).tolist()


def test_the_cells_of_100_sites_stay_within_their_lanes() -> None:
    for sites in (2, 3, 7, 100):
        found = marks(np.full(500, BINS - 1), BINS, sites, key_of("salt", 1), 1, "p")
        assert found.dtype == np.int64
        assert 0 < found.min() <= found.max() <= lane_bound(64, sites)


def test_a_repeated_round_has_the_same_cells_and_another_one_has_not() -> None:
    one, again, other = (cells([[3, NONE]], sites=3, purpose=p)[0] for p in ("p", "p", "q"))
    assert (one == again).all()
    assert not (one == other).any()


def test_one_mark_alone_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the stream gives 0."""
    import fedhpc.secure.largest as module

    class Zeros:
        def __init__(self, key: bytes) -> None:
            pass

        def read(self, offset: int, count: int, scratch: np.ndarray) -> np.ndarray:
            return np.zeros(count, np.uint8)

    monkeypatch.setattr(module, "Keystream", Zeros)
    assert largest(marks(np.array([4, NONE]), BINS, 3, bytes(32), 1, "p")).tolist() == [4, NONE]


def test_how_many_sites_reach_a_level_is_not_told() -> None:
    """Sums in which 1, 2 or 3 of three sites reach the top look alike: both halves of a cell, in mean and spread."""
    n = 4000
    seen = {}
    for count in (0, 1, 2, 3):
        levels = [[BINS - 1] * n if u < count else [NONE] * n for u in range(3)]
        total = np.add.reduce(cells(levels))
        low, high = (total & 0xFFFFFFFF).ravel() / 2**32, (total >> 32).ravel() / 2**29
        seen[count] = [float(f(x)) for x in (low, high) for f in (np.mean, np.std)]
    assert seen[0][:2] == [0.0, 0.0]  # nobody: that is what is learned
    for one, other in itertools.combinations((1, 2, 3), 2):
        np.testing.assert_allclose(seen[one], seen[other], atol=0.02)
    np.testing.assert_allclose(seen[0][2:], seen[3][2:], atol=0.02)


def test_nobody_takes_away_the_mark_of_another_site() -> None:
    """A site that subtracts ones, or its own old numbers, in the top cell of the others: the level stays."""
    honest = cells([[7], [2], [NONE]])
    for change in (-1, -(2**31), -int(honest[2][0, 7]), -int(honest[1][0, 7])):
        total = np.add.reduce(honest)
        total[0, 7] += change
        assert largest(total).tolist() == [7]
