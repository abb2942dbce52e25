"""The relay dies between any two of its writes, and goes on from its disk with the same result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from relay_fakes import CONFIG, Hand, Relay, all_ready, federation, ready

from fedhpc.relay.problems import Problem
from fedhpc.relay.store import kept_attempt as kept
from fedhpc.relay.store.object_store import Store
from fedhpc.relay.store.upload import Upload
from fedhpc.secure.suite import SHA256

STRIDE = 5  # 1 tries every moment, in more than a minute; an object takes six, so all kinds are met with 5


class Crash(BaseException):
    """The process ends here."""


class Moments:
    """Counts the steps of the relay's own writes and removals; ends the process before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.on = 0, -1, False
        for owner, name in (
            (kept, "_sync"),
            (kept, "sync_folder"),
            (kept.KeptAttempt, "write"),
            (Store, "publish"),
            (Store, "drop"),
            (Path, "unlink"),
            (Path, "rename"),
            (Upload, "create"),
        ):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            if self.on:
                self.count += 1
                if self.count - 1 == self.at:
                    raise Crash
            return call(*args, **named)

        return wrapped


class Mortal(Relay):
    """A relay that starts again over its disk whenever it dies in a step."""

    moments: Moments
    deaths = 0

    def settle(self, config: str = CONFIG) -> float | None:
        while True:
            try:
                self.moments.on = True
                return super().settle(config)
            except Crash:
                self.moments.on = False
                self.deaths += 1
                self.restart()
                self.hear([1, 2, 3])
            finally:
                self.moments.on = False


def scenario(relay: Relay) -> None:
    """A failed attempt with a sum, a second one that is done, and two rounds more, so that the first is cleaned up."""
    relay.hear([1, 2, 3])
    all_ready(relay, 1, 2, 3)
    Hand(relay).play(1, 2, 3, upto="M4")
    while "1/1/NEXT" not in relay.names():  # a relay that was restarted waits as long again
        relay.later(241, [1, 2, 3])
    Hand(relay, attempt=2).play(1, 2, 3)
    for number in (2, 3):
        all_ready(relay, 1, 2, 3, round_=number)
        Hand(relay, number).play(1, 2, 3)


def files(folder: Path) -> dict[str, bytes]:
    """All files; of the meta files, which hold random keys, only that they are there."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name != "lock"]
    return {str(p.relative_to(folder)): b"" if p.suffix == ".meta" else p.read_bytes() for p in found}


def test_it_dies_at_every_write_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)  # hundreds of restarts; a killed process loses no page
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    Mortal.moments = Moments(monkeypatch)
    clean = Mortal(tmp_path / "clean", federation(3))
    scenario(clean)
    expected, moments = files(tmp_path / "clean"), Mortal.moments.count
    assert clean.status()["done"] == 3
    assert {name.split("/")[1] for name in expected} == {"2", "3"}
    clean.store.close()
    assert moments > 200
    for at in range(0, moments, STRIDE):
        Mortal.moments.count, Mortal.moments.at = 0, at
        relay = Mortal(tmp_path / str(at), federation(3))
        scenario(relay)
        assert relay.deaths == 1, at
        assert files(tmp_path / str(at)) == expected, at
        relay.store.close()


def test_a_set_is_formed_once_even_if_more_has_come_since(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, policy="quorum", grace_s=1))
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M2")
    hand.vectors(1, 2, 3)
    late, vector = hand.message("M3", 4), hand.vector(4)
    relay.later(3601)
    before = relay.raw("1/1/M4r"), relay.raw("1/1/Y")
    relay.put("1/1/M3/4", late, checked=False)
    relay.put("1/1/M3v/4", vector, checked=False)
    relay.restart()
    relay.settle()
    assert (relay.raw("1/1/M4r"), relay.raw("1/1/Y")) == before
    assert relay.get("1/1/U1") == [1, 2, 3, 4]


def test_a_sum_without_its_message_is_made_anew(tmp_path: Path) -> None:
    """Killed between Y and M4r; meanwhile another vector is whole. Nobody has been told of the first sum."""
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M2")
    hand.vectors(1, 2, 3)
    (relay.folder / CONFIG / "1" / "1" / "Y.own").write_bytes(bytes(100))  # a scratch file that is too long
    old = kept.KeptAttempt(relay.store, (CONFIG, 1, 1), SHA256)
    old.write("Y", 0, memoryview(hand.sum_over(1, 2)))
    old.keep("Y", bytes(32))
    hand.vectors(4)
    relay.restart()
    relay.settle()
    assert relay.raw("1/1/Y") == hand.sum_over(1, 2, 3, 4)
    assert relay.get("1/1/M4r")["sum"] == SHA256.tree(hand.sum_over(1, 2, 3, 4)).hex()


def test_deadlines_start_anew_after_a_restart(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    relay.later(100)
    relay.restart()
    relay.later(119)
    relay.settle()
    relay.later(119)
    assert "1/1/NEXT" not in relay.names()
    relay.later(2)
    assert "1/1/NEXT" in relay.names()


def test_many_attempts_leave_little_behind(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(3, policy="buffered"))
    all_ready(relay, 1, 2, 3)
    Hand(relay).play(1, 2, 3, upto="M4")
    Hand(relay).send("M5", 2)
    for attempt in range(2, 30):
        relay.later(241, [1, 2, 3])
        Hand(relay, attempt=attempt).send("M1", 1, 2)
    assert relay.only_round()["attempt"] == 29
    used = {n for n in relay.names() if n.startswith("1/") and not n.startswith("1/0/")}
    gone = {f"1/{a}/NEXT" for a in range(2, 28)}
    last = {f"1/28/{n}" for n in ("M0", "M1/1", "M1/2", "NEXT")} | {f"1/29/{n}" for n in ("M0", "M1/1", "M1/2")}
    assert used == gone | last | {f"1/1/{n}" for n in ("M0", "M4/1", "M4/2", "M4/3", "M4r", "M5/2", "NEXT")}
    with pytest.raises(Problem, match="attempt 5 of round 1 has ended"):
        relay.put("1/5/M1/1", b"{}")
    relay.restart()
    relay.later(0, [1, 2, 3])
    assert relay.only_round()["attempt"] == 29
    Hand(relay, attempt=29).play(1, 2, 3)
    assert relay.status()["done"] == 1


def test_a_damaged_proposal_is_an_attempt_given_up(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(3))
    all_ready(relay, 1, 2, 3)
    (relay.folder / CONFIG / "1" / "1" / "M0").write_bytes(bytes(relay.store.list((CONFIG, 1, 1))[0].length))
    relay.restart()
    relay.later(0, [1, 2, 3])
    Hand(relay, attempt=2).play(1, 2, 3)
    assert relay.get("1/0/DONE")["attempt"] == 2


def test_a_full_disk_is_met_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay(tmp_path, federation(3))
    for u in (1, 2, 3):
        relay.put(f"1/0/READY/{u}", ready())
    monkeypatch.setattr(relay.store, "_reserve_bytes", 1 << 60)
    with pytest.raises(Exception, match="no space"):
        relay.settle()
    assert relay.names() == {f"1/0/READY/{u}" for u in (1, 2, 3)}
    monkeypatch.setattr(relay.store, "_reserve_bytes", 0)
    relay.settle()
    hand = Hand(relay)
    hand.play(1, 2, 3, upto="M2")
    hand.vectors(1, 2, 3)
    monkeypatch.setattr(relay.store, "_reserve_bytes", 1 << 60)
    with pytest.raises(Exception, match="no space"):
        relay.settle()
    assert relay.only_round()["phase"] == "masked"
    monkeypatch.setattr(relay.store, "_reserve_bytes", 0)
    relay.settle()
    assert relay.raw("1/1/Y") == hand.sum_over(1, 2, 3)
