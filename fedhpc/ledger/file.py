"""The ledger's file: one line per gain of any federation of the institution, hash-chained, kept forever.

Several runs write to it, so each gain locks the file, reads what others have added, checks, appends one line, fsyncs
and unlocks. The rules are in secure/.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedhpc.errors import PolicyError, StorageError
from fedhpc.files import sync_folder
from fedhpc.secure.home_ledger import HomeLedger, federation_from_json
from fedhpc.secure.ledger import GENESIS, chain, entry_from_json
from fedhpc.secure.transcript import canon, parse_canon

LEDGER_FILE = "ledger.jsonl"
NO_LOCKS = "the ledger's home must be on a file system with flock (Lustre: mounted with -o flock): [ledger] path"
LOST_LEDGER_HINT = (
    "put the ledger's home back, or name it in [ledger] path; if it is lost for good, this site sums again in the next "
    "epoch only: the coordinator runs `fedhpc federation next`"
)
_MAX_LINE_BYTES = 64 << 10
_LOOK_S = 0.005  # between two looks at a lock that another run holds for one gain
_LOCKED_S = 120.0

Record = dict[str, Any]


class LedgerFile:
    """The open file `path`, mode 0600, and what its lines say."""

    def __init__(self, path: Path, *, make: bool = True) -> None:
        """Raises StorageError if it cannot be opened or locked, PolicyError if it was altered.

        `make`: False only reads, and a missing file counts as empty.
        """
        self.path = path
        self.known = HomeLedger()
        self._failed = False
        self._head, self._lines, self._read_bytes = GENESIS, 0, 0
        self._file = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if make else os.O_RDONLY
        try:
            if make:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, flags | os.O_CLOEXEC, 0o600)
            with self.locked(alone=make):
                pass
            if make:
                sync_folder(path.parent)
        except FileNotFoundError:
            if make:
                raise
        except OSError as error:
            self.close()
            raise StorageError(f"cannot use the ledger {path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    @contextmanager
    def locked(self, *, alone: bool = True) -> Iterator[None]:
        """Keep other processes out, after reading what they have added. Raises StorageError, PolicyError."""
        self._refuse_failed()
        lock(
            self._file,
            self.path,
            time.monotonic() + _LOCKED_S,
            f"another run keeps its lock on {self.path}",
            alone=alone,
        )
        try:
            self._take_in(cut=alone)
            yield
        finally:
            if self._file >= 0:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def append(self, record: Record, add: Callable[[], object]) -> None:
        """Make `record` durable, then `add` it to `known`. Call it `locked`.

        Raises StorageError if it cannot be made durable; then nothing may be sent.
        """
        self._refuse_failed()
        head = _chained(self._head, record)
        line = canon(record | {"head": head.hex()}) + b"\n"
        try:
            # One write of a short line with O_APPEND: a kill leaves a whole line or a torn last one, never two mixed.
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, "short write")
            os.fsync(self._file)
        except OSError as error:
            # What is on disk is now unknown (a torn line, or pages that the kernel dropped), so this process stops
            # here; the next one cuts a torn line, and repeats a whole one.
            self._failed = True
            raise StorageError(
                f"cannot write the ledger {self.path}: {error.strerror}", "nothing was sent; free some space"
            ) from None
        add()
        self._head, self._lines, self._read_bytes = head, self._lines + 1, self._read_bytes + len(line)

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1  # a number of no file: a later write must not reach a file opened in between

    def _refuse_failed(self) -> None:
        if self._failed:
            raise StorageError(f"the ledger {self.path} could not be written before", "start the run again")

    def _take_in(self, *, cut: bool) -> None:
        """Read the lines that were added since; a torn last one (nothing was sent after it) is cut off."""
        status = os.fstat(self._file)
        try:
            there = self.path.stat()
        except OSError:
            there = None
        moved = there is None or (there.st_dev, there.st_ino) != (status.st_dev, status.st_ino)
        if moved or status.st_size < self._read_bytes:
            self._failed = True
            raise PolicyError(
                f"the ledger {self.path} was replaced or cut while a run used it",
                LOST_LEDGER_HINT,
            )
        if status.st_size == self._read_bytes:
            return
        data = _read_from(self._file, self._read_bytes, status.st_size)
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and cut:
            os.ftruncate(self._file, self._read_bytes + whole)
        for line in data[:whole].splitlines():
            self._lines += 1
            try:
                if len(line) > _MAX_LINE_BYTES:
                    raise ValueError("line too long")
                record = parse_canon(line)
                said = record.pop("head")
                self._head = _chained(self._head, record)
                if said != self._head.hex():
                    raise ValueError("the chain of hashes is broken")
                take_in(self.known, record)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._failed = True
                raise PolicyError(
                    f"{self.path}, line {self._lines}: {error}",
                    f"the ledger was altered; {LOST_LEDGER_HINT}",
                ) from None
        self._read_bytes += whole


def take_in(known: HomeLedger, record: Record) -> None:
    """Add what one line says. Raises ValueError for a line of no known kind."""
    kind, value = next(iter(record.items())) if len(record) == 1 else ("", None)
    if kind == "entry":
        known.add(entry_from_json(value))
    elif kind == "federation":
        known.know(federation_from_json(value))
    elif kind == "refused" and isinstance(value, dict):
        known.refused.append(value)
    else:
        raise ValueError("not a line of a ledger")


def lock(file: int, path: Path, deadline: float, held: str, hint: str = "", *, alone: bool = True) -> None:
    """Lock an open file, or raise StorageError: another process holds it (`held` says so), or there are no locks."""
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StorageError(f"{path} cannot be locked: {error.strerror}", NO_LOCKS) from None
        if time.monotonic() >= deadline:
            raise StorageError(held, hint or "wait for it to end")
        time.sleep(min(_LOOK_S, max(0.0, deadline - time.monotonic())))


def _chained(head: bytes, record: Record) -> bytes:
    """The hash of the file after a line [32]."""
    if "entry" in record:
        return chain(head, entry_from_json(record["entry"]))
    return hashlib.sha256(head + canon(record)).digest()


def _read_from(file: int, start: int, stop: int) -> bytes:
    parts = []
    while start < stop and (part := os.pread(file, stop - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)
