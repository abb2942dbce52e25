"""The values of `fedhpc bench`, which every site can draw again, and the check of their sum."""

from __future__ import annotations

import numpy as np
import pytest

from fedhpc.bench.sum_ranks import SCALE, TILE, draw, integers, is_sum

SEED = b"a seed"


@pytest.mark.parametrize("first", [0, 1, 7, TILE - 1, TILE + 3])
def test_a_part_is_drawn_as_in_the_whole(first: int) -> None:
    whole, part = np.empty(2 * TILE + 9, np.float32), np.empty(TILE + 2, np.float32)
    draw(whole, SEED, 3)
    draw(part, SEED, 3, first)
    assert np.array_equal(part, whole[first : first + part.size])
    assert np.array_equal(integers(SEED, 3, 0, 5), integers(SEED, 3, 0, TILE)[:5])


def test_values_fill_their_range_and_differ_between_sites_and_tiles() -> None:
    one = integers(SEED, 1, 0, TILE)
    assert -(1 << 17) <= one.min() < -131_000 < 131_000 < one.max() < 1 << 17
    assert abs(one.mean()) < 1000  # of a deviation of 75,674 in 262,144 numbers: seven of the mean's own
    assert 75_000 < one.std() < 76_400
    for other in (integers(SEED, 2, 0, TILE), integers(SEED, 1, 1, TILE), integers(b"b", 1, 0, TILE)):
        assert np.count_nonzero(one == other) < 20


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("sites", [1, 4, 128])
def test_only_the_sum_is_the_sum(kind: type, sites: int) -> None:
    skip, size = 11, 1001
    numbers = range(1, sites + 1)
    sums = sum(integers(SEED, number, 5, TILE)[skip : skip + size].astype(np.int64) for number in numbers)
    found = (sums * 2.0**-SCALE).astype(kind)
    assert is_sum(found, SEED, numbers, 5, skip)
    assert not is_sum(found, SEED, numbers, 5, skip + 1)
    assert not is_sum(found, SEED, numbers, 6, skip)
    assert not is_sum(found, SEED, range(2, sites + 2), 5, skip)
    for place in (0, 500, size - 1):
        for wrong in (found[place] + 2.0**-SCALE, np.nan, np.inf):
            spoiled = found.copy()
            spoiled[place] = wrong
            assert not is_sum(spoiled, SEED, numbers, 5, skip)
