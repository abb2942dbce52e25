"""The site's side of a spool directory: for nodes without a route what RelayClient is for nodes with one.

Objects are files; a carrier on another machine (carrier.py) moves them to the relay and back. What the relay answers
comes back too, so a refusal is the same error as over https. Nothing in the directory is secret: it holds what the
relay is sent, and what the relay sends.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable
from typing import Any

from fedhpc.errors import PeersError, PolicyError, StorageError
from fedhpc.transport.gaps import Gaps
from fedhpc.transport.https.retry import Retry
from fedhpc.transport.listing import Entry
from fedhpc.transport.spool.folder import (
    ANSWERS,
    MOST_LISTING_BYTES,
    MOST_NOTE_BYTES,
    MOST_STANDING_BYTES,
    PUTS,
    RECEIPTS,
    WANTS,
    WATCHES,
    SpoolFolder,
    length_of,
    names_in,
    note_name,
    read_attempt_name,
    read_file,
    read_note_name,
    remove,
    write_file,
)
from fedhpc.transport.spool.notes import Answer, Listing, PutNote, Receipt, Want, WatchNote, read_note, to_bytes
from fedhpc.transport.spool.patience import SpoolPatience
from fedhpc.transport.spool.transfer import SpoolOutgoing, drop, read_blocks
from fedhpc.transport.transport import BlockWork, Traffic
from fedhpc.wire.kinds import UNSHARED, Carries, carries, is_turn
from fedhpc.wire.object_names import ObjectName

MOST_MESSAGE_BYTES = 4 << 20
KEPT_ROUNDS = 2  # before the newest: a site that starts again may repeat them


class SpoolClient:
    """A site's access to the relay through a spool directory. Thread-safe; see Transport."""

    def __init__(
        self,
        folder: SpoolFolder,
        connections: int = 4,
        patience_s: float = 300.0,
        on_retry: Callable[[Retry], None] = lambda retry: None,
        *,
        leads: bool = True,
    ) -> None:
        """`connections`: threads that move a vector. `leads`: of the site's ranks, the one that exchanges messages."""
        folder.require()
        self._folder, self._threads, self._patience_s = folder, connections, patience_s
        self.traffic = Traffic()
        self._patience = SpoolPatience(folder, patience_s, on_retry, speaks=leads)
        self._session = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._watched: set[tuple[int, int]] = set()
        self._newest = 0  # round that was written to
        if leads:
            for kind in (WANTS, WATCHES):  # a predecessor's: no thread waits for them
                for name in names_in(folder.out / kind):
                    remove(folder.note(kind, name))

    # --- messages

    def put(self, name: ObjectName, data: bytes | memoryview) -> bytes:
        """Store an object at the relay; its Tree [32]. Raises what RelayClient.put raises."""
        view = memoryview(data).cast("B")
        root = self._folder.suite.tree(view)
        if not self._accepted(name, root):
            self._make_room(name.round)
            write_file(self._folder.sent(name), view)
            self.traffic.count(requests=1, up=len(view))
            self._send(name, len(view), root)
        return root

    def get(self, name: ObjectName) -> bytes | None:
        """A message, or None if the relay does not have it."""
        listing = self._listing(name.round, name.attempt)
        for found in listing.objects if listing else ():
            if found.name == name.name and (data := self._body(name, found.length, found.tree)) is not None:
                return data
        answer = self._ask(name, 0)
        if not answer.length:
            return None
        data = self._patience.poll(
            f"read {name.name}", lambda: self._body(name, answer.length, answer.tree), self._patience_s
        )
        if data is None:
            raise StorageError(
                f"{self._folder.come(name)} does not have the bytes that the carrier wrote",
                "is each half of the spool copied one way only, and whole files at a time?",
            )
        return data

    def get_json(self, path: str) -> dict[str, Any]:
        """The state of the federation, as the carrier last heard it. A spool gives nothing else."""
        if path.partition("?")[0] != f"/v1/federations/{self._folder.config}":
            raise PeersError(f"the spool does not carry {path}")
        found = self._patience.poll("see where the federation stands", self._standing)
        assert found is not None
        return found

    def listing(
        self,
        config: str,
        round_: int,
        attempt: int,
        after: str = "",
        wait_s: float = 0.0,
        until: tuple[str, int] | None = None,
    ) -> tuple[list[Entry], str]:
        """Objects of an attempt that came after the cursor `after`, and the next cursor; see RelayClient.listing."""
        if config != self._folder.config:
            raise PeersError("the spool belongs to another federation")
        self._watch(round_, attempt)
        new: tuple[list[Entry], str] = ([], after)
        generation, _, known = after.partition(".")
        start = int(known) if known.isascii() and known.isdigit() else 0
        seen: Listing | None = None  # all of it, by an earlier look

        def look() -> bool | None:
            nonlocal new, seen
            listing = self._listing(round_, attempt)
            if listing is None or listing == seen:
                return None
            if listing.refusal is not None and listing.trial == self._session:
                raise listing.refusal.error()
            first = start if listing.generation == generation else 0
            entries = self._entries(listing, round_, attempt, first)
            new = entries, f"{listing.generation}.{first + len(entries)}"
            seen = listing if first + len(entries) == len(listing.objects) else None
            if until is None or any(is_turn(entry.name) for entry in entries):
                return True if entries else None
            there = listing.objects[: first + len(entries)]
            return True if sum(o.name.split("/")[0] == until[0] for o in there) >= until[1] else None

        self._patience.poll("list the attempt", look, wait_s)
        return new

    # --- vectors

    def missing(self, name: ObjectName) -> tuple[int, Gaps] | None:
        """(length, []) of an own object that is whole, here or at the relay; None for any other."""
        note = self._put_note(name)
        if note is not None and self._accepted(name, bytes.fromhex(note.tree)):
            return note.length, []
        length = length_of(self._folder.sent(name))
        return None if length is None else (length, [])

    def upload(self, name: ObjectName, length: int, *, resume: bool = False) -> SpoolOutgoing:
        """An object whose bytes come piece by piece, from several ranks; all of it is written, whatever was there."""

        def withdraw() -> None:
            remove(self._folder.note(PUTS, note_name(name)))
            remove(self._folder.sent(name))

        def send(root: bytes) -> bytes:
            if self._accepted(name, root):
                return root
            if length_of(self._folder.sent(name)) != length:
                raise PeersError(f"the spool has lost parts of {name.name}", "start this site again")
            self._make_room(name.round)
            self._send(name, length, root)
            return root

        return SpoolOutgoing(self._folder, name, length, self._threads, self.traffic, withdraw, send)

    def fetch_part(
        self, name: ObjectName, length: int, first: int, view: memoryview, finish: BlockWork | None = None
    ) -> dict[int, bytes] | None:
        """Whole blocks of an object into `view`; see RelayClient.fetch_part."""
        path = self._folder.come(name)
        if length_of(path) != length:
            answer = self._ask(name, length)
            if not answer.length:
                return None
            self._patience.poll(f"read {name.name}", lambda: length_of(path) == length or None, self._patience_s)
        return read_blocks(self._folder, path, length, first, view, finish, self._threads, self.traffic)

    def close(self) -> None:
        """End all waiting; the carrier then waits for nothing on this site's behalf."""
        with contextlib.suppress(StorageError):  # the carrier finds out on its own
            self._patience.close()

    # --- notes

    def _send(self, name: ObjectName, length: int, root: bytes) -> None:
        """Tell the carrier that an object is there, and wait for the relay's answer. Raises the refusal."""
        note = PutNote(secrets.token_hex(8), length, root.hex())
        write_file(self._folder.note(PUTS, note_name(name)), to_bytes(note))

        def look() -> Receipt | None:
            receipt = self._receipt(name)
            if receipt is None or receipt.tree != note.tree:
                return None
            return receipt if receipt.refusal is None or receipt.trial == note.trial else None

        receipt = self._patience.poll(f"send {name.name}", look)
        assert receipt is not None
        if receipt.refusal is not None:
            raise receipt.refusal.error()
        if name.kind in UNSHARED:
            drop(self._folder.sent(name))  # large, and the relay has it; note and receipt say so
        elif name.round == 0 and name.attempt:
            remove(self._folder.note(PUTS, note_name(name)))  # catch-up: it is not repeated
            drop(self._folder.sent(name))

    def _ask(self, name: ObjectName, length: int) -> Answer:
        """The carrier's answer to a wish for an object. Raises the relay's refusal."""
        note = f"{note_name(name)}.{secrets.token_hex(8)}"
        wish = self._folder.note(WANTS, note)
        write_file(wish, to_bytes(Want(length)))
        self.traffic.count(requests=1)
        path = self._folder.note(ANSWERS, note)
        try:
            answer = self._patience.poll(
                f"fetch {name.name}", lambda: read_note(Answer, read_file(path, MOST_NOTE_BYTES))
            )
        finally:
            remove(wish)
        assert answer is not None
        if answer.refusal is not None:
            raise answer.refusal.error()
        return answer

    def _watch(self, round_: int, attempt: int) -> None:
        """Leave a note that this site waits for what comes under an attempt, and remove those that are old."""
        with self._lock:
            if (round_, attempt) in self._watched:
                return
            self._watched.add((round_, attempt))
            write_file(self._folder.note(WATCHES, f"{round_}.{attempt}"), to_bytes(WatchNote(self._session)))
            for old in [w for w in self._watched if w != (round_, attempt) and _is_old(w, round_, attempt)]:
                self._watched.discard(old)
                remove(self._folder.note(WATCHES, f"{old[0]}.{old[1]}"))

    def _make_room(self, round_: int) -> None:
        """Remove what this site wrote for rounds that are over."""
        with self._lock:
            if round_ <= self._newest:
                return
            self._newest = round_
        last = round_ - KEPT_ROUNDS
        for name in names_in(self._folder.out):
            if name.isdigit() and 0 < int(name) < last:
                remove(self._folder.out / name)
        for kind, read in ((PUTS, read_note_name), (WATCHES, read_attempt_name)):
            for name in names_in(self._folder.out / kind):
                with contextlib.suppress(ValueError):
                    found = read(name, self._folder.config)
                    number = found.round if isinstance(found, ObjectName) else found[0]
                    if 0 < number < last:
                        remove(self._folder.note(kind, name))

    # --- what the carrier wrote

    def _accepted(self, name: ObjectName, root: bytes) -> bool:
        """Whether the relay already has these bytes, and nothing else was offered since."""
        note, receipt = self._put_note(name), self._receipt(name)
        return (
            note is not None
            and receipt is not None
            and receipt.refusal is None
            and note.tree == receipt.tree == root.hex()
        )

    def _put_note(self, name: ObjectName) -> PutNote | None:
        return read_note(PutNote, read_file(self._folder.note(PUTS, note_name(name)), MOST_NOTE_BYTES))

    def _receipt(self, name: ObjectName) -> Receipt | None:
        return read_note(Receipt, read_file(self._folder.note(RECEIPTS, note_name(name)), MOST_NOTE_BYTES))

    def _standing(self) -> dict[str, Any] | None:
        data = read_file(self._folder.standing, MOST_STANDING_BYTES)
        try:
            value = None if data is None else json.loads(data)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def _listing(self, round_: int, attempt: int) -> Listing | None:
        return read_note(Listing, read_file(self._folder.listing(round_, attempt), MOST_LISTING_BYTES))

    def _entries(self, listing: Listing, round_: int, attempt: int, first: int) -> list[Entry]:
        """The objects from `first` on, up to one whose file is not visible here yet."""
        entries: list[Entry] = []
        for found in listing.objects[first:]:
            body = None
            name = self._folder.of(round_, attempt, found.name)
            if comes_along(name):
                body = self._body(name, found.length, found.tree)
                if body is None:
                    break
            entries.append(Entry(found.name, bytes.fromhex(found.tree), found.length, body))
        return entries

    def _body(self, name: ObjectName, length: int, root: str) -> bytes | None:
        """The message, once its file has the announced bytes. Raises PolicyError if they are not a message."""
        if length > MOST_MESSAGE_BYTES:
            raise PolicyError(f"{name.name} has {length} bytes, at most {MOST_MESSAGE_BYTES} are expected")
        path = self._folder.come(name)
        if length_of(path) != length:
            return None
        data = read_file(path, MOST_MESSAGE_BYTES)
        if data is None or not hmac.compare_digest(self._folder.suite.tree(memoryview(data)).hex(), root):
            return None
        self.traffic.count(down=len(data))
        return data


def comes_along(name: ObjectName) -> bool:
    """Whether the carrier brings an object as soon as it is listed: not vectors, sums and the blocks of a model."""
    return carries(name) is Carries.MESSAGE


def _is_old(watched: tuple[int, int], round_: int, attempt: int) -> bool:
    """Whether `watched` is no longer awaited once (round_, attempt) is."""
    if watched[0] == 0:
        return watched[1] > 0 and (round_ > 0 or attempt > 0)
    return round_ > 0 and (watched[0] < round_ - 1 or (watched[0] == round_ and 0 < watched[1] < attempt))
