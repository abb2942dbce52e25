"""One object on its way to disk: blocks of 2^20 bytes in any order, each written once, marked as it arrives.

Two files: `NAME.part` holds the bytes, `NAME.meta` the declared length and Tree and one record per block that is whole:
its number and a keyed 128-bit mark, the GMAC (AES-256-GCM tag over no plaintext) under a key of this object, nonce the
block's number. A mark shows whether other bytes come for a block, and whether bytes on disk are the recorded ones; it
is ten times as fast as SHA-256. The Tree of an object of more than one block is therefore what its site has said, and
is not computed here. A block is recorded after it was written, so a killed relay continues where it was; after a power
cut a record may outlive its bytes, so `load` marks every recorded block again. Memory: 16 bytes per block.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedhpc.files import sync_folder
from fedhpc.relay.problems import Problem
from fedhpc.secure.suite import SHA256, Suite
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_bytes, block_count

_MAGIC = b"fedhpc-upload/2\n"
_TREE_AT = len(_MAGIC) + 8
_KEY_AT = _TREE_AT + 32
_HEAD_BYTES = _KEY_AT + 32
_RECORD_BYTES = 4 + 16
_UNKNOWN = bytes(32)
_SYNC_BYTES = 32 << 20  # written to the disk while more arrives, so that the end need not wait for all
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_RANGES = 1000


class Upload:
    """A partial object. Thread-safe: several connections bring blocks at once."""

    def __init__(self, name: ObjectName, base: Path, length: int, owner: int | None) -> None:
        self.name, self.length, self.owner = name, length, owner
        self.tree: bytes | None = None
        self.last_active = time.time()
        self.finished = False
        self._part, self._meta = base.with_name(base.name + ".part"), base.with_name(base.name + ".meta")
        self._final = base
        self._lock, self._finishing = threading.Lock(), threading.Lock()
        self._disk = threading.Lock()  # the kernel writes a file one call at a time, and others would spin
        self._done: dict[int, bytes] = {}
        self._writing: dict[int, bytes] = {}
        self._fd = self._meta_fd = -1
        self._unsynced = 0
        self._gmac = AESGCM(bytes(32))  # until `create` or `recall`

    # --- life

    def create(self) -> None:
        """Make the files. Raises Problem if the disk is full."""
        with full_disk_is_a_problem():
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._open(os.O_CREAT | os.O_TRUNC)
            key = os.urandom(32)
            self._gmac = AESGCM(key)
            _write_all(self._meta_fd, _MAGIC + self.length.to_bytes(8, "little") + _UNKNOWN + key, 0)

    def recall(self) -> None:
        """Take Tree, key and records from the meta file; a torn last record is dropped. Raises ValueError."""
        _, self.tree = read_head(self._meta)
        with self._meta.open("rb") as file:
            file.seek(_KEY_AT)
            self._gmac = AESGCM(file.read(32))
            while len(record := file.read(_RECORD_BYTES)) == _RECORD_BYTES:
                index = int.from_bytes(record[:4], "little")
                if index < block_count(self.length):
                    self._done[index] = record[4:]

    def load(self) -> None:
        """Take up a partial object after a restart: keep the recorded blocks whose bytes still have their mark."""
        self._open(0)
        self.recall()
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for index, mark in list(self._done.items()):
            view = buffer[: block_bytes(index, self.length)]
            there = os.preadv(self._fd, [view], index * BLOCK_BYTES) == len(view)
            if not there or not hmac.compare_digest(self._mark(index, view), mark):
                del self._done[index]
        os.ftruncate(self._meta_fd, _HEAD_BYTES)
        joined = b"".join(i.to_bytes(4, "little") + d for i, d in self._done.items())
        _write_all(self._meta_fd, joined, _HEAD_BYTES)
        self.last_active = self._part.stat().st_mtime

    def close(self) -> None:
        """Release the files; what is on disk stays."""
        with self._lock:
            for fd in (self._fd, self._meta_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._meta_fd = -1

    def discard(self) -> None:
        """Remove the partial object."""
        self.close()
        for path in (self._part, self._meta):
            path.unlink(missing_ok=True)

    # --- blocks

    def declare_tree(self, tree: bytes) -> None:
        """Say what the whole must hash to. Raises Problem (409) if something else was said before."""
        with self._lock:
            if self.tree is None:
                self._require_open()
                with full_disk_is_a_problem():
                    _write_all(self._meta_fd, tree, _TREE_AT)
                self.tree = tree
            elif self.tree != tree:
                raise Problem("other-bytes", f"{self.name.name} was declared with Tree {self.tree.hex()}")

    def write_block(self, index: int, block: memoryview) -> None:
        """Keep a whole block; the same bytes again are accepted. Raises Problem: other bytes (409), full disk (507)."""
        mark = self._mark(index, block)
        with self._lock:
            known = self._done.get(index) or self._writing.get(index)
            if known is not None:
                if not hmac.compare_digest(known, mark):
                    raise Problem("other-bytes", f"block {index} of {self.name.name} is there with other bytes")
                return
            self._require_open()
            # A private handle: the upload may be discarded, and its number reused, while this thread writes.
            fd = os.dup(self._fd)
            self._writing[index] = mark
        written = False
        try:
            with full_disk_is_a_problem():
                with self._disk:
                    _write_all(fd, block, index * BLOCK_BYTES)
                    self._unsynced += len(block)
                    due = self._unsynced >= _SYNC_BYTES
                    if due:
                        self._unsynced = 0
                if due:
                    self._sync(fd)  # this connection waits, the others go on
            written = True
        finally:
            os.close(fd)
            with self._lock:
                del self._writing[index]
                if written:
                    self._require_open()
                    at = _HEAD_BYTES + _RECORD_BYTES * len(self._done)
                    with full_disk_is_a_problem():
                        _write_all(self._meta_fd, index.to_bytes(4, "little") + mark, at)
                    self._done[index] = mark
                    self.last_active = time.time()

    def missing(self) -> list[tuple[int, int]]:
        """Byte ranges [first, end) that are not there yet, at most 1000 of them."""
        with self._lock:
            ranges: list[tuple[int, int]] = []
            next_block = 0
            for index in [*sorted(self._done), block_count(self.length)]:
                if index > next_block:
                    ranges.append((next_block * BLOCK_BYTES, min(index * BLOCK_BYTES, self.length)))
                    if len(ranges) == MAX_RANGES:
                        break
                next_block = index + 1
            return ranges

    def finish(self, suite: Suite = SHA256) -> bool:
        """Make the object visible if it is whole; True if it is.

        An object of one block must have its Tree, made by `suite`: raises Problem (422), and discards.
        """
        with self._finishing:
            if self.finished:
                return True
            with self._lock:
                if self.tree is None or len(self._done) < block_count(self.length):
                    return False
                self._require_open()
            root = self._small_root(suite) if self.length <= BLOCK_BYTES else self.tree
            if root != self.tree:
                self.discard()
                raise Problem("tree-mismatch", f"{self.name.name} hashes to {root.hex()}; start it again")
            with full_disk_is_a_problem():
                self._sync(self._fd)
                os.fdatasync(self._meta_fd)
                self._part.rename(self._final)
                sync_folder(self._final.parent)
            self.close()
            self.finished = True
            return True

    def _sync(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError:  # the kernel tells of lost bytes once, and not which: all are asked for again
            with self._lock:
                self._done.clear()
                if self._meta_fd >= 0:
                    os.ftruncate(self._meta_fd, _HEAD_BYTES)
            raise

    def _mark(self, index: int, block: memoryview) -> bytes:
        """What is recorded of a block [16]."""
        return self._gmac.encrypt(index.to_bytes(12, "little"), b"", block)

    def _small_root(self, suite: Suite) -> bytes:
        """The Tree of an object of one block, from the disk."""
        return suite.tree(os.pread(self._fd, self.length, 0))

    def _open(self, flags: int) -> None:
        self._fd = os.open(self._part, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        self._meta_fd = os.open(self._meta, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)

    def _require_open(self) -> None:
        if self._fd < 0:
            raise Problem("absent", f"the upload of {self.name.name} has ended", close=True)


def read_head(meta: Path) -> tuple[int, bytes | None]:
    """Declared length and Tree (None: not declared yet). Raises ValueError if the file is not one of ours."""
    with meta.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if len(head) != _HEAD_BYTES or not head.startswith(_MAGIC):
        raise ValueError(f"{meta} is damaged")
    tree = head[_TREE_AT:_KEY_AT]
    return int.from_bytes(head[len(_MAGIC) : _TREE_AT], "little"), None if tree == _UNKNOWN else tree


@contextlib.contextmanager
def full_disk_is_a_problem() -> Iterator[None]:
    """Turn ENOSPC, EDQUOT and EFBIG into a clean 507."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Problem("disk-full", "the relay has no space left; the operator has been told") from None
        raise


def _write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
