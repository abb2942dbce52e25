"""Vectors at the relay: other ones than were signed, a sum that is wrong, and a reboot where they are not synced."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from relay_fakes import CONFIG, Hand, Relay, ready

from fedhpc.errors import ConfigError
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds import accumulator
from fedhpc.relay.settings import read_roster
from fedhpc.relay.store import object_store
from fedhpc.relay.store.object_store import Quota, Store
from fedhpc.relay.store.spare_files import MOST, SpareFiles
from fedhpc.secure.suite import SHA256
from fedhpc.wire.object_names import ObjectName

MIB = 1 << 20
QUOTA = Quota(1 << 30, 1000, 4)


def begun(tmp_path: Path, *sites: int, **own: Any) -> tuple[Relay, Hand]:
    """A relay whose attempt waits for vectors."""
    relay = Relay(tmp_path)
    for u in sites:
        relay.put(f"1/0/READY/{u}", ready(**own))
    relay.settle()
    hand = Hand(relay)
    hand.play(*sites, upto="M2")
    return relay, hand


# --- other vectors than were signed


def test_a_vector_that_its_site_did_not_sign_is_left_out_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    hand.vectors(1, 3, 4)
    relay.put("1/1/M3v/2", bytes(56))
    relay.settle()
    assert relay.only_round()["phase"] == "masked"
    hand.send("M3", 2)
    relay.settle()
    assert relay.get("1/1/M4r")["u3"] == [1, 3, 4]
    assert relay.raw("1/1/Y") == hand.sum_over(1, 3, 4)
    relay.settle()
    assert relay.status()["bad_vectors"] == [{"sum": 1, "attempt": 1, "site": 2}]
    assert caplog.text.count("site 2 signed another vector") == 1


def test_where_all_are_needed_such_a_vector_ends_the_attempt(tmp_path: Path) -> None:
    relay, hand = begun(tmp_path, 1, 2, 3, 4, everyone=1)
    hand.vectors(1, 3, 4)
    relay.put("1/1/M3v/2", bytes(56))
    hand.send("M3", 2)
    relay.hear([1, 2, 3, 4])
    relay.settle()
    assert relay.get("1/1/NEXT")["why"] == "the vector of site 2 is not the one that its M3 names"
    Hand(relay, attempt=2).play(1, 2, 3, 4)
    assert relay.get("1/0/DONE") == {"attempt": 2, "u3": [1, 2, 3, 4]}


def test_what_its_bytes_hash_to_is_found_again_after_a_restart(tmp_path: Path) -> None:
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    hand.vectors(1, 3)
    relay.put("1/1/M3v/2", bytes(56))
    hand.send("M3", 2)
    relay.restart()
    hand.vectors(4)
    relay.settle()
    assert relay.get("1/1/M4r")["u3"] == [1, 3, 4]


def test_a_sum_that_is_not_that_of_the_copies_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay's own memory failed while it added. Its copies are right, so no site is blamed."""
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    real = accumulator.clear_gaps

    def wrong(geometry: Any, at: int, total: Any) -> None:
        real(geometry, at, total)
        total[0] ^= 1

    with monkeypatch.context() as patch:
        patch.setattr(accumulator, "clear_gaps", wrong)
        hand.vectors(1, 2, 3, 4)
        relay.settle()
    assert relay.raw("1/1/Y") != hand.sum_over(1, 2, 3, 4)
    for name in ("M4", "M5"):
        hand.send(name, 1, 2, 3, 4)
    relay.settle()
    relay.now += 3601
    relay.hear([1, 2, 3, 4])
    relay.settle()
    assert relay.get("1/1/NEXT")["why"] == "the sum is not that of the vectors: this relay's memory or disk"
    assert relay.status()["bad_vectors"] == []
    assert [u for u, _ in relay.get("1/2/M0")["cohort"]] == [1, 2, 3, 4]


# --- vectors that are not synced


def unsynced(relay: Relay, hand: Hand, *sites: int) -> None:
    for u in sites:
        data = hand.vector(u)
        upload = relay.store.begin(ObjectName(CONFIG, 1, 1, f"M3v/{u}"), len(data), QUOTA, SHA256, durable=False)
        upload.declare_tree(SHA256.tree(data))
        upload.write_block(0, memoryview(data))
        assert relay.store.finish(upload)
        hand.send("M3", u)


def reboot(relay: Relay) -> None:
    relay.store.close()
    (relay.folder / "lock").write_text("another boot")
    relay.open()


def test_nothing_of_an_unsynced_vector_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def never(fd: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fdatasync", never)
    monkeypatch.setattr(os, "fsync", never)
    data = os.urandom(40 * MIB)
    upload = store.begin(ObjectName(CONFIG, 1, 1, "M3v/1"), len(data), QUOTA, SHA256, durable=False)
    upload.declare_tree(SHA256.tree(data))
    for index in range(40):
        upload.write_block(index, memoryview(data)[index * MIB : (index + 1) * MIB])
    assert store.finish(upload)
    store.close()


def test_a_kill_loses_no_unsynced_vector(tmp_path: Path) -> None:
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    unsynced(relay, hand, 1, 2, 3)
    relay.restart()
    relay.settle()
    unsynced(relay, hand, 4)
    relay.settle()
    assert relay.raw("1/1/Y") == hand.sum_over(1, 2, 3, 4)


def test_a_reboot_before_the_sum_has_all_send_again(tmp_path: Path) -> None:
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    unsynced(relay, hand, 1, 2)
    reboot(relay)
    relay.hear([1, 2, 3, 4])
    relay.settle()
    assert relay.get("1/1/NEXT")["why"] == "the relay's machine started again and lost the vector of site 1"
    Hand(relay, attempt=2).play(1, 2, 3, 4)
    assert relay.get("1/0/DONE") == {"attempt": 2, "u3": [1, 2, 3, 4]}
    relay.restart()
    assert not relay.store.rebooted


def test_without_proc_a_restart_counts_as_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_BOOT", tmp_path / "no such file")
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    unsynced(relay, hand, 1, 2)
    relay.restart()
    assert relay.store.rebooted
    relay.hear([1, 2, 3, 4])
    relay.settle()
    assert relay.get("1/1/NEXT")["why"] == "the relay's machine started again and lost the vector of site 1"


def test_a_reboot_after_the_sum_loses_only_whom_to_blame(tmp_path: Path) -> None:
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    unsynced(relay, hand, 1, 2, 3, 4)
    relay.settle()
    hand.send("M4", 1, 2, 3, 4)
    reboot(relay)
    relay.settle()
    assert relay.only_round()["phase"] == "answers"
    assert relay.raw("1/1/Y") == hand.sum_over(1, 2, 3, 4)
    hand.send("M5", 1, 2, 3, 4)
    relay.settle()
    relay.later(3601, [1, 2, 3, 4])
    assert "1/1/NEXT" not in relay.names()
    assert relay.status()["bad_vectors"] == []
    hand.send("M6", 1, 2, 3)
    relay.settle()
    assert relay.status()["done"] == 1


def test_synced_vectors_outlive_a_reboot(tmp_path: Path) -> None:
    relay, hand = begun(tmp_path, 1, 2, 3, 4)
    hand.vectors(1, 2)
    reboot(relay)
    hand.vectors(3, 4)
    relay.settle()
    assert relay.raw("1/1/Y") == hand.sum_over(1, 2, 3, 4)


def test_blocks_that_a_reboot_left_whole_are_not_asked_for_again(tmp_path: Path) -> None:
    store, what = Store(tmp_path), ObjectName(CONFIG, 1, 1, "M3v/1")
    data = os.urandom(3 * MIB)
    upload = store.begin(what, len(data), QUOTA, SHA256, durable=False)
    for index in range(2):
        upload.write_block(index, memoryview(data)[index * MIB : (index + 1) * MIB])
    store.close()
    (tmp_path / "lock").write_text("another boot")
    with (tmp_path / CONFIG / "1" / "1" / "M3v.1.part").open("r+b") as file:
        file.write(bytes(4096))
    again = Store(tmp_path)
    found = again.upload(what)
    assert found is not None
    assert found.missing() == [(0, MIB), (2 * MIB, 3 * MIB)]
    again.close()


@pytest.mark.parametrize(("text", "syncs"), [("", True), ('durable = "disk"\n', True), ('durable = "memory"\n', False)])
def test_the_roster_says_which_vectors_are_synced(tmp_path: Path, text: str, syncs: bool) -> None:
    roster = tmp_path / "roster.toml"
    roster.write_text(f'["{CONFIG}"]\n{text}sites = {{ 1 = "{"12" * 32}", 2 = "{"34" * 32}" }}\n')
    found = read_roster(roster).federations[CONFIG]
    assert found.syncs("M3v") is syncs
    assert found.syncs("M3")
    assert found.syncs("STATE")


def test_another_word_is_refused(tmp_path: Path) -> None:
    roster = tmp_path / "roster.toml"
    roster.write_text(f'["{CONFIG}"]\ndurable = "tape"\nsites = {{ 1 = "{"12" * 32}" }}\n')
    with pytest.raises(ConfigError, match="durable = 'tape'"):
        read_roster(roster)


# --- files that are written over


def stored(store: Store, round_: int, data: bytes) -> ObjectName:
    what = ObjectName(CONFIG, round_, 1, "M3v/1")
    upload = store.begin(what, len(data), QUOTA, SHA256)
    upload.declare_tree(SHA256.tree(data))
    for at in range(0, len(data), MIB):
        upload.write_block(at // MIB, memoryview(data)[at : at + MIB])
    assert store.finish(upload)
    return what


def inode(store: Store, what: ObjectName) -> int:
    return store.path(what).stat().st_ino


def test_the_next_vector_is_written_over_the_last_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second, other = (os.urandom(n) for n in (2 * MIB + 5, 2 * MIB + 5, 3 * MIB))
    what = stored(store, 1, first)
    before = inode(store, what)
    store.drop(lambda name: name == what)
    assert store.totals() == {}
    assert inode(store, stored(store, 2, other)) != before, "another length"
    what = stored(store, 3, second)
    assert inode(store, what) == before
    assert store.path(what).read_bytes() == second
    store.close()


def test_a_block_of_the_last_vector_is_never_taken_for_one_of_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path)
    what = stored(store, 1, os.urandom(3 * MIB))
    store.drop(lambda name: name == what)
    going = store.begin(ObjectName(CONFIG, 2, 1, "M3v/1"), 3 * MIB, QUOTA, SHA256)
    going.write_block(1, memoryview(bytes(MIB)))
    assert going.missing() == [(0, MIB), (2 * MIB, 3 * MIB)]
    store.close()
    again = Store(tmp_path)
    found = again.upload(going.name)
    assert found is not None
    assert found.missing() == [(0, MIB), (2 * MIB, 3 * MIB)]
    again.close()


def test_what_somebody_reads_is_not_written_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = os.urandom(2 * MIB)
    what = stored(store, 1, data)
    found = store.find(what)
    assert found is not None
    with store.reading(found), found.path.open("rb") as file:
        store.drop(lambda name: name == what)
        stored(store, 2, os.urandom(2 * MIB))
        assert file.read() == data
    with pytest.raises(Problem, match="has been removed"), store.reading(found):
        pass
    store.close()


def test_spare_files_make_room_for_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    what = stored(store, 1, os.urandom(2 * MIB))
    store.drop(lambda name: name == what)
    (spare,) = (tmp_path / "spare").iterdir()
    monkeypatch.setattr(store, "_lacks", lambda length: spare.exists())
    store.room_for(MIB)
    assert not spare.exists()
    monkeypatch.setattr(store, "_lacks", lambda length: True)
    with pytest.raises(Problem, match="no space"):
        store.room_for(MIB)
    store.close()


def test_spare_files_are_few_and_do_not_stay(tmp_path: Path) -> None:
    spare = SpareFiles(tmp_path / "spare")
    for number in range(MOST + 2):
        path = tmp_path / str(number)
        path.write_bytes(bytes(number))
        spare.put(path, number)
    assert len(list((tmp_path / "spare").iterdir())) == MOST
    spare.put(tmp_path / "gone", 1)
    assert not spare.take(tmp_path / "new", 1), "the oldest went"
    assert spare.take(tmp_path / "new", 5)
    assert (tmp_path / "new").read_bytes() == bytes(5)
    assert spare.drop(3600.0) == 0
    assert spare.drop() == sum(range(2, MOST + 2)) - 5
    (tmp_path / "spare" / "left").write_bytes(b"by a relay that was killed")
    SpareFiles(tmp_path / "spare")
    assert list((tmp_path / "spare").iterdir()) == []


def test_a_full_disk_in_a_vector_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relay, _ = begun(tmp_path, 1, 2, 3, 4)
    data = os.urandom(3 * MIB)
    upload = relay.store.begin(ObjectName(CONFIG, 1, 1, "M3v/1"), len(data), QUOTA, SHA256)
    upload.write_block(0, memoryview(data)[:MIB])

    def full(fd: int, block: memoryview, at: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Problem) as refused:
            upload.write_block(1, memoryview(data)[MIB : 2 * MIB])
    assert refused.value.status == 507
    assert upload.missing() == [(MIB, 3 * MIB)]
    assert upload.write_block(1, memoryview(data)[MIB : 2 * MIB]), "the same upload goes on"
