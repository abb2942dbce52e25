"""What a site does first at a relay: it puts its signature there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedhpc.errors import PolicyError
from fedhpc.federation import join_relay

AGREEMENT = cast(Any, SimpleNamespace(hash=b"\xab" * 32))


class Exchange:
    """A relay that refuses `times` times; the clock moves with every sleep."""

    def __init__(self, times: int, what: str) -> None:
        self.times, self.what, self.puts, self.now = times, what, 0, 50.0

    def put(self, round_: int, attempt: int, kind: str, data: bytes) -> None:
        self.puts += 1
        assert (round_, attempt, kind, data) == (0, 0, "CONFIG", b"signed")
        if self.puts <= self.times:
            raise PolicyError(self.what)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    def act(exchange: Exchange) -> None:
        clock = SimpleNamespace(monotonic=lambda: exchange.now, sleep=exchange.sleep)
        monkeypatch.setattr(join_relay, "time", clock)
        join_relay._publish(cast(Any, exchange), b"signed", AGREEMENT)

    return act


FORBIDDEN = "the relay refused (403 forbidden): the key 12 is no site of federation ab"


def test_a_relay_that_reads_its_roster_a_moment_later_is_asked_again(publish: Any) -> None:
    exchange = Exchange(4, FORBIDDEN)
    publish(exchange)
    assert exchange.puts == 5
    assert exchange.now - 50 == 4 * 0.5


def test_a_relay_that_was_never_told_is_named(publish: Any) -> None:
    exchange = Exchange(1000, FORBIDDEN)
    with pytest.raises(PolicyError, match="no site of federation") as refused:
        publish(exchange)
    assert AGREEMENT.hash.hex() in refused.value.hint
    assert 5 < exchange.now - 50 < 10


def test_another_refusal_is_final(publish: Any) -> None:
    exchange = Exchange(1, "the relay refused (409 other-bytes): there is another signature")
    with pytest.raises(PolicyError, match="other-bytes"):
        publish(exchange)
    assert exchange.puts == 1
