"""One enrolled site against the others, at a real store, gate and coordinator: rounds with d >= 1 go on without it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from relay_fakes import CONFIG, Hand, Relay, all_ready, federation, ready

from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds import news
from fedhpc.relay.rounds.pace import ALLOWANCES, LARGE_BYTES, Paces
from fedhpc.relay.rounds.ready import read_ready
from fedhpc.secure.transcript import canon
from fedhpc.wire import kinds
from fedhpc.wire.kinds import MAX_READY_BYTES, MAX_TENSORS
from fedhpc.wire.object_names import ObjectName

QUORUM: dict[str, Any] = {"policy": "quorum", "grace_s": 1.0}


def goes_on(relay: Relay, *honest: int, attempts: int = 8) -> list[int] | None:
    """Honest sites do their part in every attempt that comes, the others nothing; the set that opens, or None."""
    for _ in range(attempts):
        found = relay.only_round()
        if found["phase"] == "ready":
            relay.later(60, honest)
            continue
        hand = Hand(relay, attempt=found["attempt"])
        mine = [u for u in honest if u in found["cohort"]]
        for name, closed, wait_s in (("M1", "u1", 121), ("M2", "u2", 121), ("M3", "u3", 3601)):
            (hand.vectors if name == "M3" else partial(hand.send, name))(*mine)
            relay.settle()
            if getattr(hand.machine(), closed) is None:
                relay.later(wait_s, honest)
            if relay.only_round()["phase"] == "ready":
                break
        else:
            for name in ("M4", "M5", "M6"):
                hand.send(name, *mine)
                relay.settle()
            return list(relay.get("1/0/DONE")["u3"])
    return None


# --- everyone


def claims_everyone(relay: Relay, hostile: int, **changes: Any) -> None:
    relay.put(f"1/0/READY/{hostile}", ready(everyone=1, **changes))
    all_ready(relay, *(u for u in (1, 2, 3, 4) if u != hostile))
    relay.later(2, [1, 2, 3, 4])
    hand = Hand(relay)
    hand.send("M1", 1, 2, 3, 4)
    relay.settle()
    hand.send("M2", 1, 2, 3, 4)
    relay.settle()
    hand.vectors(*(u for u in (1, 2, 3, 4) if u != hostile))  # and its own never comes


@pytest.mark.parametrize("hostile", [1, 4])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_site_that_says_everyone_and_keeps_its_vector_back(tmp_path: Path, hostile: int, restarted: bool) -> None:
    relay = Relay(tmp_path, federation(4, **QUORUM))
    claims_everyone(relay, hostile)
    if restarted:
        relay.restart()
        relay.settle()
    honest = [u for u in (1, 2, 3, 4) if u != hostile]
    relay.later(3601, honest)
    assert relay.get("1/1/M4r")["u3"] == honest
    hand = Hand(relay)
    for name in ("M4", "M5", "M6"):
        hand.send(name, *honest)
        relay.settle()
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": honest}


def test_a_site_that_says_everyone_with_another_base(tmp_path: Path) -> None:
    """With staleness READY may differ in their base, so that group is a group all the same."""
    relay = Relay(tmp_path, federation(4, policy="buffered", staleness=2))
    relay.put("1/0/READY/4", ready(everyone=1, base="77" * 32))
    all_ready(relay, 1, 2, 3)
    assert goes_on(relay, 1, 2, 3) == [1, 2, 3]


def test_a_site_that_says_that_not_everyone_is_needed(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, **QUORUM))
    relay.put("1/0/READY/4", ready(everyone=0))
    for u in (1, 2, 3):
        relay.put(f"1/0/READY/{u}", ready(everyone=1))
    relay.later(2, [1, 2, 3, 4])
    Hand(relay).send("M1", 1, 2, 3)
    relay.later(121)
    assert "keys: 3 of 4" in relay.get("1/1/NEXT")["why"]


def test_a_claim_that_comes_after_the_proposal(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, **QUORUM))
    all_ready(relay, 1, 2, 3, 4)
    for u in (4, 3):  # a site that is set up wrongly may say so anew, but not what an attempt was made of
        relay.put(f"1/0/READY/{u}", ready(everyone=1))
    assert goes_on(relay, 1, 2, 3) == [1, 2, 3]


# --- answers that bind


def test_an_answer_before_enough_sites_have_signed_binds_nobody(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 4)
    hand = Hand(relay)
    hand.play(1, 2, 4, upto="M3")  # site 3 is late, site 4 is hostile
    hand.send("M4", 1, 2)
    relay.put("1/1/M5/4", b"garbage")
    relay.put("1/0/READY/3", ready())
    relay.later(241, [1, 2, 3])
    assert "1/1/NEXT" in relay.names()
    relay.later(1, [1, 2, 3])
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3]
    Hand(relay, attempt=2).play(1, 2, 3)
    assert relay.get("1/0/DONE") == {"attempt": 2, "u3": [1, 2, 3]}


@pytest.mark.parametrize("answer", ["garbage", "well-formed"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_lone_answer_and_no_signature(tmp_path: Path, answer: str, restarted: bool) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 4)
    hand = Hand(relay)
    hand.play(1, 2, 4, upto="M3")
    relay.put("1/1/M5/4", b"garbage" if answer == "garbage" else hand.message("M5", 4))
    relay.put("1/0/READY/3", ready())
    if restarted:
        relay.restart()
    relay.later(241, [1, 2, 3])
    relay.later(241, [1, 2, 3])
    assert goes_on(relay, 1, 2, 3) == [1, 2, 3]


def test_garbage_binds_nobody_even_with_all_signatures(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 4)
    hand = Hand(relay)
    hand.play(1, 2, 4, upto="M4")
    relay.put("1/1/M5/4", b"garbage")
    relay.put("1/0/READY/3", ready())
    relay.later(241, [1, 2, 3])
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3]


def test_an_honest_answer_binds_through_clean_up_and_restarts(tmp_path: Path) -> None:
    """What was garbage is cleared away with the rest, and does not count when nothing is left to judge it by."""
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 4)
    hand = Hand(relay)
    hand.play(1, 2, 4, upto="M4")
    hand.send("M5", 1)
    relay.put("1/1/M5/4", b"garbage")
    for _ in range(4):
        relay.later(241, [1, 2, 4])
        relay.later(241, [1, 2, 4])
    assert "1/1/M1/1" not in relay.names()
    assert {n for n in relay.names() if n.startswith("1/1/M5")} == {"1/1/M5/1"}
    relay.put("1/0/READY/3", ready())
    relay.restart()
    for _ in range(4):
        relay.later(241, [1, 2, 3, 4])
    assert [u for u, _ in relay.get(f"1/{relay.only_round()['attempt']}/M0")["cohort"]] == [1, 2, 4]


def test_a_late_result_in_an_attempt_that_was_cleared_away_harms_nobody(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 4)
    hand = Hand(relay)
    hand.play(1, 2, 4, upto="M4")
    hand.send("M5", 1)
    late = hand.message("M6", 4)
    for _ in range(4):
        relay.later(241, [1, 2, 4])
    relay.put("1/1/M6/4", late)
    relay.restart()
    relay.later(0, [1, 2, 4])
    assert goes_on(relay, 1, 2, 4) == [1, 2, 4]


# --- READY, LEAVE, NEED


def large(**changes: Any) -> bytes:
    return ready(tensors=[[32, 1]] * MAX_TENSORS, **changes)


def test_a_ready_has_as_many_tensors_as_a_model_can_have(tmp_path: Path) -> None:
    assert len(read_ready(large())[1]) == MAX_TENSORS
    longest = ready(tensors=[[64, 1 << 40]] * (MAX_TENSORS - 1), purpose="x" * 4096)
    assert len(longest) <= MAX_READY_BYTES < 1 << 19
    relay = Relay(tmp_path)
    with pytest.raises(Problem) as refused:
        relay.put("1/0/READY/4", ready(tensors=[[32, 1]] * (1 << 16)))
    assert refused.value.kind == "too-large"
    assert relay.names() == set()


def test_a_ready_is_read_without_the_lock_of_its_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one site's READY is being read, which never ends here, the others' round is done."""
    relay = Relay(tmp_path, federation(4, **QUORUM))
    reading, go_on = threading.Event(), threading.Event()

    def slow(data: bytes) -> Any:
        if len(data) > 1 << 14:
            reading.set()
            assert go_on.wait(60)
        return read_ready(data)

    monkeypatch.setattr(news, "read_ready", slow)
    writer = threading.Thread(target=relay.put, args=("1/0/READY/4", large()), daemon=True)
    writer.start()
    assert reading.wait(60)
    all_ready(relay, 1, 2, 3)
    relay.later(2, [1, 2, 3])
    Hand(relay).play(1, 2, 3)
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": [1, 2, 3]}
    go_on.set()
    writer.join(60)
    relay.settle()


def test_a_ready_that_was_replaced_while_it_was_read_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(tmp_path, federation(3))
    reading, go_on = threading.Event(), threading.Event()

    def slow(data: bytes) -> Any:
        fields = read_ready(data)
        if fields[0].purpose == "old":
            reading.set()
            assert go_on.wait(60)
        return fields

    monkeypatch.setattr(news, "read_ready", slow)
    writer = threading.Thread(target=relay.put, args=("1/0/READY/3", ready(purpose="old")), daemon=True)
    writer.start()
    assert reading.wait(60)
    name = ObjectName.parse(f"{CONFIG}/1/0/READY/3")
    relay.store.drop(lambda other: other == name)  # as make_room does
    go_on.set()
    writer.join(60)
    relay.put("1/0/READY/3", ready())
    all_ready(relay, 1, 2)
    assert relay.get("1/1/M0")["purpose"] == "train"
    Hand(relay).play(1, 2, 3)
    assert relay.get("1/0/DONE")["u3"] == [1, 2, 3]


def refusals(relay: Relay, objects: Iterator[tuple[str, bytes]], most: int = 400) -> list[str]:
    found = []
    for _, (path, data) in zip(range(most), objects, strict=False):
        try:
            relay.put(path, data)
        except Problem as problem:
            found.append(problem.kind)
    return found


def test_who_is_ready_again_and_again_is_slowed_and_the_others_are_not(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, **QUORUM))

    def changing() -> Iterator[tuple[str, bytes]]:
        for number in range(400):
            yield "1/0/READY/4", ready(purpose=f"p{number}")

    refused = refusals(relay, changing())
    assert set(refused) == {"too-often"}
    assert len(refused) == 400 - ALLOWANCES["READY"].burst
    all_ready(relay, 1, 2, 3)
    relay.later(2, [1, 2, 3])
    assert goes_on(relay, 1, 2, 3) == [1, 2, 3]
    relay.put("2/0/READY/4", ready())  # a round is done: it may join the next


def test_who_leaves_and_comes_back_again_and_again_is_slowed(tmp_path: Path) -> None:
    relay = Relay(tmp_path)

    def coming_and_going() -> Iterator[tuple[str, bytes]]:
        while True:
            yield "1/0/READY/4", ready()
            yield "1/0/LEAVE/4", canon({})

    assert set(refusals(relay, coming_and_going())) == {"too-often"}
    relay.now += 5
    relay.put("1/0/READY/1", ready())


def test_who_asks_for_the_model_again_and_again_is_slowed(tmp_path: Path) -> None:
    """Each NEED has another site send the whole model."""
    relay = Relay(tmp_path)
    relay.hear([1, 2, 3, 4])
    refused = refusals(relay, ((f"0/{n}/NEED/4", canon({})) for n in range(1, 50)), 49)
    assert refused == ["too-often"] * (49 - int(ALLOWANCES["NEED"].burst))
    all_ready(relay, 1, 2, 3, 4)
    Hand(relay).play(1, 2, 3, 4)  # a round that is done gives nobody more models
    with pytest.raises(Problem, match="NEED again and again"):
        relay.put("0/77/NEED/4", canon({}))
    relay.put("0/77/NEED/3", canon({}))
    relay.now += 61
    relay.put("0/78/NEED/4", canon({}))


def test_repeats_cost_nothing_and_large_ones_more(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    for _ in range(100):
        relay.put("1/0/READY/1", ready())
    paces = Paces()
    taken = sum(paces.take(1, "READY", 7 * LARGE_BYTES, 0.0) for _ in range(100))
    assert taken == ALLOWANCES["READY"].burst // 8
    assert all(paces.take(1, kinds.M1.purse, 1000, 0.0) for _ in range(1000))


def test_fast_rounds_are_never_slowed(tmp_path: Path) -> None:
    """As fed.sync does: a sum after another, no time between them."""
    relay = Relay(tmp_path, federation(3))
    for number in range(1, 25):
        all_ready(relay, 1, 2, 3, round_=number)
        Hand(relay, number).play(1, 2, 3)
    assert relay.status()["done"] == 24
