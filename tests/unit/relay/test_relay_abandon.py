"""ABANDON at the relay: a round over everyone ends without a sum once τ sites stand behind one next state."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from relay_fakes import STATE, Hand, Relay, all_ready, federation, ready
from secure_fakes import key_of

from fedhpc.relay.problems import Problem
from fedhpc.secure.transcript import canon, sign_message

NEXT_STATE = "33" * 32  # as in Hand's M6
ALL = (1, 2, 3, 4)


def abandon(relay: Relay, *sites: int, state: str = NEXT_STATE, round_: int = 1) -> None:
    for u in sites:
        identity = Ed25519PrivateKey.from_private_bytes(key_of("identity", u))
        message = sign_message(identity, "ABANDON", u, bytes.fromhex(STATE), {"state": state})
        relay.put(f"{round_}/0/ABANDON/{u}", message)
    relay.settle()


def everyone(relay: Relay, *sites: int, round_: int = 1) -> None:
    for u in sites:
        relay.put(f"{round_}/0/READY/{u}", ready(everyone=1, base="00" * 32, purpose="measured after round 1"))
    relay.settle()


def test_sites_in_the_lobby_do_without_the_one_that_does_not_come(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    everyone(relay, 1, 2, 3)
    abandon(relay, 1, 2)
    assert "1/0/DONE" not in relay.names()
    abandon(relay, 3)
    assert relay.get("1/0/DONE") == {"attempt": 0, "u3": []}
    assert relay.status()["done"] == 1
    assert relay.status()["sums"] == []
    (times,) = relay.status()["times"]
    assert (times["done"], times["sites"]) == (True, [])
    everyone(relay, 4)
    assert "1/1/M0" not in relay.names()
    for u in ALL:  # the next round goes on as if nothing had been
        relay.put(f"2/0/READY/{u}", ready())
    relay.settle()
    Hand(relay, round_=2).play(*ALL)
    assert relay.get("2/0/DONE") == {"attempt": 1, "u3": [1, 2, 3, 4]}


def test_results_and_abandoning_count_together_for_one_state(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    everyone(relay, *ALL)
    hand = Hand(relay)
    hand.play(*ALL, upto="M5")
    hand.send("M6", 1, 2)
    relay.settle()
    abandon(relay, 2)  # it holds the sum, and does not wait for the others' M6: one site, not two
    assert "1/0/DONE" not in relay.names()
    abandon(relay, 4, state="34" * 32)
    assert "1/0/DONE" not in relay.names()
    abandon(relay, 3)
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": []}


def test_an_attempt_does_not_wait_for_who_does_without(tmp_path: Path) -> None:
    """Nor is another proposed: a sum over everyone lacks that site for good."""
    relay = Relay(tmp_path)
    everyone(relay, *ALL)
    hand = Hand(relay)
    hand.send("M1", 1, 2, 3)
    abandon(relay, 4)
    assert "keys: 3 of 4" in relay.get("1/1/NEXT")["why"]
    relay.later(1000, ALL)
    assert "1/2/M0" not in relay.names()
    everyone(relay, 4)  # a site that starts again repeats what it said
    relay.later(1000, ALL)
    assert "1/2/M0" not in relay.names()
    relay.restart()
    relay.hear(ALL)
    relay.settle()
    assert "1/2/M0" not in relay.names()
    abandon(relay, 1, 2)
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": []}


def test_a_sum_whose_vectors_are_all_there_is_still_opened(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    everyone(relay, *ALL)
    hand = Hand(relay)
    hand.play(*ALL, upto="M4")
    abandon(relay, 4)
    hand.send("M5", 1, 2, 3)
    hand.send("M6", 1, 2, 3)
    relay.settle()
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": [1, 2, 3, 4]}


def test_abandoning_a_round_that_may_lack_sites_is_leaving_it(tmp_path: Path) -> None:
    """One hostile site does not stop a training round by it."""
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, *ALL)
    hand = Hand(relay)
    hand.send("M1", 1, 2, 3)
    abandon(relay, 4)
    assert relay.get("1/1/U1") == [1, 2, 3]
    hand.send("M2", 1, 2, 3)
    relay.settle()
    hand.vectors(1, 2, 3)
    relay.settle()
    hand.send("M4", 1, 2, 3)
    hand.send("M5", 1, 2, 3)
    hand.send("M6", 1, 2, 3)
    relay.settle()
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": [1, 2, 3]}


@pytest.mark.parametrize(
    "data",
    [b"rubbish", canon({"state": NEXT_STATE}), None],
)
def test_what_is_no_abandoning_counts_for_nobody(tmp_path: Path, data: bytes | None) -> None:
    relay = Relay(tmp_path)
    everyone(relay, *ALL)
    identity = Ed25519PrivateKey.from_private_bytes(key_of("identity", 1))
    other = sign_message(identity, "ABANDON", 1, bytes.fromhex(STATE), {"state": NEXT_STATE, "more": 1})
    relay.put("1/0/ABANDON/1", data or other)
    relay.settle()
    abandon(relay, 2, 3)
    assert "1/0/DONE" not in relay.names()
    abandon(relay, 4)
    assert "1/0/DONE" in relay.names()


def test_the_gate(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    with pytest.raises(Problem) as early:
        abandon(relay, 1)
    assert early.value.kind == "forbidden"
    everyone(relay, *ALL)
    with pytest.raises(Problem) as long:
        relay.put("1/0/ABANDON/1", b"x" * 5000)
    assert long.value.kind == "too-large"
    with pytest.raises(Problem):
        relay.put("1/1/ABANDON/1", b"{}")  # within an attempt there is none
    abandon(relay, 1, 2, 3)
    abandon(relay, 2)  # repeating what is there succeeds
    with pytest.raises(Problem) as late:
        abandon(relay, 4)
    assert late.value.kind == "too-late"
