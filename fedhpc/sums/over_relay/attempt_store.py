"""Attempt files on disk: what a site needs to go on with an attempt after a restart (docs/protocol.md section 6).

A reader of one, while its attempt lasts, can open this site's vector. So they have mode 0600 in a directory 0700, under
the ledger's lock of the configuration, never part of a checkpoint, and erased when they are not needed.

    round-R.attempt  the newest version, replaced by rename; each version is sealed
    round-R.key      what seals them [32]: written once per attempt, before the first version, and overwritten in place

Once the key is overwritten no version can be opened, even if blocks of the disk or copies still hold it. A kill between
the two leaves a key without a version, or a version without its key: as if there were none, and nothing was sent then.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from typing_extensions import override

from fedhpc.errors import PolicyError, StorageError
from fedhpc.files import hint_for, private_folder, write_whole
from fedhpc.ledger.file import LOST_LEDGER_HINT
from fedhpc.ledger.journal import Journal
from fedhpc.secure.attempt_file import AttemptSecrets, SiteDisk, from_private, sealed, unsealed
from fedhpc.secure.keys import KEY_BYTES
from fedhpc.secure.ledger import LedgerEntry, Mark

_NAME = re.compile(r"round-(\d+)\.(?:attempt|key)")
_MOST_BYTES = 16 << 20


class AttemptFiles:
    """The attempt files of one site, one per round: a new attempt replaces the file of the one before."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._folder, self._journal = folder, journal
        private_folder(folder)
        try:
            for stale in folder.glob(".*"):  # a process died while it wrote; nothing of it was sent
                erase(stale)
        except OSError as error:
            raise StorageError(f"cannot use {folder}: {error.strerror}") from None

    def load(self, round_: int) -> AttemptSecrets | None:
        """What this site kept of its newest attempt of a round. Raises StorageError if others can read it."""
        path = self._path(round_)
        key, data = _read(_key_of(path), KEY_BYTES), _read(path, _MOST_BYTES)
        if data is None or not _is_key(key):
            return None
        assert key is not None
        try:
            return from_private(unsealed(key, data))
        except PolicyError as error:
            raise PolicyError(f"{path}: {error.what}", error.hint) from None

    def refuse_lost_ledger(self, site: str) -> None:
        """Raise PolicyError if this site has masked a vector for a round that is not in its ledger."""
        ledger = self._journal.ledger
        for number in self._rounds():
            kept = self.load(number) if ledger.entry_of(number) is None else None
            if kept is not None and kept.t2:
                raise PolicyError(
                    f"the ledger of site {site} does not have round {number}, and {self._path(number)} is of a vector "
                    "in it",
                    LOST_LEDGER_HINT,
                )

    def disk(self, round_: int, mark: Mark | None = None, *, resumed: bool = False) -> AttemptDisk:
        """What an attempt of `round_` keeps durable. `resumed`: it goes on from what `load` gave.

        `mark`: what the ledger remembers of its vector.
        """
        return AttemptDisk(self._path(round_), self._journal, mark, resumed=resumed)

    def erase(self, round_: int) -> None:
        """Erase what is kept of a round."""
        _erase_attempt(self._path(round_))

    def erase_until(self, round_: int) -> None:
        """Erase the files of all rounds up to `round_`."""
        for number in self._rounds():
            if number <= round_:
                self.erase(number)

    def erase_unsent(self) -> None:
        """Erase the files of rounds in which nothing of this site's vector has left: its keys open nothing.

        The ledger tells: it takes a vector's fingerprint before the first byte is masked. Where bytes have left, the
        next job needs the keys to go on with that attempt, and others may need its answers.
        """
        for number in self._rounds():
            if self._journal.ledger.entry_of(number) is None:
                self.erase(number)

    def _rounds(self) -> list[int]:
        return sorted({int(m[1]) for path in self._folder.iterdir() if (m := _NAME.fullmatch(path.name))})

    def _path(self, round_: int) -> Path:
        return self._folder / f"round-{round_}.attempt"


class AttemptDisk(SiteDisk):
    """SiteDisk of one round: the attempt file at `path`, and the site's ledger."""

    def __init__(self, path: Path, journal: Journal, mark: Mark | None, *, resumed: bool) -> None:
        self._path, self._journal, self._mark, self._resumed = path, journal, mark, resumed
        self._key = b""

    @override
    def allows(self, entry: LedgerEntry) -> None:
        self._journal.allows(self._marked(entry))

    @override
    def admit(self, entry: LedgerEntry) -> None:
        self._journal.admit(self._marked(entry))

    def _marked(self, entry: LedgerEntry) -> LedgerEntry:
        return entry if self._mark is None else self._mark.on(entry)

    @override
    def save(self, private: bytes) -> None:
        """Raises StorageError; then nothing may be sent."""
        if not self._key:
            self._key = self._kept_key() if self._resumed else self._new_key()
        write_whole(self._path, sealed(self._key, private), mode=0o600)

    def _kept_key(self) -> bytes:
        key = _read(_key_of(self._path), KEY_BYTES)
        if not _is_key(key):
            raise StorageError(f"{_key_of(self._path)} was removed while it was in use", "start this site again")
        assert key is not None
        return key

    def _new_key(self) -> bytes:
        """A key on the disk; that of the attempt before is overwritten. No copy of it is made by a rename."""
        key, path = os.urandom(KEY_BYTES), _key_of(self._path)
        try:
            _erase_attempt(self._path)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(key)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}", hint_for(error)) from None
        return key


def erase(path: Path) -> None:
    """Overwrite and remove a file of keys. Where a disk copies on write, old blocks may live on: encrypt such disks."""
    with contextlib.suppress(FileNotFoundError):
        with open(path, "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.write(bytes(size))
            os.fsync(file.fileno())
        path.unlink()


def _erase_attempt(path: Path) -> None:
    """The key first: from then on nothing of the round opens."""
    erase(_key_of(path))
    erase(path)


def _key_of(path: Path) -> Path:
    return path.with_suffix(".key")


def _is_key(data: bytes | None) -> bool:
    """Not one that a kill left short, or whose erasure it cut."""
    return data is not None and len(data) == KEY_BYTES and any(data)


def _read(path: Path, most: int) -> bytes | None:
    """A private file's bytes, one more than `most` at the most. Raises StorageError if others can read it."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise StorageError(f"the attempt file {path} can be read by others", f"chmod 600 {path}")
            return file.read(most + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read the attempt file {path}: {error.strerror}") from None
