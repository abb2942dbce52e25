"""Objects cut into blocks of 2^20 bytes in any order, each written once, hashed as it arrives.

Two files: `NAME.part` holds the bytes, `NAME.meta` the declared length and Tree, the federation's suite, and one
record per block that is whole: its number and its hash by that suite. That is the one hash of a block at the relay: it
shows whether other bytes come for it, whether bytes on disk are the recorded ones, and what the Tree of the whole is. A
block is recorded after it was written, so a killed relay continues where it was; after a power cut a record may outlive
its bytes, so `load` hashes every recorded block again. Memory: a hash per block.

An object that is not `durable` is synced by nobody: it outlives a kill, not a reboot, and its meta file says so.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedhpc.files import sync_folder
from fedhpc.relay.problems import Problem
from fedhpc.relay.store.block_file import BlockFile, ClosedFileError, write_all
from fedhpc.secure.suite import SUITES, Suite, suite_named
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_bytes, block_count

_MAGIC = b"fedhpc-upload/3\n"
_UNSYNCED_MAGIC = b"fedhpc-unsynced\n"
_TREE_AT = len(_MAGIC) + 8
_SUITE_AT = _TREE_AT + 32
_HEAD_BYTES = _SUITE_AT + 8
_RECORD_BYTES = 4 + 32
_UNKNOWN = bytes(32)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_RANGES = 1000


class Upload:
    """A partial object. Thread-safe: several connections bring blocks at once."""

    def __init__(self, name: ObjectName, base: Path, length: int, suite: Suite, *, durable: bool = True) -> None:
        """`suite`: the federation's, which blocks are hashed by."""
        self.name, self.length, self.owner, self.suite = name, length, name.owner, suite
        self.tree: bytes | None = None
        self.last_active = time.time()
        self.finished = False
        self.part, self._meta = base.with_name(base.name + ".part"), base.with_name(base.name + ".meta")
        self._final = base
        self._lock, self._finishing = threading.Lock(), threading.Lock()
        self._durable = durable
        self._file = BlockFile(self.part, durable=durable)
        self._hashes: dict[int, bytes] = {}  # of every block that ever came
        self._there: set[int] = set()  # the blocks that are kept
        self._writing: dict[int, bytes] = {}
        self._losses = 0  # how often a sync failed
        self._meta_fd = -1

    # --- life

    def create(self) -> None:
        """Make the files. Raises Problem if the disk is full."""
        with full_disk_is_a_problem():
            self._final.parent.mkdir(parents=True, exist_ok=True)
            if self.part.exists() and self.part.stat().st_size != self.length:  # a spare one has the length
                self.part.unlink()
            self._meta.unlink(missing_ok=True)
            self._open(os.O_CREAT)
            magic = _MAGIC if self._durable else _UNSYNCED_MAGIC
            suite = self.suite.name.encode("ascii").ljust(_HEAD_BYTES - _SUITE_AT, b"\0")
            write_all(self._meta_fd, magic + self.length.to_bytes(8, "little") + _UNKNOWN + suite, 0)

    def recall(self) -> None:
        """Take Tree and records from the meta file; a torn last record is dropped. Raises ValueError."""
        self.tree = read_head(self._meta).tree
        for index, found in read_records(self._meta, self.length):
            self._hashes[index] = found
        self._there = set(self._hashes)

    def load(self) -> None:
        """Take up a partial object after a restart: keep the recorded blocks whose bytes still have their hash."""
        self._open(0)
        self.recall()
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for index, known in list(self._hashes.items()):
            view = buffer[: block_bytes(index, self.length)]
            there = self._file.read(view, index * BLOCK_BYTES) == len(view)
            if not there or not hmac.compare_digest(self.suite.block(view), known):
                del self._hashes[index]
        self._there = set(self._hashes)
        os.ftruncate(self._meta_fd, _HEAD_BYTES)
        joined = b"".join(i.to_bytes(4, "little") + d for i, d in self._hashes.items())
        write_all(self._meta_fd, joined, _HEAD_BYTES)
        self.last_active = self.part.stat().st_mtime

    def close(self) -> None:
        """Release the files; what is on disk stays."""
        with self._lock:
            self._file.close()
            if self._meta_fd >= 0:
                os.close(self._meta_fd)
            self._meta_fd = -1

    def discard(self) -> None:
        """Remove the partial object."""
        self.close()
        for path in (self.part, self._meta):
            path.unlink(missing_ok=True)

    # --- blocks

    def declare_tree(self, tree: bytes) -> None:
        """Say what the whole must hash to. Raises Problem (409) if something else was said before."""
        with self._lock:
            if self.tree is None:
                self._require_open()
                with full_disk_is_a_problem():
                    write_all(self._meta_fd, tree, _TREE_AT)
                self.tree = tree
            elif self.tree != tree:
                raise Problem("other-bytes", f"{self.name.name} was declared with Tree {self.tree.hex()}")

    def write_block(self, index: int, block: memoryview) -> bool:
        """Keep a whole block; whether it is news. The same bytes again are accepted.

        Raises Problem: other bytes (409), also where an earlier copy was lost; full disk (507).
        """
        found = self.suite.block(block)
        with self._lock:
            known = self._hashes.get(index) or self._writing.get(index)
            if known is not None and not hmac.compare_digest(known, found):
                raise Problem("other-bytes", f"block {index} of {self.name.name} is there with other bytes")
            if index in self._there or index in self._writing:
                return False
            self._require_open()
            self._writing[index], losses = found, self._losses
        written = False
        try:
            with full_disk_is_a_problem(), self._as_open():
                if self._file.write(block, index * BLOCK_BYTES):
                    self._sync()  # this connection waits, the others go on
            written = True
        finally:
            with self._lock:
                del self._writing[index]
                kept = written and self._losses == losses
                if kept:
                    self._record(index, found)
        return kept

    def _record(self, index: int, found: bytes) -> None:
        """The caller holds the lock."""
        self._require_open()
        at = _HEAD_BYTES + _RECORD_BYTES * len(self._there)
        with full_disk_is_a_problem():
            write_all(self._meta_fd, index.to_bytes(4, "little") + found, at)
        self._there.add(index)
        self._hashes[index] = found
        self.last_active = time.time()

    def missing(self) -> list[tuple[int, int]]:
        """Byte ranges [first, end) that are not there yet, at most 1000 of them."""
        with self._lock:
            ranges: list[tuple[int, int]] = []
            next_block = 0
            for index in [*sorted(self._there), block_count(self.length)]:
                if index > next_block:
                    ranges.append((next_block * BLOCK_BYTES, min(index * BLOCK_BYTES, self.length)))
                    if len(ranges) == MAX_RANGES:
                        break
                next_block = index + 1
            return ranges

    def finish(self) -> bool:
        """Make the object visible if it is whole; True if it is.

        An object of one block must have its Tree: raises Problem (422), and discards.
        """
        with self._finishing:
            if self.finished:
                return True
            with self._lock:
                if self.tree is None or len(self._there) < block_count(self.length):
                    return False
                self._require_open()
            if self.length <= BLOCK_BYTES and self.found_tree != self.tree:
                self.discard()
                raise Problem("tree-mismatch", f"{self.name.name} hashes to {self.found_tree.hex()}; start it again")
            with full_disk_is_a_problem():
                with self._as_open():
                    self._sync()
                if self._durable:
                    os.fdatasync(self._meta_fd)
                self.part.rename(self._final)
                if self._durable:
                    sync_folder(self._final.parent)
            self.close()
            self.finished = True
            return True

    @property
    def found_tree(self) -> bytes:
        """Tree [32] of the bytes that came. All blocks must be there."""
        return self.suite.root(self.length, [self._hashes[index] for index in range(block_count(self.length))])

    def _sync(self) -> None:
        try:
            self._file.sync()
        except OSError:  # the kernel tells of lost bytes once, and not which: all are asked for again
            with self._lock:
                self._losses += 1  # also of blocks that are written and not yet recorded
                self._there.clear()
                if self._meta_fd >= 0:
                    os.ftruncate(self._meta_fd, _HEAD_BYTES)
            raise

    @contextlib.contextmanager
    def _as_open(self) -> Iterator[None]:
        """The upload may be discarded, and the number of its file reused, while this thread writes."""
        try:
            with self._file.in_use():
                yield
        except ClosedFileError:
            raise self._ended() from None

    def _open(self, flags: int) -> None:
        self._file.open(flags)
        self._meta_fd = os.open(self._meta, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)

    def _require_open(self) -> None:
        if self._meta_fd < 0:
            raise self._ended()

    def _ended(self) -> Problem:
        return Problem("absent", f"the upload of {self.name.name} has ended", close=True)


@dataclass(frozen=True)
class Head:
    """What a meta file begins with. `tree` [32]: None until it is declared."""

    length: int
    tree: bytes | None
    durable: bool
    suite: Suite


def read_head(meta: Path) -> Head:
    """Raises ValueError if the file is not one of ours, ConfigError where its suite needs a package that is missing."""
    with meta.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if len(head) != _HEAD_BYTES or not head.startswith((_MAGIC, _UNSYNCED_MAGIC)):
        raise ValueError(f"{meta} is damaged")
    tree, name = head[_TREE_AT:_SUITE_AT], head[_SUITE_AT:].rstrip(b"\0").decode("ascii", "replace")
    if name not in SUITES:
        raise ValueError(f"{meta} is damaged")
    length = int.from_bytes(head[len(_MAGIC) : _TREE_AT], "little")
    return Head(length, None if tree == _UNKNOWN else tree, head.startswith(_MAGIC), suite_named(name))


def read_records(meta: Path, length: int) -> Iterator[tuple[int, bytes]]:
    """(number, hash) of each block that was recorded, in the order in which they came."""
    with meta.open("rb") as file:
        file.seek(_HEAD_BYTES)
        while len(record := file.read(_RECORD_BYTES)) == _RECORD_BYTES:
            index = int.from_bytes(record[:4], "little")
            if index < block_count(length):
                yield index, record[4:]


def recorded_tree(meta: Path, length: int, suite: Suite) -> bytes | None:
    """Tree [32] of the bytes that came, by the records of a whole object; None where some are missing."""
    hashes = dict(read_records(meta, length))
    if len(hashes) < block_count(length):
        return None
    return suite.root(length, [hashes[index] for index in range(block_count(length))])


@contextlib.contextmanager
def full_disk_is_a_problem() -> Iterator[None]:
    """Turn ENOSPC, EDQUOT and EFBIG into a clean 507."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Problem("disk-full", "the relay has no space left; the operator has been told") from None
        raise
