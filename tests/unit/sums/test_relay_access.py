"""What a site does first at a relay: it puts its signature there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from federation_fakes import journal_in, known
from secure_fakes import key_of

from fedhpc.errors import PolicyError
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.sums.over_relay import access

LOST = "its ledger knows nothing of it"
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
        monkeypatch.setattr(access, "time", clock)
        access._publish(cast(Any, exchange), b"signed", AGREEMENT)

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


class Standing:
    """Where the relay says that the federation stands."""

    def __init__(self, **said: Any) -> None:
        self.said = said

    def standing(self) -> dict[str, Any]:
        return self.said


def party(home: Path, number: int = 1) -> Any:
    """Its `journal` is to be closed."""
    return SimpleNamespace(journal=journal_in(home), name="aa", number=number)


def refuse(of: Any, **said: Any) -> None:
    try:
        access.refuse_forgotten_sums(of, cast(Any, Standing(**said)))
    finally:
        of.journal.close()


@pytest.mark.parametrize("said", [{"done": 3}, {"sums": [{"ready": [1, 2]}]}, {"sums": [{"cohort": [1]}]}])
def test_a_site_without_run_directory_and_ledger_does_not_sum_again(tmp_path: Path, said: dict[str, Any]) -> None:
    """Not at its second start either, when the ledger of the first one is there; other federations go on."""
    for _ in range(3):
        with pytest.raises(PolicyError, match=LOST) as refused:
            refuse(party(tmp_path), **said)
        assert "`fedhpc federation next --from-model FILE`" in refused.value.hint
    for fresh in (True, False):
        other = journal_in(tmp_path, known("another"))
        other.close()
        assert other.fresh == fresh


@pytest.mark.parametrize("said", [{}, {"done": 0, "sums": []}, {"sums": [{"ready": [2]}]}, {"sums": "x"}])
def test_a_new_site_does(tmp_path: Path, said: dict[str, Any]) -> None:
    refuse(party(tmp_path), **said)


def test_a_ledger_that_is_there_is_believed(tmp_path: Path) -> None:
    """Its site was there once and has summed nothing, or has summed: its own word counts."""
    party(tmp_path).journal.close()
    refuse(party(tmp_path), done=3)
    of = party(tmp_path)
    of.journal.admit(LedgerEntry(1, "n", key_of("i"), key_of("f"), ()))
    refuse(of, done=3)
