"""A site that catches up: which rounds it leaves, and where it is ready for nothing so that others can begin."""

from __future__ import annotations

from typing import Any, cast

import pytest
from federation_fakes import Meeting

from fedhpc.relay.rounds.ready import largest_group, read_ready
from fedhpc.sums.over_relay import standing_aside
from fedhpc.sums.over_relay.access import thresholds_of
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.sums.over_relay.standing_aside import StandingAside

ME = 2
OPEN = {"sum": 7, "attempt": 1, "phase": "keys", "ready": [1, 2, 3, 4], "cohort": [1, 2, 3, 4], "late": [2]}
LOBBY = {"sum": 8, "attempt": 0, "phase": "ready", "ready": [1, 3, 4], "cohort": [], "late": [2]}


class Exchange:
    """Says where the federation stands, and remembers what it was told."""

    def __init__(self, *sums: Any) -> None:
        self.me, self.sums = ME, list(sums)
        self.told: list[tuple[str, int]] = []

    def standing(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def leave(self, round_: int) -> None:
        self.told.append(("LEAVE", round_))

    def put(self, round_: int, attempt: int, kind: str, data: bytes) -> None:
        assert attempt == 0
        read_ready(data)
        self.told.append((kind, round_))


def aside(exchange: Exchange, sites: int = 4, policy: str = "sync") -> StandingAside:
    party = Meeting(sites, cohort={"policy": policy}).session(ME).party
    return StandingAside(party, cast(RelayExchange, exchange), thresholds_of(party.agreement))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing_aside, "_FIRST_S", 0.0)


def test_it_leaves_what_waits_for_it_once() -> None:
    exchange = Exchange(OPEN, OPEN | {"sum": 9, "cohort": [1, 3, 4], "late": []})
    one = aside(exchange)
    assert not one.look()
    assert not one.look()
    assert exchange.told == [("LEAVE", 7)]
    exchange.sums = [OPEN | {"attempt": 2}]  # proposed again before the relay had looked
    one.look()
    assert exchange.told == [("LEAVE", 7), ("LEAVE", 7)]


def test_it_leaves_a_lobby_that_an_earlier_job_was_in() -> None:
    exchange = Exchange(LOBBY | {"ready": [2, 3], "late": [1, 4]})
    aside(exchange).look()
    assert exchange.told == [("LEAVE", 8)]


def test_it_is_ready_for_nothing_where_the_others_wait_for_it_alone() -> None:
    exchange = Exchange(LOBBY)
    one = aside(exchange)
    assert one.look()  # the relay forgets what it asked for
    exchange.sums = [LOBBY | {"ready": [1, 2, 3, 4], "late": []}]
    one.look()  # what it said itself is no reason to leave
    exchange.sums = [OPEN | {"sum": 8}]
    one.look()
    assert exchange.told == [("READY", 8), ("LEAVE", 8)]


def test_it_does_not_spoil_a_round_that_needs_all_again_and_again() -> None:
    exchange = Exchange(LOBBY)
    one = aside(exchange)
    for _ in range(5):
        one.look()
    assert exchange.told == [("READY", 8)] * 2


@pytest.mark.parametrize(("sites", "policy"), [(3, "sync"), (4, "quorum"), (4, "buffered")])
def test_where_it_would_help_nobody_it_is_silent(sites: int, policy: str) -> None:
    """Three sites cannot be without one; other policies go on by themselves."""
    exchange = Exchange(LOBBY | {"ready": [1, 3], "late": [2]})
    assert not aside(exchange, sites, policy).look()
    assert exchange.told == []


def test_not_before_a_model_could_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing_aside, "_FIRST_S", 1e9)
    exchange = Exchange(LOBBY)
    assert not aside(exchange).look()
    assert exchange.told == []


def test_nor_where_others_are_late_too() -> None:
    exchange = Exchange(LOBBY | {"ready": [1, 3], "late": [2, 4]})
    assert not aside(exchange).look()
    assert exchange.told == []


@pytest.mark.parametrize("said", [{"sum": "7"}, {"attempt": None}, {"ready": 3, "cohort": {}, "late": "x"}])
def test_what_the_relay_says_wrongly_is_nothing(said: dict[str, Any]) -> None:
    exchange = Exchange(OPEN | said, LOBBY | said)
    assert not aside(exchange).look()
    assert exchange.told == []


def test_it_is_never_the_largest_group_beside_the_others() -> None:
    """The relay proposes what most sites said; so nobody finds these values in M0."""
    nobody, _ = read_ready(standing_aside._NOBODYS)
    other, _ = read_ready(standing_aside._NOBODYS.replace(b"absent", b"train!"))
    found = largest_group({1: other, 2: nobody, 3: other}, any_base=True)
    assert found is not None
    assert found[0] == other
