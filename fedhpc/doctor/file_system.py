"""What a file system does with names, locks and time: tried out with small files that are removed afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TRY_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(0)
sys.exit(3)
"""
_LOCK_S = 20.0


@dataclass(frozen=True)
class Mount:
    """Where a directory lies."""

    point: str
    kind: str
    options: frozenset[str]


def nearest(path: Path) -> Path:
    """`path` if it is there, else the nearest directory above that is."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def mount_of(path: Path, table: Iterable[str]) -> Mount | None:
    """The mount of `path`, from the lines of /proc/self/mounts; the last of several on one point counts."""
    found: Mount | None = None
    for line in table:
        columns = line.split()
        if len(columns) < 4:
            continue
        point = columns[1].encode().decode("unicode_escape")  # spaces are written \\040
        if path.is_relative_to(point) and (found is None or len(point) >= len(found.point)):
            found = Mount(point, columns[2], frozenset(columns[3].split(",")))
    return found


def exercise(folder: Path) -> str:
    """Create, fsync, rename over another file, link and read back; returns what went wrong, or ''. Raises OSError."""
    name = f".fedhpc-doctor-{secrets.token_hex(8)}"
    old, new, link = (folder / f"{name}{end}" for end in (".a", ".b", ".c"))
    data = secrets.token_bytes(1 << 16)
    try:
        _write(old, b"old")
        _write(new, data)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            return "a file was created twice (O_EXCL does not hold)"
        new.replace(old)
        if new.exists() or old.read_bytes() != data:
            return "a renamed file does not read back"
        os.link(old, link)
        with contextlib.suppress(FileExistsError):
            os.link(old, link)
            return "a name was linked twice"
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if (folder / f"{name}.A").exists():
            return "names that differ only in case are one file"
        if old.stat().st_mode & 0o077:
            return "files made for their owner only can be read by others"
        return ""
    finally:
        for path in (old, new, link):
            path.unlink(missing_ok=True)


def lock_holds(folder: Path) -> str:
    """Lock a file as the ledger does, and let another process try; returns what went wrong, or ''. Raises OSError."""
    path = folder / f".fedhpc-doctor-{secrets.token_hex(8)}.lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        words = [sys.executable, "-I", "-S", "-c", _TRY_LOCK, str(path)]
        other = subprocess.run(words, capture_output=True, timeout=_LOCK_S, check=False)
        return {0: "", 3: "another process got a lock that is held"}.get(
            other.returncode, "the lock could not be tried"
        )
    finally:
        os.close(file)
        path.unlink(missing_ok=True)


def clock_offset(folder: Path) -> float:
    """The file server's clock minus this machine's, in seconds, from the time of a new file. Raises OSError."""
    path = folder / f".fedhpc-doctor-{secrets.token_hex(8)}.time"
    begun = time.time()
    try:
        _write(path, b"time")
        ended = time.time()
        stamp = path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)
    return stamp - begun if stamp < begun else max(0.0, stamp - ended)


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
