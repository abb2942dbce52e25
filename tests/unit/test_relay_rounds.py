"""Rounds at the relay, step by step: a real store, a clock turned by hand."""

from __future__ import annotations

from pathlib import Path

from relay_fakes import CONFIG, Hand, Relay, all_ready

from fedhpc.secure.transcript import tree


def test_a_round_from_ready_to_done(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3)
    assert relay.only_round()["late"] == [4]
    assert "1/1/M0" not in relay.names()
    all_ready(relay, 4)
    assert relay.get("1/1/M0")["cohort"] == [[u, "11" * 32] for u in (1, 2, 3, 4)]
    assert relay.get("1/0/A1") == {}
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M5")
    assert relay.get("1/1/U1") == relay.get("1/1/U2") == [1, 2, 3, 4]
    total = hand.sum_over(1, 2, 3, 4)
    assert relay.raw("1/1/Y") == total
    assert relay.get("1/1/M4r") == {"sum": tree(total).hex(), "u3": [1, 2, 3, 4]}
    hand.send("M6", 1, 2)
    relay.settle()
    assert relay.only_round()["phase"] == "results"
    hand.send("M6", 3)
    relay.settle()
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": [1, 2, 3, 4]}
    assert relay.status()["done"] == 1
    assert relay.status()["rounds"] == []
    assert not [n for n in relay.names(CONFIG) if "M3v" in n]
