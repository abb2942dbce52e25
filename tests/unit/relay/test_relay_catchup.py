"""NEED: who is asked, and when what answers it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relay_fakes import Hand, Relay, all_ready, federation, ready
from test_relay_gate import ask


def asked(relay: Relay) -> dict[int, Any]:
    relay.settle()
    return {need["site"]: need["asked"] for need in relay.status()["needs"]}


def test_a_living_site_with_the_last_result_is_asked_and_another_after_a_minute(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(5, policy="buffered"))
    all_ready(relay, 2, 3, 4, 5)
    Hand(relay).play(2, 3, 4, 5)
    relay.put("0/77/NEED/1", b"{}")
    assert asked(relay) == {1: 0}  # nobody was heard of
    relay.hear([1, 3, 4])
    assert asked(relay) == {1: 3}
    relay.later(59, [1, 3, 4])
    assert asked(relay) == {1: 3}
    relay.later(1, [1, 3, 4])
    assert asked(relay) == {1: 4}
    relay.later(60, [1, 3, 4])
    assert asked(relay) == {1: 3}  # all were asked: from the start
    assert relay.status()["needs"] == [{"site": 1, "attempt": 77, "asked": 3}]


def test_who_has_begun_to_answer_is_left_in_peace_while_it_lives(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.hear([1, 2, 3])
    relay.put("0/77/NEED/4", b"{}")
    assert asked(relay) == {4: 1}
    relay.put("0/77/STATE/1/4", b"{}")
    relay.put("0/77/B0/1/4", b"box")
    relay.later(59, [1, 2])
    relay.later(59, [1, 2])
    assert asked(relay) == {4: 1}
    relay.later(61, [2])
    assert asked(relay) == {4: 2}


def test_who_asks_anew_is_sent_to_another_site(tmp_path: Path) -> None:
    """A site that lies and is always first would otherwise keep the others away for ever."""
    relay = Relay(tmp_path)
    relay.hear([1, 2, 3])
    found = []
    for number in range(70, 75):
        relay.put(f"0/{number}/NEED/4", b"{}")
        found.append(asked(relay)[4])
        relay.put(f"0/{number}/STATE/{found[-1]}/4", b"{}")
    assert found == [1, 2, 3, 1, 2]
    relay.put("1/0/READY/4", ready())  # it goes on; what it asks later is another matter
    relay.settle()
    relay.put("0/80/NEED/4", b"{}")
    assert asked(relay) == {4: 1}


def test_others_may_not_answer_what_nobody_asked(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.put("0/77/NEED/4", b"{}")
    assert [ask(relay, f"0/77/{name}") for name in ("STATE/1/4", "B3/2/4")] == ["", ""]
    for name in ("STATE/4/4", "NEED/3", "B/1/4", "Bx/1/4", "STATE/1"):
        assert ask(relay, f"0/77/{name}") == "forbidden", name
    for path in ("0/77/STATE/1/3", "0/78/STATE/1/4", "0/78/B1/1/4"):  # it may have been there a moment before
        assert ask(relay, path) == "too-late", path


def test_answers_go_after_a_day_or_when_the_taker_asks_anew_or_goes_on(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    for n in (5, 6):
        relay.put(f"0/{n}/NEED/4", b"{}")
        relay.settle()
        relay.put(f"0/{n}/STATE/1/4", b"{}")
    assert relay.names() == {"0/6/NEED/4", "0/6/STATE/1/4"}
    relay.put("0/7/NEED/3", b"{}")
    relay.put("3/0/READY/4", ready())
    relay.settle()
    assert relay.names() == {"0/7/NEED/3", "3/0/READY/4"}
    relay.restart()
    assert asked(relay) == {3: 0}
    relay.later(86399)
    assert "0/7/NEED/3" in relay.names()
    relay.later(1)
    assert relay.names() == {"3/0/READY/4"}
