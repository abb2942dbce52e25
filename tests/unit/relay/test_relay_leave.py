"""LEAVE: a site that goes away for a while is not proposed, nobody waits for it, and it may come back as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from relay_fakes import CONFIG, OTHER, Hand, Relay, all_ready, federation, ready

from fedhpc.relay.problems import Problem
from fedhpc.relay.store.kept_attempt import drop_ready
from fedhpc.relay.store.object_store import Store
from fedhpc.wire.kinds import MAX_LEAVE_BYTES
from fedhpc.wire.object_names import ObjectName


def leave(relay: Relay, *sites: int, round_: int = 1) -> None:
    for u in sites:
        relay.put(f"{round_}/0/LEAVE/{u}", b"{}")
    relay.settle()


def lobby(relay: Relay) -> set[str]:
    return {name for name in relay.names() if "/0/" in name}


def test_a_site_that_left_is_not_proposed_until_it_is_back(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3)
    leave(relay, 2)
    assert lobby(relay) == {"1/0/READY/1", "1/0/READY/3"}  # LEAVE itself goes too
    assert (relay.only_round()["ready"], relay.only_round()["late"]) == ([1, 3], [2, 4])
    all_ready(relay, 4)
    assert "1/0/A1" not in relay.names()  # sync waits for all
    all_ready(relay, 2)  # the same bytes as before are news
    assert [u for u, _ in relay.get("1/1/M0")["cohort"]] == [1, 2, 3, 4]


def test_again_and_again(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3)
    for _ in range(3):
        leave(relay, 3)
        leave(relay, 3)
        assert relay.only_round()["ready"] == [1, 2]
        all_ready(relay, 3)
        assert relay.only_round()["ready"] == [1, 2, 3]


def test_ready_that_comes_before_the_relay_has_looked_counts(tmp_path: Path) -> None:
    """The next job of a site may be there while the relay still adds the vectors of another round."""
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3)
    relay.put("1/0/LEAVE/3", b"{}")
    relay.put("1/0/READY/3", ready())
    relay.settle()
    assert relay.only_round()["ready"] == [1, 2, 3]
    assert "1/0/LEAVE/3" not in relay.names()


def test_a_quorum_goes_on_without_it(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(5, policy="quorum", minimum=4, grace_s=30.0))
    all_ready(relay, 1, 2, 3, 4)
    leave(relay, 4)
    relay.later(31)
    assert "1/0/A1" not in relay.names()  # three are fewer than the quorum
    all_ready(relay, 5)
    relay.later(31)
    assert [u for u, _ in relay.get("1/1/M0")["cohort"]] == [1, 2, 3, 5]
    hand = Hand(relay)
    hand.play(1, 2, 3, 5)
    assert relay.get("1/0/DONE")["u3"] == [1, 2, 3, 5]


@pytest.mark.parametrize("phase", ["keys", "shares", "masked"])
def test_no_set_of_an_attempt_waits_for_it(tmp_path: Path, phase: str) -> None:
    """It leaves before its keys, its shares, or its vector are there. No clock moves here."""
    relay = Relay(tmp_path)  # τ = 3 of 4
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    closed = {"keys": "U1", "shares": "U2", "masked": "M4r"}[phase]
    hand.send("M1", 1, 2, 3, *([] if phase == "keys" else [4]))
    relay.settle()
    if phase != "keys":
        hand.send("M2", 1, 2, 3, *([] if phase == "shares" else [4]))
        relay.settle()
    if phase == "masked":
        hand.vectors(1, 2, 3)
        hand.send("M3", 4)  # its vector is not there
        relay.settle()
    assert f"1/1/{closed}" not in relay.names()
    leave(relay, 4)
    assert f"1/1/{closed}" in relay.names()
    for name in {"keys": ("M2", "M3"), "shares": ("M3",), "masked": ()}[phase]:
        (hand.vectors if name == "M3" else lambda *u: hand.send("M2", *u))(1, 2, 3)
        relay.settle()
    assert relay.get("1/1/M4r")["u3"] == [1, 2, 3]
    hand.send("M4", 1, 2, 3)
    hand.send("M5", 1, 2, 3)
    hand.send("M6", 1, 2, 3)
    relay.settle()
    assert relay.get("1/0/DONE")["u3"] == [1, 2, 3]


def test_who_has_left_and_is_back_is_waited_for(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.send("M1", 1, 2, 3)
    relay.put("1/0/LEAVE/4", b"{}")
    relay.put("1/0/READY/4", ready())
    relay.settle()
    assert "1/1/U1" not in relay.names()
    hand.send("M1", 4)
    relay.settle()
    assert relay.get("1/1/U1") == [1, 2, 3, 4]


def test_a_site_that_sent_its_message_before_it_left_counts(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.send("M1", 1, 4)
    leave(relay, 4)
    assert "1/1/U1" not in relay.names()
    hand.send("M1", 2, 3)
    relay.settle()
    assert relay.get("1/1/U1") == [1, 2, 3, 4]


def test_too_few_who_stay_give_the_attempt_up_at_once(tmp_path: Path) -> None:
    relay = Relay(tmp_path)  # τ = 3 of 4
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.send("M1", 1, 2)
    leave(relay, 3)
    assert "1/1/NEXT" not in relay.names()  # 4 is still waited for
    leave(relay, 4)
    assert "not 3, 4" in relay.get("1/1/NEXT")["why"]
    relay.hear([1, 2, 3, 4])
    all_ready(relay, 3, 4)
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3, 4]


def test_answers_of_those_who_left_are_not_waited_for(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M4")
    hand.send("M5", 1, 2)
    leave(relay, 3)
    assert "1/1/NEXT" not in relay.names()
    leave(relay, 4)
    assert relay.get("1/1/NEXT")["why"].startswith("answers: 2 of 4")
    relay.hear([1, 2, 3, 4])
    all_ready(relay, 3, 4)
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3, 4]


def test_it_says_nothing_about_other_rounds_and_federations(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(), federation(config=OTHER))
    for config in (CONFIG, OTHER):
        all_ready(relay, 1, 2, 3, config=config)
    all_ready(relay, 1, 2, round_=2)
    leave(relay, 1)
    assert [r["ready"] for r in relay.status()["sums"]] == [[2, 3], [1, 2]]
    assert relay.status(OTHER)["sums"][0]["ready"] == [1, 2, 3]


# --- the gate


def refused(relay: Relay, path: str, length: int = 2) -> str:
    try:
        relay.coordinator.check_write(ObjectName.parse(f"{CONFIG}/{path}"), length, None)
    except Problem as problem:
        return problem.kind
    return ""


def test_the_gate(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    assert refused(relay, "1/0/LEAVE/1") == "forbidden"  # a round that nobody is ready for
    all_ready(relay, 1, 2)
    assert refused(relay, "1/0/LEAVE/1") == ""
    assert refused(relay, "1/0/LEAVE/3") == ""  # it was not ready: no harm
    assert refused(relay, "2/0/LEAVE/1") == "forbidden"
    assert refused(relay, "0/0/LEAVE/1") == "forbidden"
    assert refused(relay, "1/1/LEAVE/1") == "forbidden"
    assert refused(relay, "1/0/LEAVE/1/2") == "forbidden"
    assert refused(relay, "1/0/LEAVE/1", MAX_LEAVE_BYTES) == ""
    assert refused(relay, "1/0/LEAVE/1", MAX_LEAVE_BYTES + 1) == "too-large"
    with pytest.raises(Problem, match="nobody is ready for round 7"):
        relay.put("7/0/LEAVE/1", b"{}")
    assert 7 not in relay.coordinator._federations[CONFIG].rounds


def test_a_round_that_is_over_is_not_left(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    for number in range(1, 5):
        all_ready(relay, 1, 2, 3, 4, round_=number)
        Hand(relay, number).play(1, 2, 3, 4)
    assert relay.status()["done"] == 4
    assert refused(relay, "1/0/LEAVE/1") == "round-over"
    leave(relay, 1, round_=4)
    assert relay.status()["sums"] == []
    assert relay.get("4/0/DONE")["u3"] == [1, 2, 3, 4]


# --- crashes


class Crash(BaseException):
    """The process ends here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """End before removal number `count`, from 0."""
    real: Callable[..., Any] = Path.unlink
    seen = iter(range(1000))

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if next(seen) == count:
            raise Crash
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)


@pytest.mark.parametrize("count", range(4))
def test_a_crash_while_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3)
    relay.put("1/0/LEAVE/2", b"{}")
    with monkeypatch.context() as broken:
        crash_at(broken, count)
        with pytest.raises(Crash):
            relay.settle()
    relay.restart()
    relay.settle()
    assert lobby(relay) == {"1/0/READY/1", "1/0/READY/3"}
    assert relay.only_round()["ready"] == [1, 3]
    all_ready(relay, 2, 4)
    assert [u for u, _ in relay.get("1/1/M0")["cohort"]] == [1, 2, 3, 4]


def test_ready_goes_before_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order the store has them in."""
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2)
    relay.put("1/0/LEAVE/2", b"{}")
    gone: list[str] = []
    drop = Store.drop

    def recording(store: Store, goes: Callable[[ObjectName], bool]) -> int:
        gone.extend(stored.name.name for stored in store.of(CONFIG) if goes(stored.name))
        return drop(store, goes)

    monkeypatch.setattr(Store, "drop", recording)
    drop_ready(relay.store, (CONFIG, 1, 0), 2)
    assert gone == ["READY/2", "LEAVE/2"]


def test_a_restart_right_after_leave(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3)
    relay.put("1/0/LEAVE/2", b"{}")
    relay.restart()
    all_ready(relay, 4)
    assert "1/0/A1" not in relay.names()
    assert relay.only_round()["ready"] == [1, 3, 4]


@pytest.mark.parametrize(("signed", "ends"), [((), True), ((1, 2), True), ((3,), False), ((1, 2, 3), False)])
def test_a_set_that_cannot_be_signed_any_more_is_given_up_at_once(
    tmp_path: Path, signed: tuple[int, ...], ends: bool
) -> None:
    """Sites 3 and 4 of four leave after their vectors have come. Without M4 of three nobody answers; no clock moves."""
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    for kind in ("M1", "M2"):
        hand.send(kind, 1, 2, 3, 4)
        relay.settle()
    hand.vectors(1, 2, 3, 4)
    relay.settle()
    assert relay.get("1/1/M4r")["u3"] == [1, 2, 3, 4]
    hand.send("M4", *signed)
    leave(relay, 4)
    assert "1/1/NEXT" not in relay.names()
    leave(relay, 3)
    assert ("1/1/NEXT" in relay.names()) == ends
