"""Which objects a site may write, and when: everything else is refused before a byte is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from relay_fakes import CONFIG, NBYTES, Hand, Relay, all_ready, federation, ready

from fedhpc.relay.problems import Problem
from fedhpc.secure.message_kinds import max_bytes
from fedhpc.wire.object_names import ObjectName


def ask(relay: Relay, path: str, length: int = 10) -> str:
    """'' if the gate lets it in, else the kind of problem."""
    try:
        relay.coordinator.check_write(ObjectName.parse(f"{CONFIG}/{path}"), length, None)
    except Problem as problem:
        return problem.kind
    return ""


def answers(relay: Relay, *paths: str) -> dict[str, str]:
    return {path: ask(relay, path, NBYTES if "M3v" in path else 10) for path in paths}


def test_names_that_no_round_uses(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    for path in (
        "1/0/M1/1",
        "1/0/A2/1",
        "1/0/READY/1/2",
        "1/0/DONE/1",
        "1/1/READY/1",
        "1/1/M7/1",
        "1/1/M1/1/2",
        "1/1/Y/1",
        "1/1/M1/5",
        "1/2/M1/1",
        "2/1/M1/1",
        "0/0/NEED/1",
        "0/0/V/1",
        "0/0/CONFIG/1/2",
        "0/5/CONFIG/1",
        "0/5/STATE/2/2",
        "0/5/V/1/2",
        f"{1 << 53}/0/READY/1",
        f"0/{1 << 53}/NEED/1",
    ):
        assert ask(relay, path) == "forbidden", path
    assert answers(relay, "0/0/CONFIG/1", "0/0/FEATURES/1", "0/5/NEED/1", "7/0/READY/1", "1/1/M1/1") == {
        "0/0/CONFIG/1": "",
        "0/0/FEATURES/1": "",
        "0/5/NEED/1": "",
        "7/0/READY/1": "",
        "1/1/M1/1": "",
    }


def test_messages_open_with_the_set_before_them_and_close_with_their_own(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(6))  # τ = 4
    names = ("M1", "M2", "M3", "M3v", "M4", "M5", "M6")
    all_ready(relay, *range(1, 7))
    hand = Hand(relay)

    def of(u: int) -> list[str]:
        return [ask(relay, f"1/1/{name}/{u}", NBYTES if name == "M3v" else 10) for name in names]

    assert of(1) == of(6) == ["", *["forbidden"] * 6]
    hand.send("M1", 1, 2, 3, 4, 5)
    relay.later(121)
    assert of(1) == ["", "", *["forbidden"] * 5]
    assert of(6) == ["too-late", "too-late", *["forbidden"] * 5]
    hand.send("M2", 1, 2, 3, 4)
    relay.later(121)
    assert of(1) == ["", "", "", "", "forbidden", "forbidden", "forbidden"]
    assert of(5) == ["", *["too-late"] * 3, *["forbidden"] * 3]
    hand.vectors(1, 2, 3, 4)
    relay.settle()
    assert of(1) == [""] * 7
    assert of(5) == ["", *["too-late"] * 6]
    hand.send("M4", 1, 2, 3, 4)
    relay.later(241)
    assert of(1) == ["", "", "", "too-late", "", "", ""]  # NEXT: what is there may be repeated, the vector is gone
    assert of(5) == ["", *["too-late"] * 6]
    relay.later(0, [1, 2, 3, 4, 5, 6])
    again = Hand(relay, attempt=2)
    assert ask(relay, "1/2/M1/1") == ""
    again.send("M1", 1)
    relay.later(121)
    assert ask(relay, "1/2/M1/1") == ""
    assert ask(relay, "1/2/M1/2") == "too-late"


def test_of_a_round_that_is_done_only_answers_and_what_leads_to_them_are_taken(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M3")
    for name in ("M4", "M5", "M6"):
        hand.send(name, 1, 2, 3)
        relay.settle()
    assert relay.status()["done"] == 1
    assert answers(relay, "1/1/M3v/1", "1/1/M1/1", "1/1/M4/4", "1/1/M5/4", "1/1/M6/4", "1/0/READY/4") == {
        "1/1/M3v/1": "too-late",
        "1/1/M1/1": "",
        "1/1/M4/4": "",
        "1/1/M5/4": "",
        "1/1/M6/4": "",
        "1/0/READY/4": "",
    }


def test_lengths_are_looked_at_before_a_byte_is_kept(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M2")
    relay.put("0/9/NEED/4", b"{}")
    limits = {
        "2/0/READY/1": 24 * (1 << 14) + 8192,
        "0/0/CONFIG/1": 1024,
        "0/0/FEATURES/1": 4 << 20,
        "0/9/STATE/1/4": max_bytes("STATE", 4),
        "0/9/B17/1/4": (1 << 20) + 16,
        "0/9/NEED/4": 1024,
    }
    limits |= {f"1/1/{name}/1": max_bytes(name, 4) for name in ("M1", "M2", "M3")}
    for path, most in limits.items():
        assert ask(relay, path, most) == "", path
        assert ask(relay, path, most + 1) == "too-large", path
    assert ask(relay, "1/1/M3v/1", NBYTES) == ""
    assert ask(relay, "1/1/M3v/1", NBYTES + 1) == "bad-request"
    assert ask(relay, "1/1/M3v/1", NBYTES - 1) == "bad-request"


def test_a_site_is_ready_in_few_rounds_at_once(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    for number in range(1, 9):
        relay.put(f"{number}/0/READY/1", ready())
    assert ask(relay, "9/0/READY/1") == "quota"
    assert ask(relay, "8/0/READY/1") == ""
    assert ask(relay, "9/0/READY/2") == ""
    for u in (2, 3, 4):
        relay.put(f"1/0/READY/{u}", ready())
    relay.settle()
    Hand(relay).play(1, 2, 3, 4)
    assert ask(relay, "9/0/READY/1") == ""


def test_a_federation_that_has_left_the_roster(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    with pytest.raises(Problem, match="left the roster"):
        relay.coordinator.check_write(ObjectName("cd" * 32, 1, 0, "READY/1"), 10, None)
