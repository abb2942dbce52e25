"""Sums that nobody finishes, and what came while a disk or a relay failed: nothing of it stays or is believed."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from relay_fakes import CONFIG, Hand, Relay, all_ready, federation, ready

from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.relay.settings import Roster
from fedhpc.relay.store import object_store
from fedhpc.relay.store.object_store import Quota, Store
from fedhpc.secure.suite import SHA256
from fedhpc.wire.object_names import ObjectName

MIB = 1 << 20
QUOTA = Quota(1 << 30, 1000, 4)
VECTOR = os.urandom(3 * MIB)


def half_added(tmp_path: Path) -> Relay:
    """A relay whose sum 5 has the vector of one of four sites, in memory and in its file."""
    relay = Relay(tmp_path)
    relay.coordinator._memory._count = 1
    for u in (1, 2, 3, 4):
        relay.put(f"5/0/READY/{u}", ready(tensors=[[32, 3 * MIB // 4]]))
    relay.settle()
    Hand(relay, 5).play(1, 2, 3, 4, upto="M2")
    name = ObjectName(CONFIG, 5, 1, "M3v/1")
    sum_, upload = relay.coordinator.arriving(name), relay.begin(name, len(VECTOR))
    assert sum_ is not None
    for index in range(3):
        block = memoryview(VECTOR)[index * MIB : (index + 1) * MIB]
        assert upload.write_block(index, block)
        sum_.add(1, upload, index, block)
    assert relay.coordinator._memory._out
    assert growing(tmp_path)
    return relay


def growing(folder: Path) -> list[Path]:
    return list(folder.glob("*/*/*/*.own"))


def test_a_round_that_its_sites_leave_behind_gives_memory_and_disk_back(tmp_path: Path) -> None:
    relay = half_added(tmp_path)
    for number in (6, 7, 8):
        all_ready(relay, 1, 2, 3, 4, round_=number)
        Hand(relay, number).play(1, 2, 3, 4)
    assert relay.status()["done"] == 8
    assert relay.coordinator._memory._out == 0
    assert not growing(tmp_path)
    assert not (tmp_path / CONFIG / "5").exists()


@pytest.mark.parametrize("stays", [False, True])
def test_so_does_a_federation_whose_rules_change_or_that_leaves(tmp_path: Path, stays: bool) -> None:
    relay = half_added(tmp_path)
    relay.coordinator.update(Roster({CONFIG: federation(4, policy="quorum")} if stays else {}))
    assert relay.coordinator._memory._out == 0
    assert not growing(tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_a_sum_being_closed_keeps_its_file_until_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The rules change while a sum is closed: it is whole, or nothing is left of it, and the successor closes it."""
    relay, sums = Relay(tmp_path), []
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    hand.play(1, 2, 3, 4, upto="M2")
    real = RoundMachine.close_masked

    def close_masked(machine: RoundMachine) -> Any:
        sums.append(machine)
        if len(sums) > 1:
            return real(machine)
        relay.coordinator.update(Roster({CONFIG: federation(4, policy="quorum")}))
        machine._objects.write("Y", 0, memoryview(bytes(8)))
        if fails:
            raise OSError(errno.EIO, "broken")
        return real(machine)

    monkeypatch.setattr(RoundMachine, "close_masked", close_masked)
    hand.vectors(1, 2, 3, 4)
    if fails:
        with pytest.raises(OSError, match="broken"):
            relay.settle()
        assert not growing(tmp_path)
    relay.settle()
    assert relay.raw("1/1/Y") == hand.sum_over(1, 2, 3, 4)
    assert not growing(tmp_path)
    assert len(sums) == 1 + fails


def test_a_block_that_was_written_before_a_failed_sync_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have lost it, though its connection learns of no error."""
    store = Store(tmp_path)
    upload = store.begin(ObjectName(CONFIG, 1, 1, "M3v/1"), len(VECTOR), QUOTA, SHA256)
    real = upload._file.write

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    def write(block: memoryview, at: int) -> bool:
        due = real(block, at)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(OSError, match="lost"):
                upload._sync()  # of another connection
        return due

    with monkeypatch.context() as patch:
        patch.setattr(upload._file, "write", write)
        assert not upload.write_block(0, memoryview(VECTOR)[:MIB])
    assert upload.missing() == [(0, len(VECTOR))]
    assert upload.write_block(0, memoryview(VECTOR)[:MIB])
    assert upload.missing() == [(MIB, len(VECTOR))]
    store.close()


def test_a_relay_killed_while_it_starts_after_a_reboot_is_suspicious_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = Store(tmp_path), bytes(100)
    upload = store.begin(ObjectName(CONFIG, 1, 1, "M3v/1"), len(data), QUOTA, SHA256, durable=False)
    upload.declare_tree(SHA256.tree(data))
    upload.write_block(0, memoryview(data))
    assert store.finish(upload)
    store.close()
    (tmp_path / "lock").write_text("another boot")

    def killed(root: Path, *, rebooted: bool) -> Iterator[Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(object_store, "found_on_disk", killed)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path)
    gc.collect()  # closes the lock file, as the end of a process does
    again = Store(tmp_path)
    assert again.rebooted
    assert not again.of(CONFIG)
    again.close()
    last = Store(tmp_path)
    assert not last.rebooted
    last.close()


def test_spare_files_go_when_an_upload_goes_on_where_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    spare, name = tmp_path / "spare", ObjectName(CONFIG, 1, 1, "M3v/1")
    (tmp_path / "old").write_bytes(VECTOR)
    store._spare.put(tmp_path / "old", len(VECTOR))
    upload = store.begin(name, 2 * MIB, QUOTA, SHA256)
    upload.write_block(0, memoryview(VECTOR)[:MIB])
    assert list(spare.iterdir())
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert store.begin(name, 2 * MIB, QUOTA, SHA256) is upload
    assert not list(spare.iterdir())
    assert upload.missing() == [(MIB, 2 * MIB)]
    store.close()
