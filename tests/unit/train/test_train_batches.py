"""Batches depend on (seed, site, epoch) alone, and the ranks' pieces add up to the mean over the site's batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.errors import DataError
from fedhpc.train.batches import Batches, derive_key, permutation, pieces, share
from fedhpc.train.held_out import split_rows


def test_permutation_is_keyed_and_stable() -> None:
    order = permutation(1000, 1, "a", 0)
    assert sorted(order) == list(range(1000))
    # Pinned: another order would change every federation's history.
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == "08f9477c18657708"
    for other in (permutation(1000, 2, "a", 0), permutation(1000, 1, "b", 0), permutation(1000, 1, "a", 1)):
        assert (order != other).any()


def test_key_parts_do_not_merge() -> None:
    assert derive_key("p", "ab", "c") != derive_key("p", "a", "bc")
    assert derive_key("p", 1, 23) != derive_key("p", 12, 3)


def test_an_epoch_covers_every_row_once_and_resumes() -> None:
    rows = np.arange(100, 110)
    batches = Batches(rows, 4, 0, "a")
    epoch = [batches.next() for _ in range(batches.steps_per_epoch)]
    assert [b.size for b in epoch] == [4, 4, 2]
    assert sorted(np.concatenate(epoch)) == list(rows)
    batches.next()
    assert (batches.epoch, batches.offset) == (1, 4)
    again = Batches(rows, 4, 0, "a")
    again.seek(1, 4)
    for _ in range(7):
        np.testing.assert_array_equal(again.next(), batches.next())


def test_no_rows_and_a_foreign_position_are_refused() -> None:
    with pytest.raises(DataError, match="no training rows"):
        Batches(np.zeros(0, dtype=np.int64), 4, 0, "a")
    with pytest.raises(DataError, match="position 10"):
        Batches(np.arange(10), 4, 0, "a").seek(0, 10)


@settings(max_examples=200, deadline=None)
@given(m=st.integers(1, 40), size=st.integers(1, 9), accumulation=st.integers(1, 5))
def test_pieces_average_to_the_mean_over_the_batch(m: int, size: int, accumulation: int) -> None:
    batch = np.arange(m) + 7
    values = np.random.default_rng(0).normal(size=m + 7)
    np.testing.assert_array_equal(np.concatenate([share(batch, r, size) for r in range(size)]), batch)
    average, part = 0.0, 0.0
    for rank in range(size):
        mine = pieces(batch, rank, size, accumulation)
        assert [p.last for p in mine] == [False] * (len(mine) - 1) + [True]
        assert all(p.rows.size for p in mine)
        average += sum(p.weight * values[p.rows].mean() for p in mine) / size
        part += sum(p.part for p in mine)
    assert average == pytest.approx(values[batch].mean(), rel=1e-12)
    assert part == pytest.approx(1.0)


def test_one_rank_has_weight_one() -> None:
    assert [p.weight for p in pieces(np.arange(7), 0, 1, 1)] == [1.0]


def test_split_is_stratified_and_repeatable() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    train, held = split_rows(labels.size, 0.2, 3, "a", labels)
    assert sorted([*train, *held]) == list(range(labels.size))
    assert [int((labels[held] == c).sum()) for c in range(4)] == [10, 2, 1, 0]
    np.testing.assert_array_equal(held, split_rows(labels.size, 0.2, 3, "a", labels)[1])
    assert not np.array_equal(held, split_rows(labels.size, 0.2, 4, "a", labels)[1])
    assert not np.array_equal(held, split_rows(labels.size, 0.2, 3, "b", labels)[1])


def test_split_without_labels_or_without_held_out() -> None:
    train, held = split_rows(10, 0.0, 0, "a", np.zeros(10))
    assert held.size == 0
    assert train.size == 10
    assert split_rows(10, 0.3, 0, "a")[1].size == 3
    assert split_rows(10, 0.3, 0, "a", np.linspace(0, 1, 10))[1].size == 3  # quantities: no two are equal
    assert [part.size for part in split_rows(1, 0.5, 0, "a")] == [1, 0]
    assert [part.size for part in split_rows(0, 0.5, 0, "a")] == [0, 0]


@pytest.mark.parametrize("n", range(1, 14))
@pytest.mark.parametrize("batch_size", range(6))
def test_no_batch_is_one_row_where_more_are_asked_for(n: int, batch_size: int) -> None:
    """Else batch norm ends a federation because of one site's number of rows; every position goes on as it did."""
    batches = Batches(np.arange(n), batch_size, 0, "a")
    positions, epoch = [], []
    for _ in range(batches.steps_per_epoch):
        positions.append((batches.epoch, batches.offset))
        epoch.append(batches.next())
    assert (batches.epoch, batches.offset) == (1, 0)
    assert sorted(np.concatenate(epoch)) == list(range(n))
    if batch_size == 1 or n == 1:
        assert [b.size for b in epoch] == [1] * n
    else:
        assert all(1 < b.size <= batches.batch_size + 1 for b in epoch)
        assert [b.size for b in epoch[:-1]] == [batches.batch_size] * (len(epoch) - 1)
    for (at, offset), batch in zip(positions, epoch, strict=True):
        again = Batches(np.arange(n), batch_size, 0, "a")
        again.seek(at, offset)
        np.testing.assert_array_equal(again.next(), batch)


@pytest.mark.parametrize("twice", [True, False])
def test_a_row_that_is_alone_is_passed_twice_unless_one_was_asked_for(twice: bool) -> None:
    for m in (1, 2, 3, 5):
        for size in (1, 2, 3):
            for accumulation in (1, 2, 4):
                for rank in range(size):
                    found = pieces(np.arange(m), rank, size, accumulation, twice)
                    assert all((p.rows.size > 1) or not twice for p in found)
                    if m <= size * accumulation and not twice:
                        assert any(p.rows.size == 1 for p in found)
