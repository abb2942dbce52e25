"""Writes small files whole or not at all; folders that are their owner's only. The umask changes neither mode."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedhpc.errors import StorageError


def write_whole(path: Path, *data: bytes | memoryview, mode: int = 0o644) -> None:
    """Put `data`, joined, under `path`; after a crash the old or the new is there. Raises StorageError."""
    write_stream(path, data, mode)


def write_stream(path: Path, parts: Iterable[bytes | memoryview], mode: int = 0o644) -> None:
    """As `write_whole`, from parts that are made one after the other."""
    try:
        with _temporary(path, parts, mode) as temporary:
            temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint_for(error)) from None


def write_new(path: Path, data: bytes, mode: int = 0o644) -> bool:
    """Put `data` under `path` unless something is there; returns whether it was free. Raises OSError."""
    try:
        with _temporary(path, (data,), mode) as temporary:
            os.link(temporary, path)
    except FileExistsError:
        return False
    return True


def private_folder(path: Path) -> None:
    """Make the folder `path`, mode 0700; one that others could look into is tightened. Raises StorageError.

    Folders above it that are missing are made as the umask says: they are not ours.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        tighten(path)
    except OSError as error:
        raise StorageError(f"cannot make {path}: {error.strerror}", hint_for(error)) from None


def tighten(path: Path) -> bool:
    """Remove what others may do with a folder of this account; returns whether that was anything. Raises OSError.

    Folders of other accounts, and those that many share (sticky, such as /tmp), stay as they are.
    """
    found = path.stat()
    loose = found.st_mode & 0o077
    if not loose or found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX:
        return False
    path.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
    return True


def hint_for(error: OSError) -> str:
    """What to do about a file that cannot be read or written."""
    hints = {
        errno.ENOSPC: "the disk is full: make room, then start again",
        errno.EDQUOT: "the quota is used up: make room, then start again",
        errno.EROFS: "the file system is read-only here",
    }
    return hints.get(error.errno or 0, "check space and permissions")


def sync_folder(folder: Path) -> None:
    """Make new names, renames and removals in `folder` durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that order renames themselves
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary(path: Path, data: Iterable[bytes | memoryview], mode: int) -> Iterator[Path]:
    """`data` on disk under another name, which is gone afterwards; then the folder's own entry is on disk too."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            if not mode & 0o007:  # the mode of a private file holds, whatever the umask
                os.fchmod(file.fileno(), mode)
            for part in data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
