"""Whom a round is proposed to, and when."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.cohort.policy import Propose, Situation, Wait, decide, least
from fedhpc.cohort.settings import CohortSettings
from fedhpc.cohort.staleness import check_staleness, discount
from fedhpc.errors import PolicyError


def known(sites: int = 5, threshold: int = 4, **changes: Any) -> Situation:
    fields: dict[str, Any] = {"needs_all": False, "ready": {}} | changes
    fields.setdefault("fitting", frozenset(fields["ready"]))
    return Situation(frozenset(range(1, sites + 1)), threshold, **fields)


def at(*pairs: tuple[int, float]) -> dict[int, float]:
    return dict(pairs)


FOUR = at((1, 10.0), (3, 20.0), (4, 30.0), (5, 40.0))
SYNC, QUORUM, BUFFERED = (CohortSettings(policy=p) for p in ("sync", "quorum", "buffered"))


def test_sync_waits_for_everybody() -> None:
    assert decide(SYNC, known(ready=FOUR), 1e9) == Wait()
    assert decide(SYNC, known(ready=FOUR | {2: 50.0}), 50.0) == Propose((1, 2, 3, 4, 5))


def test_sync_proposes_sites_that_differ_so_that_they_find_out() -> None:
    assert decide(SYNC, known(ready=FOUR | {2: 50.0}, fitting=frozenset([1, 2])), 50.0) == Propose((1, 2, 3, 4, 5))


def test_a_quorum_waits_for_more_from_the_moment_it_was_reached() -> None:
    settings = CohortSettings(policy="quorum", grace_s=100.0)
    assert decide(settings, known(ready=FOUR), 40.0) == Wait(140.0)
    assert decide(settings, known(ready=FOUR), 139.9) == Wait(140.0)
    assert decide(settings, known(ready=FOUR), 140.0) == Propose((1, 3, 4, 5))
    assert decide(settings, known(ready=FOUR | {2: 41.0}), 41.0) == Propose((1, 2, 3, 4, 5))
    assert decide(settings, known(sites=6, ready=FOUR | {2: 41.0}), 41.0) == Wait(140.0)
    assert decide(settings, known(ready=at((1, 0.0), (2, 0.0), (3, 0.0))), 1e9) == Wait()


def test_a_quorum_of_more_than_the_threshold() -> None:
    settings = CohortSettings(policy="quorum", minimum=5, grace_s=1.0)
    assert decide(settings, known(sites=6, ready=FOUR), 1e9) == Wait()
    assert decide(settings, known(sites=6, ready=FOUR | {6: 60.0}), 60.5) == Wait(61.0)


def test_buffered_begins_at_once() -> None:
    assert decide(BUFFERED, known(ready=FOUR), 40.0) == Propose((1, 3, 4, 5))
    assert decide(BUFFERED, known(ready=at((1, 1.0), (2, 1.0), (3, 1.0))), 1e9) == Wait()


@pytest.mark.parametrize("settings", [QUORUM, BUFFERED])
def test_sites_that_differ_do_not_make_a_quorum_but_come_along(settings: CohortSettings) -> None:
    five = FOUR | {2: 50.0}
    assert decide(settings, known(sites=6, ready=five, fitting=frozenset([1, 2, 3])), 1e9) == Wait()
    found = decide(settings, known(sites=6, ready=five, fitting=frozenset([1, 2, 3, 4])), 1e9)
    assert found == Propose((1, 2, 3, 4, 5))


@pytest.mark.parametrize("settings", [SYNC, QUORUM, BUFFERED])
def test_some_sums_need_everybody_whatever_the_policy(settings: CohortSettings) -> None:
    assert decide(settings, known(ready=FOUR, needs_all=True), 1e9) == Wait()
    assert decide(settings, known(ready=FOUR | {2: 0.0}, needs_all=True), 0.0) == Propose((1, 2, 3, 4, 5))


@pytest.mark.parametrize("settings", [SYNC, QUORUM, BUFFERED])
def test_a_further_attempt_is_over_those_who_are_alive(settings: CohortSettings) -> None:
    five = FOUR | {2: 50.0}
    assert decide(settings, known(ready=five, alive=frozenset([1, 2, 3])), 1e9) == Wait()
    expected = Wait() if settings is SYNC else Propose((1, 2, 3, 4))
    assert decide(settings, known(ready=five, alive=frozenset([1, 2, 3, 4])), 1e9) == expected
    assert decide(settings, known(ready=five, alive=frozenset(range(1, 6))), 1e9) == Propose((1, 2, 3, 4, 5))


@pytest.mark.parametrize("settings", [SYNC, QUORUM, BUFFERED])
def test_an_opened_round_meets_again_over_the_same_set(settings: CohortSettings) -> None:
    opened = frozenset([1, 3, 4, 5])
    five = FOUR | {2: 50.0}
    assert decide(settings, known(ready=five, opened=opened, alive=frozenset([1, 2, 3, 4])), 1e9) == Wait()
    assert decide(settings, known(ready=five, opened=opened, alive=frozenset(range(1, 6))), 0.0) == Propose(
        (1, 3, 4, 5)
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[CohortSettings, Situation, float]:
    sites = draw(st.integers(3, 9))
    threshold = draw(st.integers(2, sites))
    numbers = st.integers(1, sites)
    ready = draw(st.dictionaries(numbers, st.floats(0, 100), max_size=sites))
    subset = st.frozensets(numbers)
    policy = draw(st.sampled_from(["sync", "quorum", "buffered"]))
    minimum = draw(st.none() | st.integers(2, sites))
    settings = CohortSettings(policy=policy, minimum=minimum, grace_s=draw(st.floats(0.1, 50)))
    opened = draw(st.none() | st.frozensets(numbers, min_size=threshold))
    situation = Situation(
        frozenset(range(1, sites + 1)),
        threshold,
        draw(st.booleans()),
        ready,
        draw(subset) & frozenset(ready),
        draw(st.none() | subset),
        opened,
    )
    return settings, situation, draw(st.floats(0, 200))


@given(situations())
def test_a_cohort_is_never_too_small_nor_of_sites_that_are_not_there(
    case: tuple[CohortSettings, Situation, float],
) -> None:
    settings, situation, now = case
    found = decide(settings, situation, now)
    if isinstance(found, Wait):
        assert found.until is None or found.until > now
        return
    cohort = frozenset(found.cohort)
    assert found.cohort == tuple(sorted(cohort))
    assert len(cohort) >= situation.threshold
    assert cohort <= frozenset(situation.ready)
    assert situation.alive is None or cohort <= situation.alive
    assert situation.opened is None or cohort == situation.opened
    if situation.opened is None and (situation.needs_all or settings.policy == "sync"):
        assert cohort == situation.sites
    if situation.opened is None and not situation.needs_all and settings.policy != "sync":
        assert len(cohort & situation.fitting) >= least(settings, situation.threshold)


@given(situations(), st.floats(0.1, 1000))
def test_waiting_long_enough_is_enough(case: tuple[CohortSettings, Situation, float], more: float) -> None:
    """Who may be proposed may be proposed later too, and at the time that a wait names."""
    settings, situation, now = case
    found = decide(settings, situation, now)
    if isinstance(found, Propose):
        assert decide(settings, situation, now + more) == found
    elif found.until is not None:
        assert isinstance(decide(settings, situation, found.until), Propose)


# --- staleness


@given(st.integers(0, 1000), st.floats(0, 10))
def test_an_older_update_counts_less_and_a_fresh_one_counts_whole(behind: int, exponent: float) -> None:
    settings = CohortSettings(policy="buffered", staleness=1000, discount=exponent)
    assert discount(settings, 0) == 1.0
    assert 0 < discount(settings, behind) <= 1.0
    if behind:
        assert discount(settings, behind) <= discount(settings, behind - 1)
    assert math.isclose(discount(settings, behind), math.exp(-exponent * math.log1p(behind)))


@pytest.mark.parametrize("behind", [-1, 3, 10**9])
def test_beyond_the_bound_an_update_is_refused(behind: int) -> None:
    settings = CohortSettings(policy="buffered", staleness=2)
    check_staleness(settings, 2)
    with pytest.raises(PolicyError, match=f"began {behind} rounds behind"):
        discount(settings, behind)
