"""A site that waits at the relay can be told to leave: in a lobby at once, in an attempt only when it must."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedhpc.errors import InterruptedRun, PeersError, PolicyError
from fedhpc.federation.party import RoundOverError
from fedhpc.secure.suite import SHA256
from fedhpc.sums.over_relay import access
from fedhpc.sums.over_relay.access import _prove_configuration, _Retries
from fedhpc.sums.over_relay.exchange import Interrupts, RelayExchange
from fedhpc.sums.over_relay.lobby import Lobby
from fedhpc.sums.over_relay.orders import CLOSED, CUT_OFF, SumFetch, Upload, end_if_stopped
from fedhpc.transport.https.retry import Retry
from fedhpc.transport.listing import Entry

CONFIG = b"c" * 32


class Client:
    """A relay whose long polls hang until `come` is called, and that keeps what is put."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.entries: list[Entry] = []
        self.puts: list[tuple[str, bytes]] = []
        self.asked = threading.Event()
        self.answered = threading.Event()
        self.standing: dict[str, Any] = {}

    def listing(self, config: str, round_: int, attempt: int, after: str, wait_s: float, until: Any) -> Any:
        self.asked.set()
        self.come.wait(60)
        self.come.clear()
        self.answered.set()
        return self.entries, "cursor"

    def put(self, name: Any, data: bytes) -> None:
        self.puts.append((f"{name.round}/{name.attempt}/{name.name}", data))

    def get_json(self, path: str) -> dict[str, Any]:
        return self.standing


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def exchange(client: Client) -> RelayExchange:
    return RelayExchange(cast(Any, client), CONFIG, 2)


def left(call: Any) -> str:
    """Why `call` was interrupted."""
    with pytest.raises(InterruptedRun) as stopped:
        call()
    assert stopped.value.exit_code == 75
    return stopped.value.what


@pytest.mark.parametrize(
    ("round_", "attempt", "which"), [(3, 0, "idle"), (0, 0, "idle"), (0, 1234, "idle"), (3, 1, "busy")]
)
def test_which_word_ends_which_wait(exchange: RelayExchange, round_: int, attempt: int, which: str) -> None:
    """A lobby, the joining and the catching up are idle; within an attempt others wait for this site."""
    exchange.interrupts = Interrupts(lambda: "idle", lambda: "busy")
    watch = exchange.watch(round_, attempt)
    why = left(lambda: watch.wait(lambda w: False, math.inf))
    assert why == f"left while it waited for other sites: {which}"


def test_a_word_ends_a_wait_whose_poll_hangs(exchange: RelayExchange, client: Client) -> None:
    """Said a while after the wait began. The poll is never answered, and nobody waits for it."""
    said = threading.Event()
    exchange.interrupts = Interrupts(lambda: "told" if said.is_set() else "")
    threading.Thread(target=lambda: (client.asked.wait(20), said.set()), daemon=True).start()
    left(lambda: exchange.watch(3, 0).wait(lambda w: False, math.inf))
    assert said.is_set()
    assert not client.answered.is_set()


def test_what_has_come_counts_before_a_word_does(exchange: RelayExchange, client: Client) -> None:
    client.entries = [cast(Any, SimpleNamespace(name="A1", body=b"{}"))]
    client.come.set()
    asked = iter(range(10**9))
    exchange.interrupts = Interrupts(lambda: "told" if next(asked) else "")
    assert exchange.watch(3, 0).wait(lambda w: "A1" in w, time.monotonic() + 60)


def test_a_deadline_is_no_interruption(exchange: RelayExchange) -> None:
    assert exchange.watch(3, 0).wait(lambda w: False, time.monotonic() + 0.05) is False


# --- leaving


def test_leave_is_said_for_the_round(exchange: RelayExchange, client: Client) -> None:
    exchange.leave(5)
    assert client.puts == [("5/0/LEAVE/2", b"{}")]


@pytest.mark.parametrize("error", [PeersError("the relay is gone"), PolicyError("forbidden"), OSError("no route")])
def test_a_relay_that_does_not_hear_it_does_not_matter(
    exchange: RelayExchange, client: Client, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: Any, data: bytes) -> None:
        raise error

    monkeypatch.setattr(client, "put", refuse)
    exchange.leave(5)


def test_leaving_does_not_wait_for_a_relay_that_hangs(
    exchange: RelayExchange, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhpc.sums.over_relay.exchange._LEAVE_S", 0.05)
    hangs = threading.Event()
    monkeypatch.setattr(client, "put", lambda name, data: hangs.wait(60))
    exchange.leave(5)
    hangs.set()


# --- the lobby


def lobby(exchange: RelayExchange, deadline_s: float = 1000.0) -> Lobby:
    agreement = SimpleNamespace(cohort=SimpleNamespace(deadline_s=deadline_s), names=("aa", "bb", "cc"))
    party = SimpleNamespace(agreement=agreement, name="bb")
    plan = SimpleNamespace(round_=3, purpose="train")
    never = SimpleNamespace(allowed=False, deadline=math.inf, look=lambda watch: None)
    return Lobby(cast(Any, party), exchange, cast(Any, plan), cast(Any, None), cast(Any, never))


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
def test_a_job_that_waited_as_long_as_it_may_is_submitted_again(
    exchange: RelayExchange, client: Client, wait_s: float
) -> None:
    client.standing = {"sums": [{"sum": 3, "late": [1, 3]}]}
    exchange.interrupts = Interrupts(wait_s=wait_s)
    why = left(lambda: lobby(exchange).next_attempt(0))
    assert why == "round 3 did not begin within 0 s: the relay waits for site aa, cc"


def test_a_chain_that_waited_as_agreed_is_submitted_again(exchange: RelayExchange) -> None:
    exchange.interrupts = Interrupts(wait_s=math.inf)
    why = left(lambda: lobby(exchange, 0.05).next_attempt(0))
    assert why.startswith("round 3 did not begin within 0 s")


def test_an_inline_job_that_waited_as_agreed_has_failed(exchange: RelayExchange) -> None:
    with pytest.raises(PeersError) as late:
        lobby(exchange, 0.05).next_attempt(0)
    assert late.value.exit_code == 69


def test_a_round_that_ended_is_over_also_at_the_deadline(exchange: RelayExchange, client: Client) -> None:
    client.entries = [cast(Any, SimpleNamespace(name="DONE", body=None))]
    client.come.set()
    exchange.interrupts = Interrupts(wait_s=60.0)
    with pytest.raises(RoundOverError):
        lobby(exchange).next_attempt(0)


# --- joining


def joining(exchange: RelayExchange, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, deadline_s: float = 600.0) -> None:
    """Until every site has signed; nobody else ever does."""
    monkeypatch.setattr(access, "Approvals", lambda folder: SimpleNamespace(own=lambda agreement: b"signed"))
    members = [SimpleNamespace(number=u, name=n) for u, n in enumerate(("aa", "bb", "cc"), start=1)]
    agreement = SimpleNamespace(hash=CONFIG, cohort=SimpleNamespace(deadline_s=deadline_s))
    before = SimpleNamespace(ledger=(), fresh=False)  # a run directory that is there
    party = SimpleNamespace(agreement=agreement, members=members, number=2, journal=before)
    mine = SimpleNamespace(base=tmp_path)
    _prove_configuration(cast(Any, party), exchange, cast(Any, mine), tmp_path / "signatures.json")


def test_joining_ends_when_told(exchange: RelayExchange, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange.interrupts = Interrupts(lambda: "told to by SIGUSR2")
    why = left(lambda: joining(exchange, tmp_path, monkeypatch))
    assert "told to by SIGUSR2" in why


def test_joining_waits_as_long_as_the_life_says(
    exchange: RelayExchange, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange.interrupts = Interrupts(wait_s=0.05)
    why = left(lambda: joining(exchange, tmp_path, monkeypatch))
    assert why == "site aa, bb, cc has not started with this federation.toml yet"
    exchange.interrupts = Interrupts(wait_s=math.inf)
    left(lambda: joining(exchange, tmp_path, monkeypatch, deadline_s=0.05))
    exchange.interrupts = Interrupts()
    with pytest.raises(PeersError, match="has not signed the configuration"):
        joining(exchange, tmp_path, monkeypatch, deadline_s=0.05)


# --- a relay that cannot be reached


RETRY = Retry("send READY/2", "connection refused", 3.0, 200.0)


def test_who_has_no_time_left_does_not_try_again(capsys: pytest.CaptureFixture[str]) -> None:
    word = [""]
    retries = _Retries(cast(Any, SimpleNamespace(must_leave=lambda: word[0])), tells=True, met=True)
    retries(RETRY)
    retries(RETRY)
    assert capsys.readouterr().err.count("waiting for the relay (connection refused)") == 1
    word[0] = "the job ends in 60 s"
    why = left(lambda: retries(RETRY))
    assert why == "left while the relay could not be reached (connection refused): the job ends in 60 s"
    silent = _Retries(cast(Any, SimpleNamespace(must_leave=lambda: "")), tells=False, met=True)
    silent(RETRY)
    assert capsys.readouterr().err == ""


def test_a_chain_whose_relay_is_away_leaves_at_the_end_of_patience(capsys: pytest.CaptureFixture[str]) -> None:
    last = dataclasses.replace(RETRY, seconds_left=0.0, patience_left_s=0.0)
    hands_on = [False]
    life = cast(Any, SimpleNamespace(must_leave=lambda: "", hands_on=lambda: hands_on[0]))
    retries = _Retries(life, tells=True, met=True)
    retries(last)  # the PeersError that follows says it
    assert capsys.readouterr().err == ""
    hands_on[0] = True
    retries(RETRY)
    assert left(lambda: retries(last)) == "the relay cannot be reached: connection refused"
    _Retries(life, tells=True, met=False)(last)


def test_all_ranks_leave_when_one_is_cut_off() -> None:
    """Also if another one's part was refused: the vector is kept, and the next job asks again."""
    moved = bytes(24)
    for answers in ([CUT_OFF, moved], [moved, CUT_OFF], [CLOSED, CUT_OFF]):
        for take in (
            lambda a: Upload.of(cast(Any, None), 10, a, None, SHA256),
            lambda a: SumFetch.of(10, a, SHA256, names_sum=True),
        ):
            with pytest.raises(InterruptedRun, match="could not be reached in time") as stopped:
                take(answers)
            assert stopped.value.agreed
    assert Upload.of(cast(Any, None), 10, [moved, CLOSED], None, SHA256) is None
    assert SumFetch.of(10, [CLOSED, moved], SHA256, names_sum=True) is None


def test_the_leaders_word_ends_every_rank() -> None:
    end_if_stopped(b"D" + b"S" * 8)
    with pytest.raises(InterruptedRun, match=r"^told to$") as stopped:
        end_if_stopped(b"Stold to")
    assert stopped.value.agreed
