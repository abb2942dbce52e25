"""Vectors up and down: whole blocks of 2^20 bytes over several connections, from and to the caller's memory.

What a transfer keeps is one digest per block. After a cut an upload asks the relay what it has, and a download goes on
after the last whole block. The caller's own work on a block (masking, decoding) runs in the thread that moves it, so
several blocks are worked on while others are on the wire.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

from fedhpc.errors import InternalError, PeersError
from fedhpc.transport.gaps import Gaps, cut, overlap, read_gaps, size_of, without
from fedhpc.transport.https.link import Link
from fedhpc.transport.https.retry import Clock, Links
from fedhpc.transport.link_problems import LinkDown, RelayProblem
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_count

TREE_HEADER = "fedhpc-tree"
_COMMIT_S = 300.0  # the relay syncs a whole vector to its disk

BlockWork = Callable[[int, int], object]  # on bytes [low, high) of the vector: one block


class Outgoing:
    """An object being sent. Several ranks may each send their own blocks; one then commits the Tree of all."""

    def __init__(self, links: Links, name: ObjectName, length: int, missing: Gaps, piece_bytes: int) -> None:
        self._links, self._name, self._length = links, name, length
        self._missing, self._piece_bytes = missing, piece_bytes
        self._begun: set[int] = set()
        self.digests: dict[int, bytes] = {}  # block number -> digest of what this process has written

    def write(self, first: int, view: memoryview, prepare: BlockWork | None = None) -> None:
        """Send the bytes from `first` on. `first` is a multiple of 2^20; so is the end, unless it is the object's.

        `prepare(low, high)` makes bytes [low, high) of the object, one block, final in `view` just before they are
        hashed and sent. It is called once per block in the life of this Outgoing, also for blocks that the relay has
        already, from several threads at once. What it raises ends the write and is raised here; the vector cannot be
        written with this Outgoing after that.
        """
        view = view.cast("B")
        end = first + len(view)
        _require_blocks(first, end, self._length)
        clock = Clock()
        ways = self._links.count
        todo = overlap(self._missing, [(first, end)])
        there = without((first, end), todo)
        pieces = [(low, high, True) for low, high in cut(todo, self._piece_bytes, ways)]
        pieces += [(low, high, False) for low, high in cut(there, self._piece_bytes, ways)]

        def work(piece: tuple[int, int, bool]) -> None:
            low, high, missing = piece
            if missing:
                self._send_piece(low, high, first, view, prepare, clock)
            for at in range(low, high, BLOCK_BYTES):
                clock.go_on()
                self._block(at, high, first, view, prepare)

        self._links.each(pieces, work, clock)

    def commit(self, tree: bytes | None = None) -> bytes:
        """Declare the Tree (of all ranks' blocks; default: of what was written here) and see the object whole; Tree."""
        root = tree or self._links.suite.root(self._length, [self.digests[i] for i in range(block_count(self._length))])

        def send(link: Link) -> dict[str, Any]:
            headers = {"content-range": f"bytes */{self._length}", TREE_HEADER: root.hex()}
            link.send_head("PUT", object_path(self._name), headers, 0)
            return link.read_json(link.response(wait_s=_COMMIT_S))

        answer = self._links.persist(f"finish {self._name.name}", send)
        if answer.get("whole") is not True:
            raise PeersError(f"the relay has lost parts of {self._name.name}", "send it again")
        return root

    def _block(self, at: int, end: int, first: int, view: memoryview, prepare: BlockWork | None) -> memoryview:
        """The block at byte `at`, final and hashed. Called only by the thread whose piece it is in."""
        high = min(at + BLOCK_BYTES, end)
        block = view[at - first : high - first]
        index = at // BLOCK_BYTES
        if index not in self.digests:
            if index in self._begun:
                raise InternalError(f"block {index} of {self._name.name} was prepared in part and cannot be sent")
            self._begun.add(index)
            if prepare is not None:
                prepare(at, high)
            self.digests[index] = self._links.suite.block(block)
        return block

    def _send_piece(
        self, low: int, high: int, first: int, view: memoryview, prepare: BlockWork | None, clock: Clock
    ) -> None:
        todo = [(low, high)]
        again = False

        def send(link: Link) -> None:
            nonlocal todo, again
            if again:
                left = overlap(self._ask_gaps(link), todo)
                if size_of(left) < size_of(todo):
                    clock.tick()
                todo = left
            again = True
            while todo:
                part, end = todo[0]
                headers = {"content-range": f"bytes {part}-{end - 1}/{self._length}"}
                link.send_head("PUT", object_path(self._name), headers, end - part)
                for at in range(part, end, BLOCK_BYTES):
                    clock.go_on()
                    block = self._block(at, end, first, view, prepare)
                    if link.answered_early():
                        break
                    link.send(block)
                response = link.response()
                link.read_json(response)
                if response.status == 404:  # dropped in between: the next try starts over, or hears why not
                    raise LinkDown("the relay has dropped the upload")
                clock.tick()
                todo = todo[1:]

        self._links.persist(f"send {self._name.name}", send, clock, transfer=True)

    def _ask_gaps(self, link: Link) -> Gaps:
        link.send_head("GET", f"/v1/uploads/{self._name}", {})
        response = link.response()
        answer = link.read_json(response)
        return read_gaps(answer) if response.status == 200 else [(0, self._length)]


class Incoming:
    """Bytes [first, first + len(view)) of an object of `length` bytes, being fetched into `view`.

    `finish(low, high)` is called once per block, after it was received and hashed, from several threads at once; what
    it raises ends the fetch.
    """

    def __init__(
        self,
        links: Links,
        name: ObjectName,
        length: int,
        first: int,
        view: memoryview,
        piece_bytes: int,
        finish: BlockWork | None = None,
    ) -> None:
        self._links, self._name, self._length = links, name, length
        self._first, self._view, self._finish = first, view.cast("B"), finish
        self._end = first + len(self._view)
        _require_blocks(first, self._end, length)
        self._pieces = cut([(first, self._end)], piece_bytes, links.count)
        self._clock = Clock()
        self.digests: dict[int, bytes] = {}  # block number -> digest of the block as it was received
        self.said = ""  # the Tree the relay announced

    def fetch(self, wait_s: float) -> bool:
        """All of it; False if the object is not there in time. Raises RelayProblem if it has another length."""
        known = threading.Event()  # set when the first answer's head is there, or there is none
        found = False

        def begin(link: Link) -> bool:
            low, high = self._pieces[0]
            if self.said:
                self._fetch_on(link, low, high)
                return True
            link.send_head("GET", object_path(self._name, wait_s), {"range": f"bytes={low}-{high - 1}"})
            response = link.response(wait_s)
            if response.status == 404:
                link.read_json(response)
                return False
            self._check_head(link, response, high - low)
            known.set()
            self._receive(link, response, low, high)
            return True

        def work(index: int) -> None:
            nonlocal found
            if index == 0:
                try:
                    found = self._links.persist(f"fetch {self._name.name}", begin, self._clock)
                finally:
                    known.set()
                return
            known.wait()  # so an object that is awaited costs one round trip, and one connection until it is there
            if self.said:
                self._links.persist(
                    f"fetch {self._name.name}",
                    lambda link: self._fetch_on(link, *self._pieces[index]),
                    self._clock,
                    transfer=True,
                )

        self._links.each(range(len(self._pieces)), work, self._clock)
        return found or not self._pieces

    def _check_head(self, link: Link, response: HTTPResponse, size: int) -> None:
        declared = declared_length(response)
        whole = response.headers.get("content-range", f"/{declared if response.status == 200 else ''}")
        length = whole.rpartition("/")[2]
        if length != str(self._length) or declared != size:
            link.close()
            raise RelayProblem(
                response.status, "bad-length", f"{self._name.name} has {length} bytes, not {self._length}"
            )
        self.said = response.headers.get(TREE_HEADER, "-")

    def _fetch_on(self, link: Link, low: int, high: int) -> None:
        """The blocks of [low, high) that are not there yet."""
        while low < high and low // BLOCK_BYTES in self.digests:
            low += BLOCK_BYTES
        if low >= high:
            return
        link.send_head("GET", object_path(self._name), {"range": f"bytes={low}-{high - 1}"})
        response = link.response()
        if response.status == 404:
            raise RelayProblem(404, "absent", f"{self._name.name} has been removed at the relay")
        if declared_length(response) != high - low:
            link.close()
            raise RelayProblem(response.status, "bad-length", f"a part of {self._name.name} has another length")
        self._receive(link, response, low, high)

    def _receive(self, link: Link, response: HTTPResponse, low: int, high: int) -> None:
        for at in range(low, high, BLOCK_BYTES):
            self._clock.go_on()
            end = min(at + BLOCK_BYTES, high)
            block = self._view[at - self._first : end - self._first]
            link.read_into(response, block)
            self.digests[at // BLOCK_BYTES] = self._links.suite.block(block)
            self._clock.tick()
            if self._finish is not None:
                self._finish(at, end)
        link.end(response)


def object_path(name: ObjectName, wait_s: float = 0.0) -> str:
    """The object's path at the relay."""
    return f"/v1/objects/{name}" + (f"?wait={wait_s:.3f}" if wait_s > 0 else "")


def declared_length(response: HTTPResponse) -> int:
    """The answer's content-length, or -1."""
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def _require_blocks(first: int, end: int, length: int) -> None:
    """Whether [first, end) are whole blocks of an object of `length` bytes; anything else is the caller's mistake."""
    if first % BLOCK_BYTES or not 0 <= first <= end <= length or (end % BLOCK_BYTES and end != length):
        raise InternalError(f"bytes {first} to {end} are not whole blocks of an object of {length} bytes")
