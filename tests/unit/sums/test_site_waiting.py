"""A site that waits for others says so, ever more rarely, and never longer than it may."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedhpc.sums.over_relay import waiting as patience
from fedhpc.sums.over_relay.exchange import RelayExchange, Watch
from fedhpc.transport.link_problems import RelayProblem


class Clock:
    """A watch on which nothing comes before `comes`; waiting moves the clock."""

    def __init__(self, comes: float) -> None:
        self.now, self.comes = 1000.0, 1000.0 + comes

    def wait(self, seen: Any, deadline: float, *, until: Any) -> bool:
        assert until == ("DONE", 1)
        self.now = min(deadline, self.comes)
        return self.now >= self.comes


@pytest.mark.parametrize(
    ("standing", "told"),
    [
        ({"sums": [{"sum": 7, "late": [1]}, {"sum": 8, "late": [1, 3]}]}, "the relay waits for site aa, cc"),
        ({"sums": [{"sum": 8, "late": []}]}, "the relay waits for no site"),
        ({"sums": [{"sum": 7, "late": [1]}]}, "the relay knows nothing of it"),
        ({"rounds": "none"}, "the relay knows nothing of it"),
    ],
)
def test_late_sites_are_named(standing: dict[str, Any], told: str) -> None:
    exchange = SimpleNamespace(standing=lambda: standing)
    assert patience.late_sites(cast(RelayExchange, exchange), ["aa", "bb", "cc"], 8) == told


def test_a_relay_that_does_not_say_for_whom_it_waits_costs_a_name() -> None:
    def standing() -> dict[str, Any]:
        raise RelayProblem(404, "absent", "there is nothing at /v1/federations/c")

    told = patience.late_sites(cast(RelayExchange, SimpleNamespace(standing=standing)), ["aa"], 8)
    assert told.startswith("the relay does not say for whom it waits (the relay refused (404 absent)")


@pytest.mark.parametrize(
    ("comes", "deadline", "found", "told_at"),
    [
        (5, 100, True, []),
        (75, 1000, True, [10, 30, 70]),
        (5000, 2000, False, [10, 30, 70, 150, 310, 630, 1230, 1830]),
        (5000, 10, False, []),
    ],
)
def test_people_are_told(
    comes: float,
    deadline: float,
    found: bool,
    told_at: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock(comes)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with caplog.at_level(logging.WARNING):
        answer = patience.wait_telling(
            cast(Watch, clock), lambda w: False, 1000 + deadline, lambda: f"{clock.now - 1000:.0f}", ("DONE", 1), 10
        )
    assert answer is found
    assert [record.getMessage() for record in caplog.records] == [f"waiting: {at}" for at in told_at]
