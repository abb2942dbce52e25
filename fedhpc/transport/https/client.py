"""The site's side of the relay: messages, listings and vectors over HTTPS, resumed after every cut.

client = RelayClient(RelayAccess(url, pin, certificate, key, proxy_from_environment(url)), connections=4)
client.put(ObjectName(config, 3, 0, "M1/2"), message)
client.put(ObjectName(config, 3, 0, "M3v/2"), memoryview(masked))        # large: several connections, resumed
client.get_into(ObjectName(config, 3, 0, "Y"), memoryview(total), wait_s=30, tree=signed)

A rank of several carries bytes [first, first + len(part)) only: `upload` and `Outgoing.write`, `fetch_part`. One rank
then commits the Tree of all ranks' block digests, or compares it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedhpc.errors import PolicyError
from fedhpc.secure.suite import Suite
from fedhpc.transport.gaps import Gaps, read_gaps
from fedhpc.transport.https.link import Link, RelayAccess
from fedhpc.transport.https.retry import Links, Patience, Retry
from fedhpc.transport.https.transfer import TREE_HEADER, BlockWork, Incoming, Outgoing, declared_length, object_path
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.listing import MOST_BYTES, Entry, listing_path, read_listing
from fedhpc.transport.transport import Traffic
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_count


class RelayClient:
    """A site's access to its relay. Thread-safe.

    Vectors use at most `connections` at once; every other call under way has its own, so waiting blocks nothing.
    """

    def __init__(
        self,
        access: RelayAccess,
        connections: int = 4,
        patience: Patience | None = None,
        on_retry: Callable[[Retry], None] = lambda retry: None,
        piece_bytes: int = 64 << 20,
    ) -> None:
        self._links = Links(access, connections, patience or Patience(), on_retry)
        self._piece_bytes = max(BLOCK_BYTES, piece_bytes // BLOCK_BYTES * BLOCK_BYTES)

    @property
    def traffic(self) -> Traffic:
        """What this client has moved so far."""
        return self._links.traffic

    @property
    def suite(self) -> Suite:
        """What Trees of the federation's objects are made of."""
        return self._links.suite

    @property
    def met(self) -> bool:
        """Whether the relay has proved its key to this client."""
        return self._links.met.is_set()

    def health(self) -> str:
        """The relay's state: `ok` or `stopping`."""

        def ask(link: Link) -> str:
            link.send_head("GET", "/v1/health", {})
            return str(link.read_json(link.response()).get("status"))

        return self._links.persist("ask the relay's health", ask)

    def get(self, name: ObjectName, wait_s: float = 0.0, most_bytes: int = 4 << 20) -> bytes | None:
        """A message, or None if it is not there within `wait_s`. Raises PolicyError if the bytes miss their Tree."""

        def ask(link: Link) -> bytes | None:
            link.send_head("GET", object_path(name, wait_s), {})
            response = link.response(wait_s)
            if response.status == 404:
                link.read_json(response)
                return None
            length = declared_length(response)
            if not 0 < length <= most_bytes:
                link.close()
                raise RelayProblem(200, "too-large", f"{name.name} has {length} bytes, at most {most_bytes} expected")
            data = bytearray(length)
            link.read_into(response, memoryview(data))
            link.end(response)
            if self.suite.tree(memoryview(data)).hex() != response.headers.get(TREE_HEADER):
                raise PolicyError(f"the relay sent other bytes than it announced for {name.name}")
            return bytes(data)

        return self._links.persist(f"fetch {name.name}", ask)

    def get_json(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`, such as /v1/federations/C, of at most 4 MiB. Raises RelayProblem if it is none."""

        def ask(link: Link) -> dict[str, Any]:
            link.send_head("GET", path, {})
            response = link.response()
            answer = link.read_json(response)
            if response.status == 404:
                raise RelayProblem(404, "absent", f"there is nothing at {path}")
            return answer

        return self._links.persist(f"fetch {path}", ask)

    def listing(
        self,
        config: str,
        round_: int,
        attempt: int,
        after: str = "",
        wait_s: float = 0.0,
        until: tuple[str, int] | None = None,
    ) -> tuple[list[Entry], str]:
        """Objects of an attempt that came after the cursor `after`, and the next cursor; waits for the first.

        `until`: (kind, count), waits for so many objects of a kind instead, or until the relay has gone on (NEXT, DONE,
        A1, A2, …). Messages come along with the listing. After a restart of the relay everything is listed again.
        """

        def ask(link: Link) -> tuple[list[Entry], str]:
            link.send_head("GET", listing_path(config, round_, attempt, after, wait_s, until), {})
            response = link.response(wait_s)
            length = declared_length(response)
            if response.status != 200 or not 0 < length <= MOST_BYTES:
                link.close()
                raise RelayProblem(response.status, "nonsense", f"{length} bytes are not a listing")
            data = bytearray(length)
            link.read_into(response, memoryview(data))
            link.end(response)
            try:
                return read_listing(bytes(data), config, round_, attempt, self.suite)
            except ValueError as error:
                raise RelayProblem(200, "nonsense", str(error)) from None

        return self._links.persist("list the attempt", ask)

    def missing(self, name: ObjectName) -> tuple[int, Gaps] | None:
        """(length, byte ranges [first, end) still missing) of an own object; None if nothing of it is there."""

        def ask(link: Link) -> tuple[int, Gaps] | None:
            link.send_head("GET", f"/v1/uploads/{name}", {})
            response = link.response()
            answer = link.read_json(response)
            length = answer.get("bytes")
            if response.status == 404:
                return None
            if type(length) is not int:
                raise RelayProblem(200, "nonsense", "the upload has no length")
            return length, read_gaps(answer)

        return self._links.persist(f"ask what is missing of {name.name}", ask)

    def put(self, name: ObjectName, data: bytes | memoryview) -> bytes:
        """Store a whole object; its Tree [32]. What a killed predecessor has sent is not sent again.

        Raises PolicyError (other bytes under the name, not this site's object), RelayProblem (quota, disk), PeersError.
        """
        view = memoryview(data).cast("B")
        if len(view) > BLOCK_BYTES:
            upload = self.upload(name, len(view), resume=True)
            upload.write(0, view)
            return upload.commit()
        root = self.suite.tree(view)

        def send(link: Link) -> dict[str, Any]:
            link.send_head("PUT", object_path(name), {TREE_HEADER: root.hex()}, len(view))
            link.send(view)
            return link.read_json(link.response())

        self._links.persist(f"send {name.name}", send)
        return root

    def upload(self, name: ObjectName, length: int, *, resume: bool = False) -> Outgoing:
        """An object whose bytes come piece by piece, perhaps from several ranks; `resume`: ask what is there first."""
        there = self.missing(name) if resume else None
        if there is not None and there[0] != length:
            raise PolicyError(f"the relay has {name.name} with {there[0]} bytes, not {length}")
        gaps = [(0, length)] if there is None else there[1]
        return Outgoing(self._links, name, length, gaps, self._piece_bytes)

    def get_into(
        self, name: ObjectName, view: memoryview, wait_s: float = 0.0, tree: bytes | None = None
    ) -> bytes | None:
        """Fill `view` with the object of exactly that length; its Tree [32], or None if it is not there in time.

        `tree`: what it must hash to, because sites signed it. Raises PolicyError for other bytes.
        """
        whole = Incoming(self._links, name, len(view.cast("B")), 0, view, self._piece_bytes)
        if not whole.fetch(wait_s):
            return None
        length = len(view.cast("B"))
        root = self.suite.root(length, [whole.digests[i] for i in range(block_count(length))])
        if root.hex() != (tree.hex() if tree else whole.said):
            raise PolicyError(f"the relay sent other bytes for {name.name} than were signed or announced")
        return root

    def fetch_part(
        self,
        name: ObjectName,
        length: int,
        first: int,
        view: memoryview,
        finish: BlockWork | None = None,
        wait_s: float = 0.0,
    ) -> dict[int, bytes] | None:
        """Bytes [first, first + len(view)) of the object of `length` bytes, whole blocks, into `view`.

        Gives block number -> digest of the block as received, for the caller to compare with what sites signed; None
        if the object is not there within `wait_s`. `finish(low, high)`, bytes of the object, is called once per block
        after that, in the receiving thread, and may change the block in place (unmask, decode): a finished block is
        never fetched again. What it raises ends the fetch and is raised here. Raises RelayProblem for another length.
        """
        part = Incoming(self._links, name, length, first, view, self._piece_bytes, finish)
        return part.digests if part.fetch(wait_s) else None

    def close(self) -> None:
        """Close all connections; calls under way in other threads end with PeersError."""
        self._links.close()
