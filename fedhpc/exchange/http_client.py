"""The site's side of the relay: objects up and down, several connections at once, resumed after every cut.

Vectors go from and to the caller's memory; what the client keeps is one digest per 2^20 bytes. A failure of the network
is retried with growing pauses until nothing has moved for `patience_s`; whoever waits is told through `on_retry`.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedhpc.errors import PeersError, PolicyError
from fedhpc.exchange.http_link import Link, LinkDown, RelayAccess, RelayProblem, site_context
from fedhpc.exchange.objects import BLOCK_BYTES, ObjectName, block_count
from fedhpc.secure.transcript import tree_root

_T = TypeVar("_T")
_TREE = "fedhpc-tree"


@dataclass(frozen=True)
class Patience:
    """How long to go on. Pauses double from `first_s` to `longest_s`; nothing moved for `total_s`: give up."""

    total_s: float = 300.0
    first_s: float = 0.25
    longest_s: float = 30.0


@dataclass(frozen=True)
class Retry:
    """What `on_retry` is told, about once a second while the client pauses."""

    what: str
    reason: str
    seconds_left: float  # until the next try
    patience_left_s: float  # until PeersError


@dataclass(frozen=True)
class Entry:
    """An object in a listing."""

    name: str
    tree: bytes  # [32]
    length: int


@dataclass
class _Clock:
    """When something last moved; shared by the connections of one transfer."""

    moved: float = field(default_factory=time.monotonic)
    failures: int = 0

    def tick(self) -> None:
        self.moved, self.failures = time.monotonic(), 0


class RelayClient:
    """A site's access to its relay. Thread-safe; at most `connections` are open at once."""

    def __init__(
        self,
        access: RelayAccess,
        connections: int = 4,
        patience: Patience | None = None,
        on_retry: Callable[[Retry], None] = lambda retry: None,
        piece_bytes: int = 64 << 20,
    ) -> None:
        self._connections, self._patience, self._on_retry = connections, patience or Patience(), on_retry
        self._piece_bytes = max(BLOCK_BYTES, piece_bytes // BLOCK_BYTES * BLOCK_BYTES)
        self._url = access.url
        context = site_context(access)
        self._links: queue.LifoQueue[Link] = queue.LifoQueue()
        for _ in range(connections):
            self._links.put(Link(access, context))
        self._closed = threading.Event()

    # --- small requests

    def health(self) -> str:
        """The relay's state: `ok` or `stopping`."""

        def ask(link: Link) -> str:
            link.send_head("GET", "/v1/health", {})
            return str(link.read_json(link.response()).get("status"))

        return self._persist("ask the relay's health", ask)

    def get(self, name: ObjectName, wait_s: float = 0.0, most_bytes: int = 4 << 20) -> bytes | None:
        """A message, or None if it is not there within `wait_s`. Raises PolicyError if the bytes miss their Tree."""

        def ask(link: Link) -> bytes | None:
            link.send_head("GET", _path(name, wait_s), {})
            response = link.response(wait_s)
            if response.status == 404:
                link.read_json(response)
                return None
            length = int(response.headers.get("content-length", "-1"))
            if not 0 < length <= most_bytes:
                link.close()
                raise RelayProblem(200, "too-large", f"{name.name} has {length} bytes, at most {most_bytes} expected")
            data = bytearray(length)
            link.read_into(response, memoryview(data))
            root = _root(length, _digests(memoryview(data)))
            if root.hex() != response.headers.get(_TREE):
                raise PolicyError(f"the relay sent other bytes than it announced for {name.name}")
            return bytes(data)

        return self._persist(f"fetch {name.name}", ask)

    def listing(
        self, config: str, round_: int, attempt: int, after: str = "", wait_s: float = 0.0
    ) -> tuple[list[Entry], str]:
        """Objects of an attempt that came after the cursor `after`, and the next cursor; waits for the first."""

        def ask(link: Link) -> tuple[list[Entry], str]:
            query = f"?wait={wait_s:.3f}" + (f"&after={after}" if after else "")
            link.send_head("GET", f"/v1/objects/{config}/{round_}/{attempt}/{query}", {})
            answer = link.read_json(link.response(wait_s))
            try:
                entries = [Entry(str(o["name"]), bytes.fromhex(o["tree"]), int(o["bytes"])) for o in answer["objects"]]
                return entries, str(answer["after"])
            except (KeyError, TypeError, ValueError):
                raise RelayProblem(200, "nonsense", "the listing has another form") from None

        return self._persist("list the attempt", ask)

    def missing(self, name: ObjectName) -> tuple[int, list[tuple[int, int]]] | None:
        """(length, byte ranges [first, end) still missing) of an own object; None if nothing of it is there."""

        def ask(link: Link) -> tuple[int, list[tuple[int, int]]] | None:
            link.send_head("GET", f"/v1/uploads/{name}", {})
            response = link.response()
            answer = link.read_json(response)
            return None if response.status == 404 else (int(answer["bytes"]), _ranges(answer))

        return self._persist(f"ask what is missing of {name.name}", ask)

    # --- vectors

    def put(self, name: ObjectName, data: bytes | memoryview) -> bytes:
        """Store a whole object; its Tree [32]. What a killed predecessor has sent is not sent again.

        Raises PolicyError (other bytes under the name, not this site's object), RelayProblem (quota, disk), PeersError.
        """
        view = memoryview(data).cast("B")
        if len(view) <= BLOCK_BYTES:
            root = _root(len(view), _digests(view))

            def send(link: Link) -> dict[str, Any]:
                link.send_head("PUT", _path(name), {_TREE: root.hex()}, len(view))
                link.send(view)
                return link.read_json(link.response())

            self._persist(f"send {name.name}", send)
            return root
        upload = self.upload(name, len(view), resume=True)
        upload.write(0, view)
        return upload.commit()

    def upload(self, name: ObjectName, length: int, *, resume: bool = False) -> Outgoing:
        """An object whose bytes come piece by piece, perhaps from several ranks; `resume`: ask what is there first."""
        return Outgoing(self, name, length, self.missing(name) if resume else None)

    def get_into(
        self, name: ObjectName, view: memoryview, wait_s: float = 0.0, tree: bytes | None = None
    ) -> bytes | None:
        """Fill `view` with the object of exactly that length; its Tree [32], or None if it is not there in time.

        `tree`: what it must hash to, because sites signed it. Raises PolicyError for other bytes.
        """
        view = view.cast("B")
        digests = [b""] * block_count(len(view))
        clock, first_end = _Clock(), min(self._piece_bytes, len(view))
        head: dict[str, str] = {}

        def begin(link: Link) -> bool:
            link.send_head("GET", _path(name, wait_s), {"range": f"bytes=0-{first_end - 1}"})
            response = link.response(wait_s)
            if response.status == 404:
                link.read_json(response)
                return False
            whole = response.headers.get("content-range", f"/{response.headers.get('content-length')}").split("/")[-1]
            if whole != str(len(view)) or int(response.headers.get("content-length", "0")) != first_end:
                link.close()
                raise RelayProblem(200, "bad-length", f"{name.name} has {whole} bytes, {len(view)} are expected")
            head["tree"] = response.headers.get(_TREE, "")
            rest.put(None)
            self._receive(link, response, view, 0, first_end, digests, clock)
            return True

        rest: queue.Queue[None] = queue.Queue()
        pieces = _cut([(first_end, len(view))], self._piece_bytes, self._connections)

        def others() -> None:
            rest.get()
            if "tree" in head:
                self._each(pieces, lambda p: self._fetch(name, view, p, digests, clock))

        # The other pieces start when the first answer's head is there, so a waiting object costs one round trip.
        with ThreadPoolExecutor(1) as pool:
            more = pool.submit(others)
            try:
                found = self._persist(f"fetch {name.name}", begin, clock)
            finally:
                rest.put(None)
            more.result()
        if not found:
            return None
        root = _root(len(view), digests)
        if root != (tree or bytes.fromhex(head["tree"])):
            raise PolicyError(f"the relay sent other bytes for {name.name} than the sites signed")
        return root

    def close(self) -> None:
        """Close all connections; a thread that pauses gives up."""
        self._closed.set()
        while True:
            try:
                self._links.get_nowait().close()
            except queue.Empty:
                return

    # --- pieces

    def send_piece(
        self, name: ObjectName, length: int, first: int, view: memoryview, digests: dict[int, bytes], clock: _Clock
    ) -> None:
        """Send `view` as bytes from `first` on, in whole blocks; after a cut only what the relay does not have."""
        todo = [(first, first + len(view))]
        again = False

        def send(link: Link) -> None:
            nonlocal todo, again
            if again:
                link.send_head("GET", f"/v1/uploads/{name}", {})
                response = link.response()
                answer = link.read_json(response)
                gaps = _ranges(answer) if response.status == 200 else [(0, length)]
                left = [(max(a, f), min(b, e)) for a, b in gaps for f, e in todo if max(a, f) < min(b, e)]
                if sum(b - a for a, b in left) < sum(b - a for a, b in todo):
                    clock.tick()
                todo = left
            again = True
            while todo:
                low, high = todo[0]
                headers = {"content-range": f"bytes {low}-{high - 1}/{length}"}
                link.send_head("PUT", _path(name), headers, high - low)
                for at in range(low, high, BLOCK_BYTES):
                    if link.answered_early():
                        break
                    block = view[at - first : min(at + BLOCK_BYTES, high) - first]
                    if at // BLOCK_BYTES not in digests:
                        digests[at // BLOCK_BYTES] = hashlib.sha256(block).digest()
                    link.send(block)
                link.read_json(link.response())
                clock.tick()
                todo = todo[1:]

        self._persist(f"send {name.name}", send, clock)

    def _fetch(
        self, name: ObjectName, view: memoryview, piece: tuple[int, int], digests: list[bytes], clock: _Clock
    ) -> None:
        low, high = piece

        def ask(link: Link) -> None:
            nonlocal low
            while low < high and digests[low // BLOCK_BYTES]:
                low += BLOCK_BYTES
            if low >= high:
                return
            link.send_head("GET", _path(name), {"range": f"bytes={low}-{high - 1}"})
            response = link.response()
            if response.status == 404:
                raise PeersError(f"{name.name} has been removed at the relay")
            if int(response.headers.get("content-length", "0")) != high - low:
                link.close()
                raise RelayProblem(206, "bad-length", f"a part of {name.name} has another length")
            self._receive(link, response, view, low, high, digests, clock)

        self._persist(f"fetch {name.name}", ask, clock)

    def _receive(
        self, link: Link, response: Any, view: memoryview, low: int, high: int, digests: list[bytes], clock: _Clock
    ) -> None:
        for at in range(low, high, BLOCK_BYTES):
            block = view[at : min(at + BLOCK_BYTES, high)]
            link.read_into(response, block)
            digests[at // BLOCK_BYTES] = hashlib.sha256(block).digest()
            clock.tick()
        response.read()

    def _each(self, pieces: list[tuple[int, int]], work: Callable[[tuple[int, int]], None]) -> None:
        """`work` on all pieces, several at once; the first failure ends it."""
        if not pieces:
            return
        with ThreadPoolExecutor(min(self._connections, len(pieces))) as pool:
            futures = [pool.submit(work, piece) for piece in pieces]
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            for future in done:
                future.result()

    # --- going on after failures

    def _persist(self, what: str, act: Callable[[Link], _T], clock: _Clock | None = None) -> _T:
        """`act` on a connection, again after every LinkDown, until nothing has moved for the patience."""
        clock = clock or _Clock()
        while True:
            stale = False
            try:
                with self._link() as link:
                    stale = link.used
                    return act(link)
            except LinkDown as down:
                reason = str(down)
            if stale and clock.failures == 0:
                clock.failures = 1  # an idle connection that the relay had closed: open another at once
                continue
            pause = min(self._patience.longest_s, self._patience.first_s * 2 ** min(clock.failures, 20))
            pause *= random.uniform(0.5, 1.0)  # noqa: S311 - keeps sites from returning all at once
            clock.failures += 1
            if self._closed.is_set() or time.monotonic() + pause > clock.moved + self._patience.total_s:
                raise PeersError(
                    f"the relay {self._url} cannot be reached: {reason}",
                    f"tried to {what} for {self._patience.total_s:.0f} s; is it running, and may this host dial out?",
                )
            self._pause(what, reason, pause, clock.moved + self._patience.total_s)

    def _pause(self, what: str, reason: str, seconds: float, end: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._on_retry(Retry(what, reason, left, max(0.0, end - time.monotonic())))
            if self._closed.wait(min(left, 1.0)):
                return

    @contextlib.contextmanager
    def _link(self) -> Iterator[Link]:
        link = self._links.get()
        try:
            yield link
        except BaseException:
            link.close()  # a half-sent request or half-read answer must not meet the next one
            raise
        finally:
            self._links.put(link)


class Outgoing:
    """An object being sent. Several ranks may each send their own blocks; one then commits the Tree of all."""

    def __init__(
        self, client: RelayClient, name: ObjectName, length: int, there: tuple[int, list[tuple[int, int]]] | None
    ) -> None:
        if there is not None and there[0] != length:
            raise PolicyError(f"the relay has {name.name} with {there[0]} bytes, not {length}")
        self._client, self._name, self._length = client, name, length
        self._missing = [(0, length)] if there is None else there[1]
        self.digests: dict[int, bytes] = {}  # block number -> SHA-256 of what this process has written

    def write(self, first: int, view: memoryview) -> None:
        """Send the bytes from `first` on. `first` is a multiple of 2^20; so is the end, unless it is the object's."""
        view = view.cast("B")
        end = first + len(view)
        assert first % BLOCK_BYTES == 0
        assert end <= self._length
        assert end % BLOCK_BYTES == 0 or end == self._length
        clock = _Clock()
        parts = [(max(a, first), min(b, end)) for a, b in self._missing if max(a, first) < min(b, end)]
        pieces = _cut(parts, self._client._piece_bytes, self._client._connections)

        def send(piece: tuple[int, int]) -> None:
            low, high = piece
            part = view[low - first : high - first]
            self._client.send_piece(self._name, self._length, low, part, self.digests, clock)

        self._client._each(pieces, send)
        for index in range(first // BLOCK_BYTES, block_count(end)):  # what the relay had already
            if index not in self.digests:
                at = index * BLOCK_BYTES - first
                self.digests[index] = hashlib.sha256(view[at : at + BLOCK_BYTES]).digest()

    def commit(self, tree: bytes | None = None) -> bytes:
        """Declare the Tree (of all ranks' blocks; default: of what was written here) and see the object whole."""
        tree = tree or _root(self._length, [self.digests[i] for i in range(block_count(self._length))])

        def send(link: Link) -> dict[str, Any]:
            headers = {"content-range": f"bytes */{self._length}", _TREE: tree.hex()}
            link.send_head("PUT", _path(self._name), headers, 0)
            return link.read_json(link.response(wait_s=300.0))

        answer = self._client._persist(f"finish {self._name.name}", send)
        if answer.get("whole") is not True:
            raise PeersError(f"the relay has lost parts of {self._name.name}", "send it again")
        return tree


def _path(name: ObjectName, wait_s: float = 0.0) -> str:
    return f"/v1/objects/{name}" + (f"?wait={wait_s:.3f}" if wait_s > 0 else "")


def _digests(view: memoryview) -> list[bytes]:
    return [hashlib.sha256(view[at : at + BLOCK_BYTES]).digest() for at in range(0, len(view), BLOCK_BYTES)]


def _root(length: int, digests: list[bytes]) -> bytes:
    return tree_root(length, digests)


def _ranges(answer: dict[str, Any]) -> list[tuple[int, int]]:
    try:
        return [(int(a), int(b)) for a, b in answer["missing"]]
    except (KeyError, TypeError, ValueError):
        raise RelayProblem(200, "nonsense", "the list of missing parts has another form") from None


def _cut(ranges: list[tuple[int, int]], most: int, ways: int) -> list[tuple[int, int]]:
    """Pieces of whole blocks: at most `most` bytes, and small enough that `ways` connections share the work."""
    total = sum(end - first for first, end in ranges)
    size = min(most, max(BLOCK_BYTES, -(-total // ways // BLOCK_BYTES) * BLOCK_BYTES))
    return [(at, min(at + size, end)) for first, end in ranges for at in range(first, end, size)]
