"""The relay's public interface, one function per resource (docs/relay-openapi.yaml).

GET  /v1/health                                     anyone
PUT  /v1/objects/config/round/attempt/NAME          its owner; a whole object, or a part with content-range
GET  /v1/objects/config/round/attempt/NAME          every site of the federation; range, ?wait=seconds
GET  /v1/objects/config/round/attempt/              what is there; ?after=cursor&wait=seconds, listing.py
GET  /v1/uploads/config/round/attempt/NAME          its owner: what is still missing
PUT, GET /v1/enrolment/NAME                         who has the token of an invited site: enrolment.py
GET  /v1/federations/config                         every site of it: where its rounds stand; ?quiet for people
"""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import TypeVar

from fedhpc.relay.http import listing
from fedhpc.relay.http import mailbox as enrolment
from fedhpc.relay.http.buffers import Buffers
from fedhpc.relay.http.connection import Connection, Head
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.accumulator import Accumulator
from fedhpc.relay.rounds.round_threads import Coordinator
from fedhpc.relay.settings import HostedFederation, Limits, Roster
from fedhpc.relay.store.object_store import Attempt, Store, Stored
from fedhpc.relay.store.upload import Upload
from fedhpc.wire.kinds import UNSHARED
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_bytes, block_count

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19})")
_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})?")
_TREE = re.compile(r"[0-9a-f]{64}")
_LOOK_S = 1.0  # how often a waiting thread looks whether its peer is still there
TREE_HEADER = "fedhpc-tree"
_QUERY = {"wait", "after", "kind", "count", "inline"}
_Found = TypeVar("_Found")


class Routes:
    """Answers requests. `rounds` says what may be written now."""

    def __init__(self, store: Store, roster: Callable[[], Roster], limits: Limits, rounds: Coordinator) -> None:
        self._store, self._roster, self._limits, self._rounds = store, roster, limits, rounds
        self._buffers = Buffers(limits.buffers, limits.stall_s)
        self.stopping = threading.Event()
        self.mailbox: enrolment.Mailbox | None = None

    def answer(self, connection: Connection, head: Head, pin: bytes | None) -> None:
        """Answer one request. Raises Problem."""
        if head.method != "PUT" and head.length:
            raise Problem("bad-request", f"{head.method} takes no body", close=True)
        if head.path == "/v1/health":
            self._need(head, "GET", "HEAD")
            state = "stopping" if self.stopping.is_set() else "ok"
            connection.send_json(200, {"status": state}, bare=head.method == "HEAD")
            return
        if self.mailbox is not None and head.path.startswith(enrolment.PATH):
            self.mailbox.answer(connection, head, self.stopping)
            return
        if pin is None:
            raise Problem("certificate-needed", "only /v1/health is open to everybody")
        kind, _, rest = head.path.removeprefix("/v1/").partition("/")
        if not head.path.startswith("/v1/") or kind not in ("objects", "uploads", "federations"):
            raise Problem("absent", "there is nothing at this path")
        if kind == "federations":
            self._need(head, "GET")
            self._standing(connection, rest, pin, runs=head.query != "quiet")
            return
        if kind == "objects" and rest.endswith("/"):
            self._need(head, "GET")
            _, site, attempt = self._attempt(rest, pin)
            self._refuse_old(attempt)
            self._list(connection, head, attempt, site, pin)
            return
        name, federation, site = self._object(rest, pin)
        self._refuse_old(name.attempt_name)
        if kind == "uploads":
            self._need(head, "GET")
            self._missing(connection, name, site)
        elif head.method == "PUT":
            self._put(connection, head, name, federation, site, pin)
        else:
            self._need(head, "GET", "HEAD")
            self._get(connection, head, name, site, pin)

    # --- who asks for what

    def _need(self, head: Head, *methods: str) -> None:
        if head.method not in methods:
            raise Problem("method", f"only {', '.join(methods)}")

    def _member(self, config: str, pin: bytes, *, runs: bool = True) -> tuple[HostedFederation, int]:
        """The federation and whose pin it is; `runs`: asking shows that the site runs. Raises Problem."""
        federation = self._roster().federations.get(config)
        site = federation.site_of(pin) if federation else None
        if federation is None or site is None:  # one answer for both: strangers learn of no federation
            raise Problem("forbidden", f"the key {pin.hex()} is no site of federation {config[:16]}")
        if runs:
            self._rounds.heard(config, site)
        return federation, site

    def _refuse_old(self, attempt: Attempt) -> None:
        """Refuse a round that was cleaned up: a site that waits there would wait forever."""
        self._rounds.check_round(attempt[0], attempt[1])

    def _object(self, path: str, pin: bytes) -> tuple[ObjectName, HostedFederation, int]:
        try:
            name = ObjectName.parse(path)
        except ValueError as error:
            raise Problem("bad-request", str(error)) from None
        return name, *self._member(name.config, pin)

    def _attempt(self, path: str, pin: bytes) -> tuple[HostedFederation, int, Attempt]:
        try:
            attempt = ObjectName.parse(path + "X").attempt_name
        except ValueError as error:
            raise Problem("bad-request", str(error)) from None
        return *self._member(attempt[0], pin), attempt

    # --- reading

    def _standing(self, connection: Connection, config: str, pin: bytes, *, runs: bool) -> None:
        self._member(config, pin, runs=runs)
        connection.send_json(200, self._rounds.standing(config))

    def _get(self, connection: Connection, head: Head, name: ObjectName, site: int, pin: bytes) -> None:
        if name.kind in UNSHARED and name.owner != site:
            raise Problem("forbidden", f"{name.name} is read by its owner only")
        stored = self._wait(connection, head, name, site, lambda: self._store.find(name))
        if stored is None:
            raise Problem("absent", f"{name.name} is not there yet")
        first, end = self._range(head, stored.length)
        part = (first, end) != (0, stored.length)
        headers = {
            "content-type": "application/octet-stream",
            "accept-ranges": "bytes",
            "etag": f'"{stored.tree.hex()}"',
            TREE_HEADER: stored.tree.hex(),
        }
        if part:
            headers["content-range"] = f"bytes {first}-{end - 1}/{stored.length}"
        if head.method == "HEAD":
            connection.send_head(206 if part else 200, headers, end - first)
            return
        self._send_file(connection, stored, (first, end), 206 if part else 200, headers, pin)

    def _send_file(
        self,
        connection: Connection,
        stored: Stored,
        part: tuple[int, int],
        status: int,
        headers: dict[str, str],
        pin: bytes,
    ) -> None:
        with self._store.reading(stored):
            try:
                fd = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise Problem("absent", f"{stored.name.name} has been removed") from None
            try:
                self._send(connection, fd, part, status, headers, pin)
            finally:
                os.close(fd)

    def _send(
        self, connection: Connection, fd: int, part: tuple[int, int], status: int, headers: dict[str, str], pin: bytes
    ) -> None:
        first, end = part
        with self._buffers.one(pin, end - first) as buffer:
            connection.send_head(status, headers, end - first)
            while first < end:
                count = os.preadv(fd, [buffer[: end - first]], first)
                if count == 0:
                    raise OSError("the file is shorter than it was")
                connection.send(buffer[:count])
                first += count

    def _range(self, head: Head, length: int) -> tuple[int, int]:
        given = head.headers.get("range")
        if given is None:
            return 0, length
        match = _RANGE.fullmatch(given)
        if not match:
            raise Problem("bad-range", "write range: bytes=FIRST-LAST")
        first = int(match[1])
        end = min(int(match[2]) + 1, length) if match[2] else length
        if not first < end:
            raise Problem("bad-range", f"the object has {length} bytes")
        return first, end

    def _list(self, connection: Connection, head: Head, attempt: Attempt, site: int, pin: bytes) -> None:
        life, _, count = _query(head, "after").partition(".")
        after = int(count) if life == self._store.life and count.isascii() and count.isdigit() else 0
        wanted = listing.Wanted(*(_query(head, key) for key in ("kind", "count", "inline")))

        def look() -> list[Stored] | None:
            return wanted.choose(self._store.list(attempt), after)

        found = self._wait(connection, head, attempt, site, look) or self._store.list(attempt, after)
        cursor = f"{self._store.life}.{found[-1].sequence if found else after}"
        if wanted.inline != "1":
            body = listing.document(cursor, found)
            connection.send_head(200, {"content-type": "application/json"}, len(body), body)
            return
        chosen = listing.small(found)
        with self._buffers.one(pin, sum(s.length for s in chosen)) as buffer:
            there, filled = listing.fill(chosen, buffer)
            line = listing.document(cursor, found, there) + b"\n"
            connection.send_head(200, {"content-type": listing.FRAMED}, len(line) + filled, line)
            if filled:
                connection.send(buffer[:filled])

    def _wait(
        self,
        connection: Connection,
        head: Head,
        what: ObjectName | Attempt,
        site: int,
        look: Callable[[], _Found | None],
    ) -> _Found | None:
        """`look()`, again and again for at most ?wait= seconds, until it finds something or the peer goes away."""
        text = _query(head, "wait") or "0"
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text):
            raise Problem("bad-request", "wait is a number of seconds")
        deadline = time.monotonic() + min(float(text), self._limits.wait_s)
        with self._store.waiter(what) as event:
            while True:
                event.clear()
                found = look()
                left = deadline - time.monotonic()
                if found is not None or left <= 0 or connection.peer_speaks():
                    self._rounds.heard(what.config if isinstance(what, ObjectName) else what[0], site)
                    return found
                if self.stopping.is_set():
                    raise Problem("stopping", "the relay is stopping", close=True)
                event.wait(min(left, _LOOK_S))

    # --- writing

    def _put(
        self, connection: Connection, head: Head, name: ObjectName, federation: HostedFederation, site: int, pin: bytes
    ) -> None:
        if name.owner != site:
            raise Problem("forbidden", f"site {site} may not write {name.name}")
        if self.stopping.is_set():
            raise Problem("stopping", "the relay is stopping", close=True)
        if "content-length" not in head.headers:
            raise Problem("length-needed", "declare content-length", close=True)
        first, length = self._part(head)
        given = head.headers.get(TREE_HEADER)
        if given is not None and not _TREE.fullmatch(given):
            raise Problem("bad-request", f"{TREE_HEADER} is 64 lower-case hex digits")
        tree = None if given is None else bytes.fromhex(given)
        self._rounds.check_write(name, length, tree)
        upload = self._store.begin(
            name, length, federation.quota, federation.suite, durable=federation.syncs(name.kind)
        )
        if tree is not None:
            upload.declare_tree(tree)
        self._receive(connection, upload, self._rounds.arriving(name), first, head.length, pin)
        whole = self._store.finish(upload)
        missing = [] if whole else upload.missing()
        connection.send_json(201 if whole else 202, {"bytes": length, "whole": whole, "missing": missing})

    def _part(self, head: Head) -> tuple[int, int]:
        """(first byte, whole length) of a PUT, all numbers compared with each other and the limits. Raises Problem."""
        if head.length > self._limits.put_bytes:
            raise Problem("too-large", f"one request carries at most {self._limits.put_bytes} bytes")
        given = head.headers.get("content-range")
        if given is None:
            if head.length == 0:
                raise Problem("bad-request", "an object has at least one byte")
            return 0, head.length
        match = _CONTENT_RANGE.fullmatch(given)
        if not match:
            raise Problem("bad-range", "write content-range: bytes FIRST-LAST/LENGTH, or bytes */LENGTH without a body")
        first, last, length = (int(x) if x else None for x in match.groups())
        assert length is not None
        if first is None or last is None:
            if head.length or not length:
                raise Problem("bad-range", "bytes */LENGTH goes without a body and with a length")
            return 0, length
        if not (first <= last < length and last - first + 1 == head.length):
            raise Problem("bad-range", f"{given} does not fit a body of {head.length} bytes")
        if first % BLOCK_BYTES or ((last + 1) % BLOCK_BYTES and last + 1 != length):
            raise Problem("bad-range", f"parts begin and end at multiples of {BLOCK_BYTES}, or at the object's end")
        return first, length

    def _receive(
        self, connection: Connection, upload: Upload, sum_: Accumulator | None, first: int, size: int, pin: bytes
    ) -> None:
        """The body, block by block. `sum_`: where blocks of a vector are added once they are kept."""
        begun, received, site = time.monotonic(), 0, upload.owner or 0
        if size == 0:
            return
        assert first // BLOCK_BYTES < block_count(upload.length)
        with self._buffers.one(pin, size) as buffer:
            while received < size:
                index = (first + received) // BLOCK_BYTES
                block = buffer[: block_bytes(index, upload.length)]
                connection.read_body_into(block, begun, received)
                received += len(block)
                if upload.write_block(index, block) and sum_ is not None:
                    sum_.add(site, upload, index, block)
                self._rounds.heard(upload.name.config, site)

    def _missing(self, connection: Connection, name: ObjectName, site: int) -> None:
        if name.owner != site:
            raise Problem("forbidden", f"{name.name} belongs to another site")
        stored, upload = self._store.find(name), self._store.upload(name)
        if stored is not None:
            found = {"bytes": stored.length, "whole": True, "missing": [], "tree": stored.tree.hex()}
        elif upload is not None:
            tree = upload.tree.hex() if upload.tree else ""
            found = {"bytes": upload.length, "whole": False, "missing": upload.missing(), "tree": tree}
        else:
            raise Problem("absent", f"nothing of {name.name} is there")
        connection.send_json(200, found)


def _query(head: Head, name: str) -> str:
    """One query parameter, or ''. Raises Problem for a query that is malformed or names others."""
    try:
        pairs = urllib.parse.parse_qs(head.query, strict_parsing=bool(head.query), max_num_fields=len(_QUERY))
    except ValueError:
        raise Problem("bad-request", "the query is malformed") from None
    if not pairs.keys() <= _QUERY:
        raise Problem("bad-request", f"the query knows {', '.join(sorted(_QUERY))}")
    return pairs.get(name, [""])[-1]
