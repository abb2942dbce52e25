"""RUN/SITE/jobs/NAME.json: what this site has asked of its queue, written before the queue is asked.

A name is never used for two jobs; a process that chooses names holds the lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedhpc.errors import DataError, StorageError
from fedhpc.files import write_whole

VERSION = 1
_MOST_BYTES = 1 << 20
_LOCK_S = 300.0  # sbatch may take minutes on a busy controller


@dataclass(frozen=True)
class Record:
    """One link: a job, or the intention to have one."""

    name: str
    chain: str
    link: int
    stage: str
    life: str
    profile: str
    state: Literal["intended", "submitted", "refused", "cancelled"]
    job: str = ""
    """The queue's id; empty until it is known."""
    after: str = ""
    """The name of the link that it follows."""
    words: str = ""
    """What sbatch said, if it refused."""
    cluster: str = ""
    """Where the job was asked for, or is; empty: the cluster of the machine that asked."""
    container: str = ""
    """SHA-256 of the image that it runs in, in hex; "folder": in one, which has none; empty: in no image."""
    time: str = ""
    """ISO 8601, UTC: when it was decided."""


def new_chain() -> str:
    """8 hex digits that no other submission has, also not of a run directory that was here before."""
    return secrets.token_hex(4)


def job_name(federation: str, site: str, chain: str, link: int, stage: str) -> str:
    """The job's name, which the queue knows it by too."""
    return f"fedhpc-{federation}-{site}-{chain}-{link}{ {'train': 't', 'exchange': 'x'}.get(stage, '') }"


@dataclass(frozen=True)
class Records:
    """The records in `folder`."""

    folder: Path

    def all(self) -> list[Record]:
        """Every record, in the order in which they were made. Raises DataError for a damaged one."""
        found = [self._read(path) for path in self.folder.glob("fedhpc-*.json")]
        return sorted(found, key=lambda r: (r.time, r.chain, r.link))

    def chain(self, chain: str) -> list[Record]:
        """The links of one chain, in order."""
        return sorted((r for r in self.all() if r.chain == chain), key=lambda r: r.link)

    def get(self, name: str) -> Record | None:
        """The record of `name`."""
        path = self.folder / f"{name}.json"
        return self._read(path) if path.exists() else None

    def put(self, record: Record) -> Record:
        """Write it durably; returns the same record. Raises StorageError."""
        body = json.dumps({"version": VERSION, **dataclasses.asdict(record)}, indent=1, sort_keys=True)
        write_whole(self.folder / f"{record.name}.json", body.encode() + b"\n", mode=0o600)
        return record

    @contextlib.contextmanager
    def locked(self, patience_s: float = _LOCK_S) -> Iterator[None]:
        """Let only one process at a time decide about this site's jobs. Raises StorageError after `patience_s`."""
        path = self.folder / "lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}", "check space and permissions") from None
        try:
            _lock(handle, path, time.monotonic() + patience_s)
            yield
        finally:
            os.close(handle)

    def _read(self, path: Path) -> Record:
        try:
            with path.open("rb") as file:
                table = json.loads(file.read(_MOST_BYTES))
            if table.pop("version") != VERSION:
                raise ValueError("another version")
            for added in ("cluster", "container"):  # records of 0.1 have none
                table.setdefault(added, "")
            types = {f.name: int if f.name == "link" else str for f in dataclasses.fields(Record)}
            if {k: type(v) for k, v in table.items()} != types or table["name"] != path.stem:
                raise ValueError("other keys")
            return Record(**table)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise DataError(
                f"{path} is not the record of a job", "it was changed after it was written; move it away"
            ) from None


def _lock(handle: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageError(f"another submission holds {path}", "wait for it to end") from None
            time.sleep(0.1)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be locked: {error.strerror}",
                "the run directory must be on a file system with flock (Lustre: mounted with -o flock)",
            ) from None
