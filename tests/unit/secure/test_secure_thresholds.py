"""Who may collude, be lost and must answer; and who masks with whom."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.errors import PolicyError
from fedhpc.secure.thresholds import MAX_SITES, Thresholds, check_degree, choose_thresholds, neighbours


@pytest.mark.parametrize(
    ("sites", "t", "tau", "d"),
    [(3, 1, 3, 0), (4, 1, 3, 1), (5, 1, 4, 1), (10, 3, 7, 3), (30, 9, 20, 10), (100, 33, 67, 33)],
)
def test_table_of_the_protocol(sites: int, t: int, tau: int, d: int) -> None:
    found = choose_thresholds(sites)
    assert (found.colluders, found.threshold, found.losses) == (t, tau, d)


@pytest.mark.parametrize("sites", range(3, MAX_SITES + 1))
def test_defaults_are_safe(sites: int) -> None:
    found = choose_thresholds(sites)
    t, tau = found.colluders, found.threshold
    assert t >= 1
    assert 2 * tau > sites + t
    assert max(3, t + 2) <= tau <= sites
    # Two sets that could each collect τ answers need more honest sites than there are.
    assert 2 * (tau - t) > sites - t


@given(st.integers(3, 100), st.integers(-2, 102), st.integers(-2, 102))
def test_configured_values_are_taken_exactly_if_safe(sites: int, t: int, tau: int) -> None:
    safe = t >= 1 and 2 * tau > sites + t and max(3, t + 2) <= tau <= sites
    if safe:
        assert choose_thresholds(sites, t, tau) == Thresholds(sites, t, tau)
    else:
        with pytest.raises(PolicyError, match=f"t = {t}|colluders = {t}") as caught:
            choose_thresholds(sites, t, tau)
        assert caught.value.exit_code == 77


def test_numbers_are_in_the_refusal() -> None:
    with pytest.raises(PolicyError, match="N = 5, colluders t = 1, threshold τ = 3") as caught:
        choose_thresholds(5, 1, 3)
    assert "6 > 6" in caught.value.hint


@pytest.mark.parametrize("sites", [0, 1, 2])
def test_too_few_sites(sites: int) -> None:
    with pytest.raises(PolicyError, match=f"^{sites} site"):
        choose_thresholds(sites)


def test_two_sites_only_when_accepted() -> None:
    assert choose_thresholds(2, accept_two_sites=True) == Thresholds(2, 0, 2)
    assert choose_thresholds(2, 0, 2, accept_two_sites=True).losses == 0
    for t, tau in ((1, None), (None, 1), (None, 3)):
        with pytest.raises(PolicyError, match="two sites"):
            choose_thresholds(2, t, tau, accept_two_sites=True)
    with pytest.raises(PolicyError):
        choose_thresholds(1, accept_two_sites=True)
    assert choose_thresholds(3, accept_two_sites=True) == choose_thresholds(3)


def test_too_many_sites() -> None:
    with pytest.raises(PolicyError, match="at most 100"):
        choose_thresholds(101)


def test_degree() -> None:
    ten = choose_thresholds(10)  # t + d + 1 = 7
    for degree in (1, 2, 6, 7, 9):
        with pytest.raises(PolicyError, match=f"degree = {degree}"):
            check_degree(degree, ten)
    check_degree(8, ten)


@given(st.integers(2, 40), st.integers(0, 20))
def test_neighbours_are_symmetric(count: int, half: int) -> None:
    degree = 2 * half
    graph = [neighbours(p, count, degree) for p in range(count)]
    for place, near in enumerate(graph):
        assert place not in near
        assert near == sorted(set(near))
        assert len(near) == (count - 1 if degree == 0 or degree >= count - 1 else degree)
        assert all(place in graph[other] for other in near)
    if 0 < degree < count - 1:
        assert graph[0] == sorted({*range(1, half + 1), *range(count - half, count)})


@pytest.mark.parametrize(("count", "degree", "removed"), [(9, 4, 3), (8, 6, 5), (10, 2, 1)])
def test_graph_stays_connected_without_any_k_minus_1_sites(count: int, degree: int, removed: int) -> None:
    graph = [set(neighbours(p, count, degree)) for p in range(count)]
    for gone in combinations(range(count), removed):
        left = set(range(count)) - set(gone)
        reached, todo = set(), [min(left)]
        while todo:
            place = todo.pop()
            if place not in reached:
                reached.add(place)
                todo += graph[place] & left
        assert reached == left
