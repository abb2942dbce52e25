"""Attempt files on disk: what a site needs to go on with an attempt after a restart (docs/protocol.md section 6).

Whoever reads one while its attempt lasts can open this site's vector. So they are mode 0600 in a directory 0700, under
the ledger's lock of the configuration, never part of a checkpoint, and erased when they are not needed.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from fedhpc.errors import StorageError
from fedhpc.federation.journal import Journal
from fedhpc.files import write_whole
from fedhpc.secure.attempt_file import AttemptSecrets, from_private
from fedhpc.secure.ledger import LedgerEntry, Mark

_NAME = re.compile(r"round-(\d+)\.attempt")
_MOST_BYTES = 16 << 20


class AttemptFiles:
    """The attempt files of one site, one per round: a new attempt replaces the file of the one before."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._folder, self._journal = folder, journal
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for stale in folder.glob(".*"):  # a process died while it wrote; nothing of it was sent
                erase(stale)
        except OSError as error:
            raise StorageError(f"cannot use {folder}: {error.strerror}") from None

    def load(self, round_: int) -> AttemptSecrets | None:
        """What this site kept of its newest attempt of a round. Raises StorageError if others can read it."""
        path = self._path(round_)
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_mode & 0o077:
                    raise StorageError(f"the attempt file {path} can be read by others", f"chmod 600 {path}")
                data = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read the attempt file {path}: {error.strerror}") from None
        return from_private(data)

    def disk(self, round_: int, mark: Mark | None = None) -> AttemptDisk:
        """What an attempt of `round_` keeps durable; `mark`: what the ledger remembers of its vector."""
        return AttemptDisk(self._path(round_), self._journal, mark)

    def erase_until(self, round_: int) -> None:
        """Erase the files of all rounds up to `round_`."""
        for path in self._folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and int(match[1]) <= round_:
                erase(path)

    def _path(self, round_: int) -> Path:
        return self._folder / f"round-{round_}.attempt"


class AttemptDisk:
    """SiteDisk of one round: the attempt file at `path`, and the site's ledger."""

    def __init__(self, path: Path, journal: Journal, mark: Mark | None = None) -> None:
        self._path, self._journal, self._mark = path, journal, mark

    def allows(self, entry: LedgerEntry) -> None:
        """See SiteDisk.allows."""
        self._journal.allows(self._marked(entry))

    def admit(self, entry: LedgerEntry) -> None:
        """See SiteDisk.admit."""
        self._journal.admit(self._marked(entry))

    def _marked(self, entry: LedgerEntry) -> LedgerEntry:
        return entry if self._mark is None else self._mark.on(entry)

    def save(self, private: bytes) -> None:
        """See SiteDisk.save. Raises StorageError; then nothing may be sent."""
        write_whole(self._path, private, mode=0o600)


def erase(path: Path) -> None:
    """Overwrite and remove a file of keys. Where a disk copies on write, old blocks may live on: encrypt such disks."""
    with contextlib.suppress(FileNotFoundError):
        with open(path, "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.write(bytes(size))
            os.fsync(file.fileno())
        path.unlink()
