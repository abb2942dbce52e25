"""Vectors in a spool directory: every rank of a site writes and reads its own blocks of one file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedhpc.errors import InternalError, PeersError
from fedhpc.files import sync_folder
from fedhpc.transport.spool.folder import SpoolFolder, length_of, opened, remove, storage
from fedhpc.transport.spool.modes import open_part
from fedhpc.transport.transport import BlockWork, Traffic
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_count


class SpoolOutgoing:
    """An object being written to the site's half. It gets its name when the leader commits, after all ranks."""

    def __init__(
        self,
        folder: SpoolFolder,
        name: ObjectName,
        length: int,
        threads: int,
        traffic: Traffic,
        withdraw: Callable[[], None],
        send: Callable[[bytes], bytes],
    ) -> None:
        """`withdraw`: take back what was there under this name. `send`: see the whole object at the relay."""
        self._final, self._suite = folder.sent(name), folder.suite
        self._part = part_of(self._final)
        self._name, self._length, self._threads, self._traffic = name.name, length, threads, traffic
        self._withdraw, self._send = withdraw, send
        self.digests: dict[int, bytes] = {}

    def write(self, first: int, view: memoryview, prepare: BlockWork | None = None) -> None:
        """Write whole blocks from byte `first` on, and see them on the disk. `prepare`: see https/transfer.py.

        Raises StorageError, and what `prepare` raises.
        """
        view = view.cast("B")
        end = first + len(view)
        check_blocks(first, end, self._length)
        self._withdraw()

        def block(at: int) -> None:
            high = min(at + BLOCK_BYTES, end)
            if prepare is not None:
                prepare(at, high)
            data = view[at - first : high - first]
            self.digests[at // BLOCK_BYTES] = self._suite.block(data)
            with storage(self._part, "write"):
                _write_at(handle, data, at)
            self._traffic.count(up=len(data))

        with storage(self._part, "write"):
            handle = open_part(self._part)
        try:
            with storage(self._part, "write"):
                os.ftruncate(handle, self._length)
            in_threads(range(first, end, BLOCK_BYTES), block, self._threads)
            with storage(self._part, "write"):
                os.fsync(handle)
        finally:
            os.close(handle)

    def commit(self, tree: bytes | None = None) -> bytes:
        """Give the file its name, with the Tree of all ranks' blocks, and send it to the relay; its Tree [32].

        Raises the relay's refusal; PeersError if not all of it is there.
        """
        root = tree or self._suite.root(self._length, [self.digests[i] for i in range(block_count(self._length))])
        if length_of(self._final) != self._length and length_of(self._part) == self._length:
            with storage(self._final, "write"):
                self._part.replace(self._final)
                with contextlib.suppress(OSError):  # some shared file systems cannot sync a folder
                    sync_folder(self._final.parent)
        return self._send(root)


def read_blocks(
    folder: SpoolFolder,
    path: Path,
    length: int,
    first: int,
    view: memoryview,
    finish: BlockWork | None,
    threads: int,
    traffic: Traffic,
) -> dict[int, bytes]:
    """Whole blocks of the file from byte `first` on into `view`: block number -> digest, in the suite of `folder`.

    `finish`: see RelayClient.fetch_part. Raises PeersError if the file has gone or has another length by now.
    """
    view = view.cast("B")
    end = first + len(view)
    check_blocks(first, end, length)
    digests: dict[int, bytes] = {}
    with storage(path, "read"), opened(path) as handle:
        if handle is None or os.fstat(handle).st_size != length:
            raise PeersError(f"{path} has gone from the spool", "start this site again")
        fixed = handle

        def block(at: int) -> None:
            high = min(at + BLOCK_BYTES, end)
            data = view[at - first : high - first]
            with storage(path, "read"):
                done = 0
                while done < len(data):
                    got = os.preadv(fixed, [data[done:]], at + done)
                    if not got:
                        raise PeersError(f"{path} is shorter than it was", "start this site again")
                    done += got
            digests[at // BLOCK_BYTES] = folder.suite.block(data)
            traffic.count(down=len(data))
            if finish is not None:
                finish(at, high)

        in_threads(range(first, end, BLOCK_BYTES), block, threads)
    return digests


def part_of(path: Path) -> Path:
    """Where a file grows before it has its name."""
    return path.with_name(f".{path.name}.part")


def check_blocks(first: int, end: int, length: int) -> None:
    """Whether [first, end) are whole blocks of an object of `length` bytes; anything else is the caller's mistake."""
    if first % BLOCK_BYTES or not 0 <= first <= end <= length or (end % BLOCK_BYTES and end != length):
        raise InternalError(f"bytes {first} to {end} are not whole blocks of an object of {length} bytes")


def in_threads(starts: range, work: Callable[[int], None], threads: int) -> None:
    """Call `work` on each block, `threads` at once; the first failure stops the others and is raised."""
    failed: list[BaseException] = []

    def guarded(at: int) -> None:
        if failed:
            return
        try:
            work(at)
        except BaseException as error:
            failed.append(error)

    with ThreadPoolExecutor(max(1, min(threads, len(starts)))) as pool:
        list(pool.map(guarded, starts))
    if failed:
        raise failed[0]


def drop(path: Path) -> None:
    """Remove a file and its unfinished part."""
    for one in (path, part_of(path)):
        remove(one)


def _write_at(handle: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], at + done)
