"""What the carrier does for one note of the site: send an object to the relay, or fetch one; each can be repeated.

Large objects go in windows of bounded memory, and resume after a cut or a kill.
"""

from __future__ import annotations

import os
import threading

from fedhpc.errors import PeersError, PolicyError
from fedhpc.secure.suite import Suite
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.spool.client import MOST_MESSAGE_BYTES
from fedhpc.transport.spool.folder import (
    ANSWERS,
    MOST_NOTE_BYTES,
    PUTS,
    RECEIPTS,
    SpoolFolder,
    note_name,
    opened,
    read_file,
    remove,
    storage,
    write_file,
)
from fedhpc.transport.spool.modes import open_part
from fedhpc.transport.spool.notes import Answer, PutNote, Receipt, Refusal, Want, read_note, to_bytes
from fedhpc.transport.spool.transfer import part_of
from fedhpc.wire.kinds import UNSHARED
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_count

WINDOW_BYTES = 16 << 20
_REFUSED = "the relay refused ("


def is_refusal(error: BaseException) -> bool:
    """Whether the relay refused one object, which the site must know. Other errors are the carrier's own."""
    if isinstance(error, RelayProblem):
        return True
    return isinstance(error, PolicyError) and error.what.startswith((_REFUSED, "the relay sent", "the relay has"))


class Tasks:
    """Carries single objects of one spool directory. Thread-safe."""

    def __init__(self, folder: SpoolFolder, client: RelayClient) -> None:
        self._folder, self._client = folder, client
        self._lock = threading.Lock()
        self._locks: dict[ObjectName, threading.Lock] = {}
        self._sums: dict[ObjectName, str] = {}  # Trees of the sums that this carrier has seen whole

    # --- to the relay

    def send(self, name: ObjectName, note: PutNote) -> bool:
        """Send an object to the relay and leave its answer; False if it is not whole here (yet).

        Raises PeersError (relay out of reach) and StorageError: then no answer is left, and it is tried again.
        """
        refusal: Refusal | None = None
        try:
            if not (self._send_large(name, note) if note.length > BLOCK_BYTES else self._send_small(name, note)):
                return False
        except (RelayProblem, PolicyError) as error:
            if not is_refusal(error):
                raise
            refusal = Refusal.of(error)
        write_file(self._folder.note(RECEIPTS, note_name(name)), to_bytes(Receipt(note.trial, note.tree, refusal)))
        return True

    @staticmethod
    def is_sent(folder: SpoolFolder, name: ObjectName, note: PutNote) -> bool:
        """Whether the relay's answer to this note is there."""
        receipt = read_note(Receipt, read_file(folder.note(RECEIPTS, note_name(name)), MOST_NOTE_BYTES))
        if receipt is None or receipt.tree != note.tree:
            return False
        return receipt.refusal is None or receipt.trial == note.trial

    def _send_small(self, name: ObjectName, note: PutNote) -> bool:
        data = read_file(self._folder.sent(name), BLOCK_BYTES)
        if data is None or len(data) != note.length or self._folder.suite.tree(data).hex() != note.tree:
            return False  # the note is older or newer than the file: the other will be seen soon
        self._client.put(name, data)
        return True

    def _send_large(self, name: ObjectName, note: PutNote) -> bool:
        path = self._folder.sent(name)
        with storage(path, "read"), opened(path) as handle:
            if handle is None or os.fstat(handle).st_size != note.length:
                return False
            outgoing = self._client.upload(name, note.length, resume=True)
            window = memoryview(bytearray(min(WINDOW_BYTES, note.length)))
            for first in range(0, note.length, len(window)):
                part = window[: min(len(window), note.length - first)]
                if not _read_at(handle, part, first) or not self._is_wanted(name, note):
                    return False
                outgoing.write(first, part)
            root = self._folder.suite.root(note.length, [outgoing.digests[i] for i in range(block_count(note.length))])
            if root.hex() != note.tree:
                raise PolicyError(
                    f"{_REFUSED}damaged): {path} does not have the bytes that the site wrote",
                    "is each half of the spool copied one way only, and whole files at a time?",
                )
            outgoing.commit(root)
            return True

    def _is_wanted(self, name: ObjectName, note: PutNote) -> bool:
        return read_note(PutNote, read_file(self._folder.note(PUTS, note_name(name)), MOST_NOTE_BYTES)) == note

    # --- from the relay

    def fetch(self, name: ObjectName, wish: str, want: Want) -> None:
        """Bring what the site wants, and leave the answer. Raises PeersError and StorageError, as `send` does."""
        refusal: Refusal | None = None
        length, root = 0, ""
        try:
            if name.kind in UNSHARED:
                raise PolicyError(f"{_REFUSED}403 forbidden): {name.kind} is given to no site")
            length, root = self._fetch_sum(name, want.length) if want.length else self._fetch_message(name)
        except (RelayProblem, PolicyError) as error:
            if not is_refusal(error):
                raise
            refusal = Refusal.of(error)
        write_file(self._folder.note(ANSWERS, wish), to_bytes(Answer(length, root, refusal)))

    def _fetch_message(self, name: ObjectName) -> tuple[int, str]:
        data = self._client.get(name)
        if data is None:
            return 0, ""
        root = self._folder.suite.tree(data)
        path = self._folder.come(name)
        if read_file(path, MOST_MESSAGE_BYTES) != data:
            write_file(path, data)
        return len(data), root.hex()

    def _fetch_sum(self, name: ObjectName, length: int) -> tuple[int, str]:
        entries, _ = self._client.listing(name.config, name.round, name.attempt)
        for entry in entries:
            if entry.name == name.name:
                if entry.length != length:
                    words = f"{name.name} has {entry.length} bytes, not {length}"
                    raise RelayProblem(200, "bad-length", words)
                return (length, entry.tree.hex()) if self.bring(name, length, entry.tree.hex()) else (0, "")
        return 0, ""

    def bring(self, name: ObjectName, length: int, root: str) -> bool:
        """Bring a sum of `length` bytes whose Tree is `root`; False if the relay no longer has it.

        Raises PolicyError if the relay sends other bytes.
        """
        with self._lock_of(name):
            path = self._folder.come(name)
            if self._has(name, length, root):
                return True
            part = part_of(path)
            with storage(part, "write"):
                handle = open_part(part)
            try:
                found = self._grow(name, handle, length)
                if found is not None and found.hex() != root:  # a predecessor's file may belong to another sum
                    os.ftruncate(handle, 0)
                    found = self._grow(name, handle, length)
                if found is None:
                    return False
                if found.hex() != root:
                    remove(part)
                    raise PolicyError(f"the relay sent other bytes than it announced for {name.name}")
                with storage(path, "write"):
                    os.fsync(handle)
                    part.replace(path)
            finally:
                os.close(handle)
            self._sums[name] = root
            return True

    def _lock_of(self, name: ObjectName) -> threading.Lock:
        """One for each object: looking up an ObjectName runs Python, so two threads could make one each."""
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())

    def _has(self, name: ObjectName, length: int, root: str) -> bool:
        """Whether the sum is there; one that an earlier carrier brought is hashed once."""
        path = self._folder.come(name)
        with storage(path, "read"), opened(path) as handle:
            if handle is None:
                return False
            if os.fstat(handle).st_size == length:
                if name not in self._sums:
                    suite = self._folder.suite
                    self._sums[name] = suite.root(length, _digests_of(handle, length, suite)).hex()
                if self._sums[name] == root:
                    return True
        self._sums.pop(name, None)
        remove(path)  # from a relay that has lost its disk since
        return False

    def _grow(self, name: ObjectName, handle: int, length: int) -> bytes | None:
        """Fetch what the file lacks, front to back; its Tree then, None if the relay no longer has the sum."""
        there = min(os.fstat(handle).st_size, length) // WINDOW_BYTES * WINDOW_BYTES
        with storage(self._folder.come(name), "write"):
            os.ftruncate(handle, there)
        digests = _digests_of(handle, there, self._folder.suite)
        window = memoryview(bytearray(min(WINDOW_BYTES, length)))
        for first in range(there, length, len(window)):
            part = window[: min(len(window), length - first)]
            got = self._client.fetch_part(name, length, first, part)
            if got is None:
                return None
            digests += [got[i] for i in sorted(got)]
            with storage(self._folder.come(name), "write"):
                done = 0
                while done < len(part):
                    done += os.pwrite(handle, part[done:], first + done)
        return self._folder.suite.root(length, digests)


def _digests_of(handle: int, length: int, suite: Suite) -> list[bytes]:
    """Of the blocks of the first `length` bytes of a file."""
    block = memoryview(bytearray(min(BLOCK_BYTES, max(length, 1))))
    digests = []
    for at in range(0, length, BLOCK_BYTES):
        part = block[: min(BLOCK_BYTES, length - at)]
        if not _read_at(handle, part, at):
            raise PeersError("a file of the spool has become shorter", "another carrier may be at work")
        digests.append(suite.block(part))
    return digests


def _read_at(handle: int, view: memoryview, at: int) -> bool:
    """Fill `view` from the file; False if it ends before."""
    done = 0
    while done < len(view):
        got = os.preadv(handle, [view[done:]], at + done)
        if not got:
            return False
        done += got
    return True
