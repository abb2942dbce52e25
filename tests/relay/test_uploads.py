"""The store alone: what it finds after a restart, refuses, forgets, and does on a bad disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from relay_process import CONFIG, MIB, SITES, name, noise, root

from fedhpc.relay.problems import Problem
from fedhpc.relay.store.object_store import Quota, Store
from fedhpc.secure.suite import SHA256

QUOTA = Quota(1 << 30, 1000, SITES)


def upload(store: Store, text: str, data: bytes | bytearray, round_: int = 1, quota: Quota = QUOTA) -> bool:
    going = store.begin(name(text, round_=round_), len(data), quota, SHA256)
    going.declare_tree(bytes.fromhex(root(data)))
    for at in range(0, len(data), MIB):
        going.write_block(at // MIB, memoryview(data)[at : at + MIB])
    return store.finish(going)


def test_the_store_finds_everything_after_a_restart_and_trusts_no_damaged_block(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = noise(4 * MIB)
    assert upload(store, "V/1", data)
    going = store.begin(name("V/2"), 4 * MIB, QUOTA, SHA256)
    for index in (3, 0, 1):
        going.write_block(index, memoryview(data)[index * MIB : (index + 1) * MIB])
    store.close()
    folder = tmp_path / CONFIG / "1" / "0"
    with (folder / "V.2.part").open("r+b") as file:  # a power cut: recorded, but the bytes never reached the disk
        file.seek(MIB)
        file.write(bytes(100))
    with (folder / "V.2.meta").open("ab") as file:
        file.write(b"torn")
    (folder / "W.1.part").write_bytes(b"killed before the first word")
    (folder / "X.1.meta").write_bytes(b"garbage")
    again = Store(tmp_path)
    found = again.find(name("V/1"))
    assert found is not None
    assert (found.length, found.tree.hex()) == (4 * MIB, root(data))
    partial = again.upload(name("V/2"))
    assert partial is not None
    assert partial.missing() == [(MIB, 3 * MIB)]
    assert upload(again, "V/2", data)
    assert sorted(p.name for p in folder.iterdir()) == ["V.1", "V.1.meta", "V.2", "V.2.meta"]
    assert again.totals()[CONFIG] == {u: {"bytes": 4 * MIB, "objects": 1, "uploads": 0} for u in (1, 2)}
    again.close()


def test_marks_outlive_the_relay(tmp_path: Path) -> None:
    """After a restart other bytes are refused for a block that is there, and one flipped bit on disk is found."""
    data = noise(3 * MIB + 100)
    view = memoryview(data)
    store = Store(tmp_path)
    assert upload(store, "V/1", data)
    going = store.begin(name("V/2"), len(data), QUOTA, SHA256)
    for index in (0, 1, 3):
        going.write_block(index, view[index * MIB : (index + 1) * MIB])
    store.close()
    part = tmp_path / CONFIG / "1" / "0" / "V.2.part"
    with part.open("r+b") as file:
        file.seek(2 * MIB - 1)
        file.write(bytes([data[2 * MIB - 1] ^ 0x80]))
    store = Store(tmp_path)
    for what in ("V/1", "V/2"):
        again = store.begin(name(what), len(data), QUOTA, SHA256)
        for index in (0, 3):
            block = view[index * MIB : (index + 1) * MIB]
            again.write_block(index, block)
            other = bytearray(block)
            other[-1] ^= 1
            with pytest.raises(Problem, match="other bytes"):
                again.write_block(index, memoryview(other))
        with pytest.raises(Problem, match="other bytes"):  # the marks are those of places, not of bytes alone
            again.write_block(0, view[MIB : 2 * MIB])
    partial = store.upload(name("V/2"))
    assert partial is not None
    assert partial.missing() == [(MIB, 3 * MIB)]
    with pytest.raises(Problem, match="gone"):
        store.begin(name("V/1"), len(data), QUOTA, SHA256).write_block(4, view[:MIB])
    store.close()


def test_objects_of_another_format_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert upload(store, "V/1", noise(10))
    assert upload(store, "V/2", noise(10))
    store.close()
    meta = tmp_path / CONFIG / "1" / "0" / "V.1.meta"
    meta.write_bytes(meta.read_bytes().replace(b"fedhpc-upload/3", b"fedhpc-upload/2"))
    store = Store(tmp_path)
    assert store.find(name("V/1")) is None
    assert store.find(name("V/2")) is not None
    assert sorted(p.name for p in meta.parent.iterdir()) == ["V.2", "V.2.meta"]
    store.close()


def test_finished_rounds_are_dropped_and_their_quota_is_free(tmp_path: Path) -> None:
    store = Store(tmp_path)
    quota = Quota(8 * MIB, 100, 2)
    for round_ in (1, 2):
        upload(store, "V/1", noise(2 * MIB), round_, quota)
    with pytest.raises(Problem, match="quota"):
        store.begin(name("V/1", round_=3), 2 * MIB, quota, SHA256)
    assert store.drop_rounds(CONFIG, 2) == 1
    assert store.find(name("V/1", round_=1)) is None
    assert not (tmp_path / CONFIG / "1").exists()
    store.begin(name("V/1", round_=3), 2 * MIB, quota, SHA256)
    assert store.expire_uploads(-1.0) == 1
    assert store.drop_attempt((CONFIG, 2, 0)) == 1
    assert store.totals() == {}
    store.close()


def test_a_failed_write_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    data = noise(2 * MIB)
    real, calls = os.pwrite, [0]

    def full(fd: int, block: memoryview, at: int) -> int:
        calls[0] += 1
        if calls[0] == 4:  # head, Tree, first block, its record come before
            real(fd, block[:1000], at)
            raise OSError(28, "No space left on device")
        return real(fd, block, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Problem, match="no space left"):
        upload(store, "V/1", data)
    assert store.find(name("V/1")) is None
    assert upload(store, "V/1", data)  # space again: the same upload goes on
    store.close()


@pytest.mark.parametrize("at", [1, 2])
def test_a_disk_that_lost_bytes_is_believed_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The kernel reports a failed write at one fsync only: the first, while bytes arrive, or the second, at the end."""
    store = Store(tmp_path)
    data = noise(40 * MIB)
    real, calls = os.fdatasync, [0]

    def lose(fd: int) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", lose)
    with pytest.raises(OSError, match="Input/output"):
        upload(store, "V/1", data)
    going = store.upload(name("V/1"))
    assert going is not None
    assert going.missing() == [(0, 40 * MIB)]
    assert not going.finish()
    assert upload(store, "V/1", data)
    store.close()
    assert (tmp_path / CONFIG / "1" / "0" / "V.1").read_bytes() == data


def test_too_many_unfinished_objects(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(1, 33):
        store.begin(name(f"V/1/{number}"), 10, QUOTA, SHA256)
    with pytest.raises(Problem, match="unfinished"):
        store.begin(name("V/1/33"), 10, QUOTA, SHA256)
    store.begin(name("V/2"), 10, QUOTA, SHA256)
    store.close()
