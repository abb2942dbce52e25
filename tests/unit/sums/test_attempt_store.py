"""Attempt files: private, whole or not there, and overwritten before they go."""

from __future__ import annotations

import dataclasses
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import pytest
from federation_fakes import journal_in, known
from protocol_fakes import World
from secure_fakes import key_of

from fedhpc.errors import PolicyError, StorageError
from fedhpc.ledger.journal import FileJournal
from fedhpc.secure.attempt import SiteAttempt
from fedhpc.secure.attempt_file import MAGIC, AttemptSecrets, fresh_secrets
from fedhpc.secure.ledger import NO_SET, LedgerEntry
from fedhpc.sums.over_relay.attempt_store import AttemptFiles, erase


def attempt(site: int = 1) -> AttemptSecrets:
    made = fresh_secrets(key_of("config"), site, b"m0", secrets.token_bytes)
    made.sent["M1"] = b"message"
    return made


@pytest.fixture
def journal(tmp_path: Path) -> FileJournal:
    return journal_in(tmp_path / "home")


@pytest.fixture
def files(tmp_path: Path, journal: FileJournal) -> AttemptFiles:
    return AttemptFiles(tmp_path / "attempts", journal)


def test_what_was_saved_comes_back_to_its_owner_only(tmp_path: Path, files: AttemptFiles, journal: FileJournal) -> None:
    before = os.umask(0)
    try:
        files.disk(4).save(attempt().export_private())
        other = AttemptFiles(tmp_path / "others" / "attempts", journal)
        other.disk(1).save(attempt().export_private())
    finally:
        os.umask(before)
    kept = attempt()
    files.disk(4).save(kept.export_private())  # a new attempt replaces the one before
    assert files.load(4) == kept
    assert files.load(3) is None
    assert sorted(p.name for p in (tmp_path / "attempts").iterdir()) == ["round-4.attempt", "round-4.key"]
    for name in ("round-4.attempt", "round-4.key"):
        assert stat.S_IMODE((tmp_path / "attempts" / name).stat().st_mode) == 0o600
    for folder in (tmp_path / "attempts", tmp_path / "others" / "attempts"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert AttemptFiles(tmp_path / "attempts", journal).load(4) == kept  # a restart


@pytest.mark.parametrize("name", ["round-1.attempt", "round-1.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, files: AttemptFiles, mode: int, name: str) -> None:
    files.disk(1).save(attempt().export_private())
    path = tmp_path / "attempts" / name
    path.chmod(mode)
    with pytest.raises(StorageError, match="can be read by others") as refused:
        files.load(1)
    assert refused.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    assert files.load(1) is not None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, files: AttemptFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = attempt()
    disk = files.disk(1)
    disk.save(kept.export_private())

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            if name == "replace":
                patch.setattr(Path, name, full)
            with pytest.raises(StorageError, match="No space left"):
                disk.save(attempt().export_private())
            with pytest.raises(StorageError, match="No space left"):
                files.disk(2).save(attempt().export_private())
        assert files.load(1) == kept
        assert files.load(2) is None
        assert {p.name for p in (tmp_path / "attempts").iterdir()} <= {"round-1.attempt", "round-1.key", "round-2.key"}


def test_the_file_is_synced_before_its_name_and_the_name_before_the_call_returns(
    files: AttemptFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real, replace = os.fsync, Path.replace

    def fsync(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real(fd)

    def renamed(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    disk = files.disk(1)
    disk.save(attempt().export_private())
    assert calls == ["file", "file", "rename", "folder"]  # its key first
    calls.clear()
    disk.save(attempt().export_private())
    assert calls == ["file", "rename", "folder"]


def test_what_a_killed_process_left_half_written_is_erased(
    tmp_path: Path, files: AttemptFiles, journal: FileJournal
) -> None:
    kept = attempt()
    files.disk(2).save(kept.export_private())
    torn = tmp_path / "attempts" / ".round-2.attempt.0123456789abcdef"
    torn.write_bytes(attempt().export_private()[:100])
    witness = tmp_path / "link"
    os.link(torn, witness)  # shows what the disk holds under the file that was removed
    again = AttemptFiles(tmp_path / "attempts", journal)
    assert not torn.exists()
    assert witness.read_bytes() == bytes(100)
    assert again.load(2) == kept


def test_keys_are_overwritten_and_later_rounds_stay(tmp_path: Path, files: AttemptFiles) -> None:
    for round_ in (1, 2, 10, 11):
        files.disk(round_).save(attempt().export_private())
        for suffix in ("attempt", "key"):
            os.link(tmp_path / "attempts" / f"round-{round_}.{suffix}", tmp_path / f"link-{round_}.{suffix}")
    (tmp_path / "attempts" / "note.txt").write_text("of the user")
    files.erase_until(10)
    assert [files.load(r) is not None for r in (1, 2, 10, 11)] == [False, False, False, True]
    for round_ in (1, 2, 10):
        for suffix in ("attempt", "key"):
            assert not any((tmp_path / f"link-{round_}.{suffix}").read_bytes())
    assert sorted(p.name for p in (tmp_path / "attempts").iterdir()) == ["note.txt", "round-11.attempt", "round-11.key"]
    files.erase_until(10)  # nothing is left to do
    erase(tmp_path / "attempts" / "gone")


class Inodes:
    """Keeps every inode that is written below a folder, however short its name lives: what a disk's blocks hold."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handles: list[int] = []
        real = os.open

        def opening(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
            handle = real(path, flags, mode, **options)
            if flags & (os.O_WRONLY | os.O_RDWR) and folder in Path(path).parents:
                self.handles.append(real(path, os.O_RDONLY))
            return handle

        monkeypatch.setattr(os, "open", opening)

    def hold(self, wanted: set[bytes]) -> set[bytes]:
        """Which of `wanted` some inode still holds."""
        blocks = [os.pread(handle, 1 << 20, 0) for handle in self.handles]
        return {w for w in wanted if any(w in block for block in blocks)}


def saved_versions(files: AttemptFiles, round_: int) -> set[bytes]:
    """Two attempts of one round with six versions each; every secret of theirs, as bytes and in hex."""
    secret: set[bytes] = set()
    for _ in range(2):
        made, disk = attempt(), files.disk(round_)
        for name in ("M1", "M2", "M3", "M4", "M5", "M6"):
            made.sent[name] = b"message"
            disk.save(made.export_private())
            assert files.load(round_) == made
        secret |= {made.chan, made.mask, made.self_, made.group}
    return secret | {s.hex().encode() for s in secret}


def test_no_version_that_was_ever_written_keeps_a_secret(
    tmp_path: Path, files: AttemptFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes = Inodes(tmp_path / "attempts", monkeypatch)
    secret = saved_versions(files, 3)
    keys = {(tmp_path / "attempts" / "round-3.key").read_bytes()}
    assert len(inodes.handles) > 12
    assert inodes.hold(keys) == keys  # a test that looks in the right places
    files.erase(3)
    assert inodes.hold(secret | keys) == set()
    versions = [os.pread(handle, 1 << 20, 0) for handle in inodes.handles]
    assert sum(version.startswith(MAGIC) for version in versions) == 10  # there they are still: nothing opens them


@pytest.mark.parametrize("dies", ["key", "key half", "attempt", "erase half", "erase key"])
def test_a_kill_at_any_write_leaves_an_attempt_or_none(
    tmp_path: Path, files: AttemptFiles, journal: FileJournal, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    folder, kept = tmp_path / "attempts", attempt()
    key = folder / "round-1.key"
    disk = files.disk(1)
    disk.save(kept.export_private())
    if dies == "key":  # before the new attempt's key is there
        erase(key)
        erase(folder / "round-1.attempt")
    elif dies == "key half":
        files.erase(1)
        key.touch(0o600)
        key.write_bytes(bytes([1] * 16))
    elif dies == "attempt":
        (folder / "round-1.attempt").unlink()
    elif dies == "erase half":
        key.write_bytes(bytes(32))
    else:
        erase(key)
    again = AttemptFiles(folder, journal)
    assert again.load(1) is None
    following = attempt()
    again.disk(1).save(following.export_private())
    assert again.load(1) == following
    again.erase_until(1)
    assert list(folder.iterdir()) == []


def test_what_goes_on_after_a_restart_keeps_its_key(tmp_path: Path, files: AttemptFiles, journal: FileJournal) -> None:
    kept = attempt()
    files.disk(1).save(kept.export_private())
    key = (tmp_path / "attempts" / "round-1.key").read_bytes()
    again = AttemptFiles(tmp_path / "attempts", journal)
    kept.sent["M2"] = b"message"
    again.disk(1, resumed=True).save(kept.export_private())
    assert again.load(1) == kept
    assert (tmp_path / "attempts" / "round-1.key").read_bytes() == key
    (tmp_path / "attempts" / "round-1.key").unlink()
    with pytest.raises(StorageError, match="removed while it was in use"):
        again.disk(1, resumed=True).save(kept.export_private())


def test_a_clean_leave_erases_only_where_nothing_has_left(files: AttemptFiles, journal: FileJournal) -> None:
    """The ledger takes the vector before the first byte is masked; a later attempt of that round stays too."""
    for round_ in (1, 2, 3):
        files.disk(round_).save(attempt().export_private())
    journal.admit(LedgerEntry(2, "train", key_of("i"), key_of("f"), NO_SET))
    files.erase_unsent()
    assert [files.load(round_) is not None for round_ in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b" ", lambda b: b[:40] + b"z" + b[41:], lambda b: b * 99]
)
@pytest.mark.parametrize("within", [False, True])
def test_a_damaged_file_is_refused_without_a_word_of_it(
    tmp_path: Path, files: AttemptFiles, damage: Any, within: bool
) -> None:
    """`within`: what was sealed is damaged; else what lies on the disk."""
    private = attempt().export_private()
    path = tmp_path / "attempts" / "round-1.attempt"
    files.disk(1).save(damage(private) if within else private)
    if not within:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PolicyError, match="damaged or of another version") as refused:
        files.load(1)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert not any(key in str(refused.value) for key in (attempt().mask.hex(), "message"))


def test_a_file_too_long_for_any_attempt_is_not_read_whole(tmp_path: Path, files: AttemptFiles) -> None:
    files.disk(1).save(attempt().export_private())
    path = tmp_path / "attempts" / "round-1.attempt"
    os.truncate(path, 1 << 40)  # a sparse terabyte
    with pytest.raises(PolicyError, match="damaged"):
        files.load(1)


def test_the_file_of_another_site_is_refused(files: AttemptFiles) -> None:
    world = World(4)
    files.disk(1).save(attempt(site=2).export_private())
    with pytest.raises(PolicyError, match="belongs to site 2, not to 1"):
        SiteAttempt(1, world.identities[1], world.roster, world.thresholds, files.disk(1), stored=files.load(1))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, journal: FileJournal) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=str(tmp_path / "file")):
        AttemptFiles(tmp_path / "file", journal)


def test_the_ledger_is_the_sites_own(files: AttemptFiles, journal: FileJournal) -> None:
    entry = LedgerEntry(3, "train", key_of("i"), key_of("f"), NO_SET)
    files.disk(3).allows(entry)
    assert len(journal.ledger) == 0
    files.disk(3).admit(entry)
    assert journal.ledger.entry_of(3) == dataclasses.replace(entry, config=known().config)
    other = LedgerEntry(3, "train", key_of("i"), key_of("other"), NO_SET)
    for refused in (files.disk(3).allows, files.disk(3).admit):
        with pytest.raises(PolicyError, match="another vector"):
            refused(other)


def test_a_vector_that_the_ledger_does_not_know_tells_that_it_is_lost(
    files: AttemptFiles, journal: FileJournal
) -> None:
    """Masking begins after the ledger's line; before it nothing has left, and the file means nothing."""
    files.disk(3).save(attempt().export_private())
    files.refuse_lost_ledger("aa")
    masked = dataclasses.replace(attempt(), t2=key_of("t2"))
    files.disk(4).save(masked.export_private())
    with pytest.raises(PolicyError, match=r"ledger of site aa does not have round 4, .*round-4\.attempt") as lost:
        files.refuse_lost_ledger("aa")
    assert "`fedhpc federation next`" in lost.value.hint
    journal.admit(LedgerEntry(4, "train", key_of("i"), key_of("f"), NO_SET))
    files.refuse_lost_ledger("aa")


def test_a_damaged_file_is_named(tmp_path: Path, files: AttemptFiles) -> None:
    files.disk(2).save(attempt().export_private())
    path = tmp_path / "attempts" / "round-2.attempt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PolicyError, match=r"round-2\.attempt: the attempt file is damaged") as damaged:
        files.load(2)
    assert "remove it" in damaged.value.hint
