"""Which sites a set of sums isolates, against brute force over all small supports."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.secure.isolation import MOST_SETS, UnclearError, isolated


def of(text: str) -> frozenset[bytes]:
    return frozenset(letter.encode() for letter in text)


def solve(rows: list[list[Fraction]]) -> list[list[Fraction]]:
    """A basis of all c with Σ c_i rows[i] = 0."""
    count = len(rows)
    tagged = [[*row, *(Fraction(int(i == j)) for j in range(count))] for i, row in enumerate(rows)]
    width, done = len(rows[0]), 0
    for column in range(width):
        pivot = next((i for i in range(done, count) if tagged[i][column]), None)
        if pivot is None:
            continue
        tagged[done], tagged[pivot] = tagged[pivot], tagged[done]
        for i in range(count):
            if i != done and tagged[i][column]:
                ratio = tagged[i][column] / tagged[done][column]
                tagged[i] = [a - ratio * b for a, b in zip(tagged[i], tagged[done], strict=True)]
        done += 1
    return [row[width:] for row in tagged[done:]]


def rank(rows: list[list[Fraction]]) -> int:
    return len(rows) - len(solve(rows)) if rows and rows[0] else 0


def brute(opened: list[frozenset[bytes]], new: frozenset[bytes], at_most: int) -> bool:
    """Whether combinations that rest on some `at_most` sites hold more than the single sets among them do, and more
    than those without `new`."""
    sets = [s for s in set(opened) if s != new] + [new]
    sites = sorted(frozenset().union(*sets))
    full = [[Fraction(1), *(Fraction(int(site in s)) for site in sites)] for s in sets]
    if new in opened:
        return False
    for size in range(min(at_most, len(sites)) + 1):
        for kept in itertools.combinations(range(len(sites)), size):
            alone = [row for row, s in zip(full, sets, strict=True) if s <= {sites[j] for j in kept}]
            if rank(within(full, kept)) > rank(alone + within(full[:-1], kept)):
                return True
    return False


def within(rows: list[list[Fraction]], kept: tuple[int, ...]) -> list[list[Fraction]]:
    """A basis of the rows' combinations that vanish at all sites but `kept`."""
    if not rows:
        return []
    outside = [[Fraction(0), *(row[1 + j] for j in range(len(row) - 1) if j not in kept)] for row in rows]
    return [
        [sum((c * row[j] for c, row in zip(combination, rows, strict=True)), Fraction(0)) for j in range(len(rows[0]))]
        for combination in solve(outside)
    ]


SETS = st.lists(
    st.frozensets(st.sampled_from([b"b", b"c", b"d", b"e", b"f", b"g"]), min_size=1), min_size=1, max_size=5
)


@settings(max_examples=400, deadline=None)
@given(SETS, st.integers(1, 4))
def test_as_brute_force_says(sets: list[frozenset[bytes]], at_most: int) -> None:
    *opened, new = sets
    found = isolated(opened, new, at_most)
    assert (found is not None) == brute(opened, new, at_most)
    if found is not None:
        assert len(found) <= at_most


@pytest.mark.parametrize(
    ("opened", "new", "at_most", "expected"),
    [
        ([], "bc", 2, None),  # three sites: one sum is over two others, as many as t + 1
        (["bc"], "bc", 2, None),
        (["bcd"], "bc", 2, "d"),
        (["bc"], "bcd", 2, "d"),
        (["bcde"], "bc", 2, "de"),
        (["bcdef"], "bc", 2, None),
        (["bcd"], "efg", 2, None),  # partners of which none is in both
        (["bcd", "efg"], "hij", 2, None),
        (["bcdefg", "bcd"], "efg", 2, ""),  # the first less the other two is this site's own number
        (["bcde", "defg"], "bcfg", 2, "bc"),  # half of S1 + S3 - S2
        (["bcde", "bcfg"], "defg", 1, None),
        (["bcd", "bc"], "bce", 2, "e"),  # d was isolated before
        (["bcd", "bc"], "bcd", 2, None),
        (["bcd", "bce", "bde"], "cde", 2, "e"),
    ],
)
def test_examples(opened: list[str], new: str, at_most: int, expected: str | None) -> None:
    found = isolated([of(s) for s in opened], of(new), at_most)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found is not None
        assert len(found) == len(expected)


def test_hundred_sites_with_thirty_three_colluders() -> None:
    everybody = frozenset(bytes([u]) for u in range(99))
    assert isolated([everybody], everybody - {b"\1"}, 34) == {b"\1"}
    half = frozenset(bytes([u]) for u in range(50))
    assert isolated([everybody], half, 34) is None
    assert isolated([everybody, half], everybody - half, 34) == frozenset()


def test_too_many_sets_are_refused_and_strangers_do_not_count() -> None:
    chain = [frozenset({bytes([u]), bytes([u + 1])}) for u in range(MOST_SETS + 1)]
    with pytest.raises(UnclearError):
        isolated(chain[1:], chain[0], 1)
    strangers = [frozenset({bytes([2 * u]), bytes([2 * u + 1])}) for u in range(100)]
    assert isolated(strangers[1:], strangers[0], 3) is None
