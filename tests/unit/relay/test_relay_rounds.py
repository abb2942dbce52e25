"""Rounds at the relay, step by step: a real store, and a clock turned by hand."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from relay_fakes import CONFIG, OTHER, STATE, Hand, Relay, all_ready, federation, ready

from fedhpc.relay.problems import Problem
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import canon
from fedhpc.wire import kinds
from fedhpc.wire.object_names import ObjectName


def test_a_round_from_ready_to_done(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3)
    assert relay.only_round()["late"] == [4]
    assert "1/1/M0" not in relay.names()
    all_ready(relay, 4)
    assert relay.get("1/1/M0") == {
        "attempt": 1,
        "cohort": [[u, STATE] for u in (1, 2, 3, 4)],
        "config": CONFIG,
        "layout": "22" * 32,
        "purpose": "train",
        "round": 1,
        "state": STATE,
        "tensors": [[32, 5], [64, 3]],
    }
    assert relay.get("1/0/A1") == {}
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M5")
    assert relay.get("1/1/U1") == relay.get("1/1/U2") == [1, 2, 3, 4]
    total = hand.sum_over(1, 2, 3, 4)
    assert relay.raw("1/1/Y") == total
    assert relay.get("1/1/M4r") == {"sum": SHA256.tree(total).hex(), "u3": [1, 2, 3, 4]}
    hand.send("M6", 1, 2)
    relay.settle()
    assert relay.only_round()["phase"] == "results"
    hand.send("M6", 3)
    relay.settle()
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": [1, 2, 3, 4]}
    assert relay.status()["done"] == 1
    assert relay.status()["sums"] == []
    assert not [n for n in relay.names() if "M3v" in n]


def test_the_status_says_in_every_phase_who_is_late(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.hear([1, 2, 3, 4])
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    relay.now += 2.5
    assert relay.status() == {
        "done": 0,
        "sums": [
            {
                "sum": 1,
                "attempt": 1,
                "phase": "keys",
                "ready": [1, 2, 3, 4],
                "cohort": [1, 2, 3, 4],
                "u1": [],
                "u2": [],
                "u3": [],
                "late": [1, 2, 3, 4],
                "since_s": 2.5,
                "limit_s": 120.0,
                "bytes": 56,
                "purpose": "train",
            }
        ],
        "seen_s": {"1": 2.5, "2": 2.5, "3": 2.5, "4": 2.5},
        "needs": [],
        "sites": 4,
        "threshold": 3,
        "bad_vectors": [],
        "times": [
            {
                "sum": 1,
                "purpose": "train",
                "attempts": 1,
                "done": False,
                "ended_s": None,
                "sites": [],
                "seconds": {"ready": 0.0, "keys": 2.5},
                "why": "",
            }
        ],
    }
    for name, phase in [("M1", "keys"), ("M2", "shares"), ("M3", "masked"), ("M5", "answers"), ("M6", "results")]:
        relay.settle()
        assert (relay.only_round()["phase"], relay.only_round()["late"]) == (phase, [1, 2, 3, 4])
        if name == "M3":
            hand.vectors(1, 3)
            hand.send("M3", 2)  # its vector is on its way
            hand.send("M3v", 4)  # and this one's message
            assert relay.only_round()["late"] == [2, 4]
            hand.vectors(2, 4)
        else:
            hand.send(name, 1, 2)
            assert relay.only_round()["late"] == [3, 4]
            hand.send(name, 3, 4)
    relay.settle()
    assert relay.status()["sums"] == []


# --- deadlines


def test_sets_close_without_late_sites_at_their_deadlines(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(6, answer_s=100.0, upload_s=1000.0))
    all_ready(relay, *range(1, 7))  # τ = 4
    hand = Hand(relay)
    hand.send("M1", 1, 2, 3, 4, 5)
    assert relay.settle() == relay.now + 100
    relay.later(99.9)
    assert "1/1/U1" not in relay.names()
    relay.later(0.2)
    assert relay.get("1/1/U1") == [1, 2, 3, 4, 5]
    hand.send("M2", 1, 2, 3, 4)
    relay.later(99.9)
    assert "1/1/U2" not in relay.names()
    hand.send("M2", 5)
    relay.settle()
    assert relay.get("1/1/U2") == [1, 2, 3, 4, 5]
    hand.vectors(2, 3, 4, 5)
    relay.later(999.9)
    assert "1/1/M4r" not in relay.names()
    relay.later(0.2)
    assert relay.get("1/1/M4r")["u3"] == [2, 3, 4, 5]
    assert relay.raw("1/1/Y") == hand.sum_over(2, 3, 4, 5)
    with pytest.raises(Problem) as late:
        hand.send("M3v", 1)
    assert late.value.kind == "too-late"
    hand.send("M4", 2, 3, 4, 5)
    hand.send("M5", 2, 3, 4, 5)
    relay.later(10_000)
    assert relay.only_round()["phase"] == "results"  # it can be finished by whoever comes back
    hand.send("M6", 2, 3, 4, 5)
    relay.settle()
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": [2, 3, 4, 5]}


@pytest.mark.parametrize(("upto", "step", "wait"), [("", "M1", 120), ("M1", "M2", 120), ("M2", "M3", 3600)])
def test_too_few_at_a_deadline_is_a_new_attempt_over_the_living(
    tmp_path: Path, upto: str, step: str, wait: float
) -> None:
    relay = Relay(tmp_path, federation(4, policy="quorum", grace_s=1.0))
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    if upto:
        hand.play(1, 2, 3, 4, upto=upto)
    (hand.vectors if step == "M3" else lambda *u: hand.send(step, *u))(1, 2)
    relay.settle()
    relay.later(wait - 1, [1])  # heard of a second before
    assert "1/1/NEXT" not in relay.names()
    relay.later(1.5)
    assert "of 4 sites in time, not 3, 4" in relay.get("1/1/NEXT")["why"]
    assert relay.only_round()["phase"] == "ready"
    assert relay.only_round()["late"] == [2, 3, 4]
    assert "1/2/M0" not in relay.names()
    assert not [n for n in relay.names() if "M3v" in n]
    relay.later(1.0, [2])
    assert "1/2/M0" not in relay.names()
    relay.later(0.0, [4])
    assert relay.get("1/2/M0")["cohort"] == [[u, STATE] for u in (1, 2, 4)]
    assert relay.get("1/0/A2") == {}
    Hand(relay, attempt=2).play(1, 2, 4)
    assert relay.get("1/0/DONE") == {"attempt": 2, "u3": [1, 2, 4]}


def test_sync_meets_again_only_when_all_are_back(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    relay.later(121, [1, 2, 3])
    assert "1/1/NEXT" in relay.names()
    assert "1/2/M0" not in relay.names()
    relay.later(59, [4])
    assert len(relay.get("1/2/M0")["cohort"]) == 4


def test_an_answer_that_comes_while_the_attempt_is_given_up_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that finds three answers may fetch the sum: NEXT is there before the third of them, or never."""
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M4")
    hand.send("M5", 1, 2)
    third, real = hand.message("M5", 3), relay.store.publish

    def publish(name: ObjectName, *rest: Any) -> bool:
        if name.name == "NEXT" and "1/1/M5/3" not in relay.names():
            relay.put("1/1/M5/3", third, checked=False)
        return real(name, *rest)

    monkeypatch.setattr(relay.store, "publish", publish)
    relay.later(241)
    assert relay.only_round()["phase"] == "results"
    assert "1/1/NEXT" not in relay.names()
    assert {p.name for p in relay.folder.glob(f"{CONFIG}/1/1/NEXT*")} == set()
    relay.restart()
    relay.settle()
    assert relay.raw("1/1/Y") == hand.sum_over(1, 2, 3, 4)


def test_after_an_answer_only_the_same_set_meets_again(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 3)
    hand = Hand(relay)
    hand.play(1, 2, 3, upto="M4")
    hand.send("M5", 1, 2)
    relay.put("1/0/READY/4", ready())
    relay.later(239, [1, 2])
    assert "1/1/NEXT" not in relay.names()
    relay.later(2, [1, 2, 4])
    assert "answers: 2 of 3 sites" in relay.get("1/1/NEXT")["why"]
    assert "1/2/M0" not in relay.names()  # 4 cannot take the place of 3
    relay.later(1, [1, 2, 3, 4])
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3]
    again = Hand(relay, attempt=2)
    again.play(1, 2, 3)
    assert relay.get("1/0/DONE") == {"attempt": 2, "u3": [1, 2, 3]}


def test_a_set_that_must_be_whole_is_given_up_when_it_is_not(tmp_path: Path) -> None:
    """Five sites with τ = 4: an opened set of five, and a sum that needs everyone, need all of them."""
    relay = Relay(tmp_path, federation(5), federation(5, OTHER))
    all_ready(relay, 1, 2, 3, 4, 5)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, 5, upto="M4")
    hand.send("M5", 1)
    relay.later(241, [1, 2, 3, 4, 5])
    again = Hand(relay, attempt=2)
    again.send("M1", 1, 2, 3, 4)
    relay.later(121)
    assert "keys: 4 of 5" in relay.get("1/2/NEXT")["why"]
    for u in range(1, 6):
        relay.put(f"1/0/READY/{u}", ready(everyone=1, base="00" * 32), OTHER)
    relay.settle(OTHER)
    Hand(relay, config=OTHER).send("M1", 1, 2, 3, 4)
    relay.settle(OTHER)
    relay.now += 121
    relay.settle(OTHER)
    assert "keys: 4 of 5" in relay.get("1/1/NEXT", OTHER)["why"]


def test_some_sums_need_all_sites_under_any_policy(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    for u in (1, 2, 3):
        relay.put(f"1/0/READY/{u}", ready(everyone=1))
    relay.later(1e6)
    assert "1/1/M0" not in relay.names()
    relay.put("1/0/READY/4", ready(everyone=1))
    relay.settle()
    assert len(relay.get("1/1/M0")["cohort"]) == 4


def test_an_answer_that_comes_after_next_still_binds(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 3)
    hand = Hand(relay)
    hand.play(1, 2, 3, upto="M4")
    relay.put("1/0/READY/4", ready())
    late = hand.message("M5", 3)
    relay.later(241)
    assert "1/1/NEXT" in relay.names()
    relay.put("1/1/M5/3", late)
    hand.send("M4", 1)  # as it did before
    relay.later(0, [1, 2, 3, 4])
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3]


def test_of_two_opened_sets_the_one_that_more_sites_are_bound_to_meets_again(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    all_ready(relay, 1, 2, 3)
    first = Hand(relay)
    first.play(1, 2, 3, upto="M4")
    relay.put("1/0/READY/4", ready())
    late = first.message("M5", 3)
    relay.later(241, [1, 2, 4])
    second = Hand(relay, attempt=2)
    second.play(1, 2, 4, upto="M4")
    second.send("M5", 1, 2)
    relay.put("1/1/M5/3", late)
    relay.later(241, [1, 2, 3, 4])
    assert [u for u, _ in relay.get("1/3/M0")["cohort"]] == [1, 2, 4]


# --- when and whom


def test_a_quorum_waits_its_grace(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(5, policy="quorum", minimum=4, grace_s=300.0))
    all_ready(relay, 1, 2, 3)
    relay.later(1000)
    all_ready(relay, 5)
    assert relay.settle() == relay.now + 300
    relay.later(299)
    assert "1/1/M0" not in relay.names()
    relay.later(1)
    assert [u for u, _ in relay.get("1/1/M0")["cohort"]] == [1, 2, 3, 5]


def test_buffered_takes_updates_from_older_models(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered", staleness=2))
    relay.put("1/0/READY/1", ready(base="77" * 32))
    all_ready(relay, 2, 4)
    assert relay.get("1/1/M0")["cohort"] == [[1, "77" * 32], [2, STATE], [4, STATE]]


def test_a_site_with_other_values_is_proposed_so_that_it_finds_out(tmp_path: Path) -> None:
    """It finds M0 different from its own values, and the others find nothing in M0 that they would refuse."""
    relay = Relay(tmp_path)
    relay.put("1/0/READY/1", ready(state="99" * 32, base="99" * 32))
    all_ready(relay, 2, 3, 4)
    m0 = relay.get("1/1/M0")
    assert m0["state"] == STATE
    assert m0["cohort"] == [[u, STATE] for u in (1, 2, 3, 4)]
    Hand(relay).send("M1", 2, 3, 4)
    relay.later(121)
    assert relay.get("1/1/U1") == [2, 3, 4]


def test_another_base_is_another_value_unless_staleness_allows_it(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.put("1/0/READY/2", ready(base="77" * 32))
    all_ready(relay, 1, 3, 4)
    assert relay.get("1/1/M0")["cohort"] == [[u, STATE] for u in (1, 2, 3, 4)]


def test_of_two_groups_the_larger_counts_then_the_one_with_the_lowest_site(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4), federation(4, OTHER))
    relay.put("1/0/READY/1", ready(purpose="lone"))
    all_ready(relay, 2, 3, 4)
    assert relay.get("1/1/M0")["purpose"] == "train"
    for u, purpose in ((4, "b"), (3, "b"), (2, "a"), (1, "a")):
        relay.put(f"1/0/READY/{u}", ready(purpose=purpose), OTHER)
    relay.settle(OTHER)
    assert relay.get("1/1/M0", OTHER)["purpose"] == "a"


def test_a_site_that_was_set_up_wrongly_may_say_ready_again(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(3))
    relay.put("1/0/READY/3", ready(layout="99" * 32))
    all_ready(relay, 1, 2)
    Hand(relay).send("M1", 1, 2)
    relay.later(121, [1, 2])
    assert "1/1/NEXT" in relay.names()
    relay.put("1/0/READY/3", ready())
    relay.later(0, [1, 2, 3])
    Hand(relay, attempt=2).play(1, 2, 3)
    assert relay.get("1/0/DONE") == {"attempt": 2, "u3": [1, 2, 3]}


# --- what counts


GARBAGE = {
    "other JSON": b"[]",
    "not canonical": b'{"body": {}}',
    "no JSON": b"\x80\x04pickle",
    "nested": b"[" * 900,
}


@pytest.mark.parametrize("what", GARBAGE)
def test_malformed_messages_count_as_absent(tmp_path: Path, what: str) -> None:
    relay = Relay(tmp_path, federation(5))
    relay.put("1/0/READY/5", GARBAGE[what])
    all_ready(relay, 1, 2, 3, 4)
    assert relay.only_round()["late"] == [5]
    relay.put("1/0/READY/5", ready())
    relay.settle()
    hand = Hand(relay)
    relay.put("1/1/M1/5", GARBAGE[what])
    hand.send("M1", 1, 2, 3, 4)
    relay.settle()
    assert relay.only_round()["late"] == [5]
    relay.later(121)
    assert relay.get("1/1/U1") == [1, 2, 3, 4]


def test_messages_that_would_have_the_others_refuse_the_set_count_as_absent(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(6))  # τ = 4
    all_ready(relay, *range(1, 7))
    hand = Hand(relay)
    hand.send("M1", 2, 3, 4, 5)
    one_key = {"chan": "ab" * 32, "left_s": -1, "mask": "ab" * 32}
    relay.put("1/1/M1/1", hand.message("M1", 1).replace(canon(hand.body("M1", 1)), canon(one_key)))
    stale = hand.message("M1", 6).replace(hand.machine()._transcript(kinds.M1).hex().encode(), b"0" * 64)
    relay.put("1/1/M1/6", stale)
    relay.later(121)
    assert relay.get("1/1/U1") == [2, 3, 4, 5]
    with pytest.raises(Problem) as late:
        relay.put("1/1/M2/1", b"{}")
    assert late.value.kind == "too-late"
    short = hand.message("M2", 2).replace(b"ab" * 112, b"ab" * 111)
    relay.put("1/1/M2/2", short)
    hand.send("M2", 3, 4, 5)
    relay.later(121)
    assert "shares: 3 of 4" in relay.get("1/1/NEXT")["why"]


def test_m6_must_agree(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M5")
    hand.send("M6", 1, 2)
    relay.put("1/1/M6/3", hand.message("M6", 3).replace(b"33" * 32, b"34" * 32))
    relay.settle()
    assert "1/0/DONE" not in relay.names()
    hand.send("M6", 4)
    relay.settle()
    assert "1/0/DONE" in relay.names()


# --- vectors that are not what was signed


def spoil(relay: Relay, path: str) -> None:
    """A disk error after the vector was taken."""
    file = relay.folder / CONFIG / path
    file.write_bytes(secrets.token_bytes(file.stat().st_size))


def test_a_failed_attempt_with_a_sum_names_the_site_whose_vector_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M4")
    spoil(relay, "1/1/M3v.2")
    relay.later(241)
    assert "1/1/NEXT" in relay.names()
    assert relay.status()["bad_vectors"] == [{"sum": 1, "attempt": 1, "site": 2}]
    assert "site 2 signed another vector" in caplog.text
    assert not [n for n in relay.names() if "M3v" in n or n.endswith("Y")]


def test_an_answered_attempt_ends_only_if_a_vector_is_found_bad(tmp_path: Path) -> None:
    """Nobody can finish it, for the tag fails at every site. The same vectors meet again with fresh keys."""
    relay = Relay(tmp_path, federation(4), federation(4, OTHER))
    for config in (CONFIG, OTHER):
        all_ready(relay, 1, 2, 3, 4, config=config)
        Hand(relay, config=config).play(1, 2, 3, 4, upto="M5")
    spoil(relay, "1/1/M3v.3")
    relay.hear([1, 2, 3, 4])
    for config in (CONFIG, OTHER):
        relay.now += 3599
        relay.settle(config)
        assert "1/1/NEXT" not in relay.names(config)
    relay.now += 2
    relay.hear([1, 2, 3, 4])
    relay.settle(CONFIG)
    relay.settle(OTHER)
    assert relay.get("1/1/NEXT")["why"] == "the vector of site 3 is not the one that its M3 names"
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3, 4]
    assert "1/1/NEXT" not in relay.names(OTHER)
    assert relay.status(OTHER)["bad_vectors"] == []


# --- the end of rounds


def play_round(relay: Relay, number: int, *sites: int) -> None:
    all_ready(relay, *sites, round_=number)
    Hand(relay, number).play(*sites)
    assert relay.status()["done"] == number


def test_rounds_are_cleaned_up_two_later(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="buffered"))
    relay.put("0/0/CONFIG/1", b"signature")
    play_round(relay, 1, 1, 2, 3)
    play_round(relay, 2, 1, 2, 3)
    rounds = {n.split("/")[0] for n in relay.names()}
    assert rounds == {"0", "1", "2"}
    relay.put("1/0/READY/4", ready())  # late, but it can still read what became of the round
    play_round(relay, 3, 1, 2, 3)
    assert {n.split("/")[0] for n in relay.names()} == {"0", "2", "3"}
    for act in (
        lambda: relay.put("1/0/READY/4", ready()),
        lambda: relay.put("1/1/M6/4", b"{}"),
        lambda: relay.coordinator.check_round(CONFIG, 1),
    ):
        with pytest.raises(Problem, match="round 1 is over; 3 was the last") as refused:
            act()
        assert (refused.value.kind, refused.value.status) == ("round-over", 409)
    relay.coordinator.check_round(CONFIG, 2)
    relay.coordinator.check_round(CONFIG, 0)
    relay.put("2/0/READY/4", ready())
    relay.restart()
    relay.settle()
    assert relay.status()["done"] == 3
    with pytest.raises(Problem, match="round 1 is over"):
        relay.put("1/0/READY/4", ready())


def test_old_rounds_do_not_use_up_the_quota(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(3))
    play_round(relay, 1, 1, 2, 3)
    play_round(relay, 2, 1, 2, 3)
    play_round(relay, 3, 1, 2, 3)
    used = relay.store.totals()[CONFIG]
    for number in range(4, 8):
        play_round(relay, number, 1, 2, 3)
    assert relay.store.totals()[CONFIG] == used


def test_a_round_may_begin_before_an_older_one_is_done(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4, round_=5)
    all_ready(relay, 1, 2, 3, 4, round_=6)
    assert [r["sum"] for r in relay.status()["sums"]] == [5, 6]
    Hand(relay, 6).play(1, 2, 3, 4)
    assert relay.status()["done"] == 6
    assert [r["sum"] for r in relay.status()["sums"]] == [5]
    Hand(relay, 5).play(1, 2, 3, 4)
    assert relay.status()["done"] == 6


def test_two_federations_have_nothing_to_do_with_each_other(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(3), federation(4, OTHER))
    all_ready(relay, 1, 2, 3)
    relay.hear([2], OTHER)
    assert relay.names(OTHER) == set()
    assert relay.status(OTHER)["sums"] == []
    assert list(relay.status(OTHER)["seen_s"]) == ["2"]
    all_ready(relay, 1, 2, 3, 4, config=OTHER)
    Hand(relay).play(1, 2, 3)
    assert relay.status()["done"] == 1
    assert relay.status(OTHER)["done"] == 0
    Hand(relay, config=OTHER).play(1, 2, 3, 4)
    assert relay.status(OTHER)["done"] == 1
