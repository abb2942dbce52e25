"""Vectors up and down: whole blocks of 2^20 bytes over several connections, from and to the caller's memory.

What a transfer keeps is one digest per block. After a cut an upload asks the relay what it has, and a download goes on
after the last whole block.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any

from fedhpc.errors import PeersError, PolicyError
from fedhpc.exchange.http_link import Link, RelayProblem
from fedhpc.exchange.http_retry import Clock, Links
from fedhpc.exchange.objects import BLOCK_BYTES, ObjectName, block_count
from fedhpc.secure.transcript import tree_root

TREE_HEADER = "fedhpc-tree"
_COMMIT_S = 300.0  # the relay syncs a whole vector to its disk

Gaps = list[tuple[int, int]]  # byte ranges [first, end)


class Outgoing:
    """An object being sent. Several ranks may each send their own blocks; one then commits the Tree of all."""

    def __init__(self, links: Links, name: ObjectName, length: int, missing: Gaps, piece_bytes: int) -> None:
        self._links, self._name, self._length = links, name, length
        self._missing, self._piece_bytes = missing, piece_bytes
        self.digests: dict[int, bytes] = {}  # block number -> SHA-256 of what this process has written

    def write(self, first: int, view: memoryview) -> None:
        """Send the bytes from `first` on. `first` is a multiple of 2^20; so is the end, unless it is the object's."""
        view = view.cast("B")
        end = first + len(view)
        assert first % BLOCK_BYTES == 0
        assert end <= self._length
        assert end % BLOCK_BYTES == 0 or end == self._length
        clock = Clock()
        parts = _overlap(self._missing, [(first, end)])

        def send(piece: tuple[int, int]) -> None:
            low, high = piece
            self._send_piece(low, view[low - first : high - first], clock)

        self._links.each(_cut(parts, self._piece_bytes, self._links.count), send)
        for index in range(first // BLOCK_BYTES, block_count(end)):  # what the relay had already
            if index not in self.digests:
                at = index * BLOCK_BYTES - first
                self.digests[index] = hashlib.sha256(view[at : at + BLOCK_BYTES]).digest()

    def commit(self, tree: bytes | None = None) -> bytes:
        """Declare the Tree (of all ranks' blocks; default: of what was written here) and see the object whole; Tree."""
        root = tree or tree_root(self._length, [self.digests[i] for i in range(block_count(self._length))])

        def send(link: Link) -> dict[str, Any]:
            headers = {"content-range": f"bytes */{self._length}", TREE_HEADER: root.hex()}
            link.send_head("PUT", object_path(self._name), headers, 0)
            return link.read_json(link.response(wait_s=_COMMIT_S))

        answer = self._links.persist(f"finish {self._name.name}", send)
        if answer.get("whole") is not True:
            raise PeersError(f"the relay has lost parts of {self._name.name}", "send it again")
        return root

    def _send_piece(self, first: int, view: memoryview, clock: Clock) -> None:
        todo = [(first, first + len(view))]
        again = False

        def send(link: Link) -> None:
            nonlocal todo, again
            if again:
                left = _overlap(self._ask_gaps(link), todo)
                if _size(left) < _size(todo):
                    clock.tick()
                todo = left
            again = True
            while todo:
                low, high = todo[0]
                headers = {"content-range": f"bytes {low}-{high - 1}/{self._length}"}
                link.send_head("PUT", object_path(self._name), headers, high - low)
                for at in range(low, high, BLOCK_BYTES):
                    if link.answered_early():
                        break
                    block = view[at - first : min(at + BLOCK_BYTES, high) - first]
                    if at // BLOCK_BYTES not in self.digests:
                        self.digests[at // BLOCK_BYTES] = hashlib.sha256(block).digest()
                    link.send(block)
                link.read_json(link.response())
                clock.tick()
                todo = todo[1:]

        self._links.persist(f"send {self._name.name}", send, clock)

    def _ask_gaps(self, link: Link) -> Gaps:
        link.send_head("GET", f"/v1/uploads/{self._name}", {})
        response = link.response()
        answer = link.read_json(response)
        return read_gaps(answer) if response.status == 200 else [(0, self._length)]


class Incoming:
    """An object being fetched into `view`, whose length it must have."""

    def __init__(self, links: Links, name: ObjectName, view: memoryview, piece_bytes: int) -> None:
        self._links, self._name, self._view, self._piece_bytes = links, name, view.cast("B"), piece_bytes
        self._digests = [b""] * block_count(len(self._view))
        self._clock = Clock()
        self._said = ""  # the Tree the relay announced

    def fetch(self, wait_s: float, tree: bytes | None) -> bytes | None:
        """All of it; the Tree [32], or None if it is not there in time. Raises PolicyError for other bytes."""
        first_end = min(self._piece_bytes, len(self._view))
        known = threading.Event()  # set when the first answer's head is there, or there is none

        def begin(link: Link) -> bool:
            if self._said:
                self._fetch_on(link, 0, first_end)
                return True
            link.send_head("GET", object_path(self._name, wait_s), {"range": f"bytes=0-{first_end - 1}"})
            response = link.response(wait_s)
            if response.status == 404:
                link.read_json(response)
                return False
            self._check_head(link, response, first_end)
            known.set()
            self._receive(link, response, 0, first_end)
            return True

        def others() -> None:
            known.wait()
            if self._said:
                rest = _cut([(first_end, len(self._view))], self._piece_bytes, self._links.count)
                self._links.each(rest, self._fetch_piece)

        # The other pieces start when the first answer's head is there, so a waiting object costs one round trip.
        with ThreadPoolExecutor(1) as pool:
            more = pool.submit(others)
            try:
                found = self._links.persist(f"fetch {self._name.name}", begin, self._clock)
            finally:
                known.set()
            more.result()
        if not found:
            return None
        root = tree_root(len(self._view), self._digests)
        if root.hex() != (tree.hex() if tree else self._said):
            raise PolicyError(f"the relay sent other bytes for {self._name.name} than were signed or announced")
        return root

    def _check_head(self, link: Link, response: HTTPResponse, size: int) -> None:
        whole = response.headers.get("content-range", f"/{len(self._view) if response.status == 200 else ''}")
        length = whole.rpartition("/")[2]
        if length != str(len(self._view)) or declared_length(response) != size:
            link.close()
            raise RelayProblem(
                response.status, "bad-length", f"{self._name.name} has {length} bytes, not {len(self._view)}"
            )
        self._said = response.headers.get(TREE_HEADER, "-")

    def _fetch_piece(self, piece: tuple[int, int]) -> None:
        def ask(link: Link) -> None:
            self._fetch_on(link, *piece)

        self._links.persist(f"fetch {self._name.name}", ask, self._clock)

    def _fetch_on(self, link: Link, low: int, high: int) -> None:
        """The bytes of [low, high) that are not there yet."""
        while low < high and self._digests[low // BLOCK_BYTES]:
            low += BLOCK_BYTES
        if low >= high:
            return
        link.send_head("GET", object_path(self._name), {"range": f"bytes={low}-{high - 1}"})
        response = link.response()
        if response.status == 404:
            raise PeersError(f"{self._name.name} has been removed at the relay")
        if declared_length(response) != high - low:
            link.close()
            raise RelayProblem(response.status, "bad-length", f"a part of {self._name.name} has another length")
        self._receive(link, response, low, high)

    def _receive(self, link: Link, response: HTTPResponse, low: int, high: int) -> None:
        for at in range(low, high, BLOCK_BYTES):
            block = self._view[at : min(at + BLOCK_BYTES, high)]
            link.read_into(response, block)
            self._digests[at // BLOCK_BYTES] = hashlib.sha256(block).digest()
            self._clock.tick()
        link.end(response)


def object_path(name: ObjectName, wait_s: float = 0.0) -> str:
    """The object's path at the relay."""
    return f"/v1/objects/{name}" + (f"?wait={wait_s:.3f}" if wait_s > 0 else "")


def declared_length(response: HTTPResponse) -> int:
    """The answer's content-length, or -1."""
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def read_gaps(answer: dict[str, Any]) -> Gaps:
    """The missing ranges a relay names. Raises RelayProblem unless they are whole blocks in rising order."""
    gaps: Gaps = []
    try:
        for first, end in answer["missing"]:
            if type(first) is not int or type(end) is not int or first % BLOCK_BYTES or first >= end:
                raise ValueError
            if gaps and first < gaps[-1][1]:
                raise ValueError
            gaps.append((first, end))
    except (KeyError, TypeError, ValueError):
        raise RelayProblem(200, "nonsense", "the list of missing parts has another form") from None
    if gaps and gaps[0][0] < 0:
        raise RelayProblem(200, "nonsense", "a missing part begins before the object")
    return gaps


def _overlap(gaps: Gaps, wanted: Gaps) -> Gaps:
    """What lies in both."""
    return [(max(a, f), min(b, e)) for a, b in gaps for f, e in wanted if max(a, f) < min(b, e)]


def _size(gaps: Gaps) -> int:
    return sum(end - first for first, end in gaps)


def _cut(ranges: Gaps, most: int, ways: int) -> Gaps:
    """Pieces of whole blocks: at most `most` bytes, and small enough that `ways` connections share the work."""
    size = min(most, max(BLOCK_BYTES, -(-_size(ranges) // ways // BLOCK_BYTES) * BLOCK_BYTES))
    return [(at, min(at + size, end)) for first, end in ranges for at in range(first, end, size)]
