"""The largest level of any site, and nothing else: not how many sites reach it, nor who."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import second
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fakes import key_of

from fedhpc.secure.largest import NONE, largest, marks, marks_stream
from fedhpc.secure.masks import Keystream
from fedhpc.secure.ring import lane_bound

BINS = 12


def cells(levels: list[list[int]], *, sites: int = 0, purpose: str = "p", masked: bool = True) -> list[np.ndarray]:
    """Of sites 1, 2, … with `levels` each."""
    return [
        marks(
            np.array(own), BINS, sites or len(levels), marks_stream(key_of("salt", u), u, purpose) if masked else None
        )
        for u, own in enumerate(levels, 1)
    ]


@pytest.mark.parametrize("sites", [3, 100])
def test_the_cells_are_those_of_the_specification(sites: int) -> None:
    """Cell by cell, by the second implementation's own streams; in a vector whose first lanes are another array's."""
    key, u, first, levels = key_of("salt", 2), 2, 35, [3, NONE, BINS - 1]
    found = marks(np.array(levels), BINS, sites, marks_stream(key, u, "scale of age"), first)
    stream = second.kdf(second.h("largest", b"scale of age"), key, "largest", u)
    room = 1 << math.floor(math.log2((2**63 - 1) // sites))
    for i, level in enumerate(levels):
        for b in range(BINS):
            r = int.from_bytes(second.prg(stream, 8 * (first + i * BINS + b), 8), "little") % room
            assert found[i, b] == (r - r % 2**32 if b > level else r + (r % 2**32 == 0))


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
        found = marks(np.full(500, BINS - 1), BINS, sites, marks_stream(key_of("salt", 1), 1, "p"))
        assert found.dtype == np.int64
        assert 0 < found.min() <= found.max() <= lane_bound(64, sites)


def test_a_repeated_round_has_the_same_cells_and_another_one_has_not() -> None:
    one, again, other = (cells([[3, NONE]], sites=3, purpose=p)[0] for p in ("p", "p", "q"))
    assert (one == again).all()
    assert not (one == other).any()


def test_one_mark_alone_is_never_zero() -> None:
    """Also where the stream gives 0."""

    class Zeros(Keystream):
        def read(self, offset: int, count: int, scratch: np.ndarray) -> np.ndarray:
            return np.zeros(count, np.uint8)

    assert largest(marks(np.array([4, NONE]), BINS, 3, Zeros(bytes(32)))).tolist() == [4, NONE]


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
