"""The file that blocks of a partial object are written into: past the page cache where that works, and synced.

Nobody reads a vector again but after a loss, so its pages would be made for nothing: on machines whose host lends them
memory that costs ten times the processor time of the write itself (docs/relay-transport.md). O_DIRECT takes blocks of
whole pages, at their place in memory and in the file; everything else goes through the page cache, which the kernel
keeps in step with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_PAGE_BYTES = 4096
_SYNC_BYTES = 32 << 20  # through the page cache; written to the disk while more arrives, so that the end need not wait
_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP}  # this file system, or this disk's sectors, cannot do it


class ClosedFileError(Exception):
    """The file was closed, or never open."""


class BlockFile:
    """One open file. Thread-safe. A `durable` one is synced; the other outlives a kill of the relay, but no reboot."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path, self._durable = path, durable
        self._lock = threading.Lock()
        self._disk = threading.Lock()  # the kernel writes a file one call at a time, and others would spin
        self._fd = self._direct = -1
        self._users = 0
        self._closing = False
        self._unsynced = 0

    def open(self, flags: int = 0) -> None:
        """Open or (O_CREAT) make the file. Raises OSError."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        if self._durable:
            with contextlib.suppress(OSError):
                self._direct = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)

    @property
    def is_open(self) -> bool:
        """Whether blocks can be written."""
        return self._fd >= 0 and not self._closing

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While it lasts the file's numbers stay its own, even if it is closed. Raises ClosedFileError."""
        with self._lock:
            if not self.is_open:
                raise ClosedFileError
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._release()

    def write(self, block: memoryview, at: int) -> bool:
        """Put bytes at their place; whether `sync` is due. Within `in_use`. Raises OSError."""
        with self._disk:
            if not self._write_direct(block, at):
                write_all(self._fd, block, at)
                self._unsynced += len(block)
            due = self._durable and self._unsynced >= _SYNC_BYTES
            if due:
                self._unsynced = 0
            return due

    def _write_direct(self, block: memoryview, at: int) -> bool:
        if self._direct < 0 or len(block) % _PAGE_BYTES or _address(block) % _PAGE_BYTES:
            return False
        try:
            return os.pwrite(self._direct, block, at) == len(block)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return False

    def read(self, view: memoryview, at: int) -> int:
        """Fill `view` from the file; how many bytes there were."""
        return os.preadv(self._fd, [view], at)

    def sync(self) -> None:
        """Have the disk hold all that was written, if it is `durable`. Within `in_use`.

        Raises OSError; then nobody knows which bytes are on the disk.
        """
        if self._durable:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Release the file, once nobody uses it any more; what is on disk stays."""
        with self._lock:
            self._closing = True
            self._release()

    def _release(self) -> None:
        if self._closing and not self._users:
            for fd in (self._fd, self._direct):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._direct = -1


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """Write all of `data` at `at`. Raises OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count


def _address(block: memoryview) -> int:
    return np.frombuffer(block, np.uint8).ctypes.data
