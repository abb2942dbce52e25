"""The ledger's file: one line per round, hash-chained, on disk before a vector leaves, kept for ever.

The rules are in secure/ledger.py. The open file is locked, so a second run in the same directory is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Protocol

from fedhpc.errors import PolicyError, StorageError
from fedhpc.secure.ledger import LedgerEntry, RoundLedger, chain, entry_from_json
from fedhpc.secure.transcript import canon, parse_canon

_MAX_LINE_BYTES = 64 << 10
_LOOK_S = 0.25  # between two looks at a lock that another run holds


class Journal(Protocol):
    """Where a site's ledger lives."""

    ledger: RoundLedger

    def admit(self, entry: LedgerEntry) -> None:
        """Return once `entry` is durable, or raise PolicyError if the ledger forbids it."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class MemoryJournal:
    """A ledger that ends with the process: for benchmarks, mode `off` and a single site."""

    def __init__(self) -> None:
        self.ledger = RoundLedger()

    def admit(self, entry: LedgerEntry) -> None:
        """See Journal.admit; nothing is written."""
        if self.ledger.check(entry):
            self.ledger.add(entry)

    def close(self) -> None:
        """Nothing to release."""


class FileJournal:
    """A ledger in `path`, mode 0600, locked to this process."""

    def __init__(self, path: Path, wait_s: float = 0.0) -> None:
        """`wait_s`: how long another run that holds the file is waited for.

        Raises StorageError if it still does or the file cannot be opened, PolicyError if it was altered.
        """
        self._path = path
        self._failed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._lock(time.monotonic() + wait_s)
                self.ledger = RoundLedger(self._read())
                _sync_directory(path.parent)
            except BaseException:
                os.close(self._file)
                raise
        except OSError as error:
            raise StorageError(f"cannot use the ledger {path}: {error.strerror}") from None

    def admit(self, entry: LedgerEntry) -> None:
        """See Journal.admit. Raises StorageError if the line cannot be made durable; then nothing may be sent."""
        if self._failed:
            raise StorageError(f"the ledger {self._path} could not be written before", "start the run again")
        if not self.ledger.check(entry):
            return
        line = canon({"entry": entry.as_json(), "head": chain(self.ledger.head, entry).hex()}) + b"\n"
        try:
            # One write of a short line with O_APPEND: a kill leaves a whole line or a torn last one, never two mixed.
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, "short write")
            os.fsync(self._file)
        except OSError as error:
            # What lies on disk is unknown now (a torn line, or pages that the kernel dropped), so this process stops
            # here; the next one cuts a torn line, and repeats a whole one.
            self._failed = True
            raise StorageError(
                f"cannot write the ledger {self._path}: {error.strerror}", "nothing was sent; free some space"
            ) from None
        self.ledger.add(entry)

    def close(self) -> None:
        """Release the lock. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1  # a number that is no file: a later write must not reach a file opened in between

    def _lock(self, deadline: float) -> None:
        try:
            while not self._try_lock():
                if time.monotonic() < deadline:
                    time.sleep(_LOOK_S)
                    continue
                raise StorageError(
                    f"another run is using {self._path.parent}", "wait for it to end, or choose another --out"
                )
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be locked: {error.strerror}",
                "the run directory must be on a file system with flock (Lustre: mounted with -o flock)",
            ) from None

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def _read(self) -> list[LedgerEntry]:
        """All entries; a torn last line (nothing was sent after it) is cut off."""
        with open(self._path, "rb") as file:
            data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        entries: list[LedgerEntry] = []
        head = bytes(32)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                if len(line) > _MAX_LINE_BYTES:
                    raise ValueError("line too long")
                record = parse_canon(line)
                entry = entry_from_json(record["entry"])
                head = chain(head, entry)
                if record["head"] != head.hex():
                    raise ValueError("the chain of hashes is broken")
            except (ValueError, KeyError, TypeError) as error:
                raise PolicyError(
                    f"{self._path}, line {number}: {error}",
                    "the ledger was altered; a site that cannot prove what it has summed must not sum again",
                ) from None
            entries.append(entry)
        return entries


def _sync_directory(directory: Path) -> None:
    """Make the name of a new file durable; a ledger that a power cut unlinks would allow every round once more."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
