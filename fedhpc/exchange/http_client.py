"""The site's side of the relay: messages, listings and vectors over HTTPS, resumed after every cut.

client = RelayClient(RelayAccess(url, pin, certificate, key, proxy_from_environment(url)), connections=4)
client.put(ObjectName(config, 3, 0, "M1/2"), message)
client.put(ObjectName(config, 3, 0, "M3v/2"), memoryview(masked))        # large: several connections, resumed
client.get_into(ObjectName(config, 3, 0, "Y"), memoryview(total), wait_s=30, tree=signed)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedhpc.errors import PolicyError
from fedhpc.exchange.http_link import Link, RelayAccess, RelayProblem
from fedhpc.exchange.http_retry import Links, Patience, Retry
from fedhpc.exchange.http_transfer import (
    TREE_HEADER,
    Gaps,
    Incoming,
    Outgoing,
    declared_length,
    object_path,
    read_gaps,
)
from fedhpc.exchange.objects import BLOCK_BYTES, ObjectName
from fedhpc.secure.transcript import tree_root


@dataclass(frozen=True)
class Entry:
    """An object in a listing."""

    name: str
    tree: bytes  # [32]
    length: int


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
        self._links = Links(access, connections, patience or Patience(), on_retry)
        self._piece_bytes = max(BLOCK_BYTES, piece_bytes // BLOCK_BYTES * BLOCK_BYTES)

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
            if _root(memoryview(data)).hex() != response.headers.get(TREE_HEADER):
                raise PolicyError(f"the relay sent other bytes than it announced for {name.name}")
            return bytes(data)

        return self._links.persist(f"fetch {name.name}", ask)

    def listing(
        self, config: str, round_: int, attempt: int, after: str = "", wait_s: float = 0.0
    ) -> tuple[list[Entry], str]:
        """Objects of an attempt that came after the cursor `after`, and the next cursor; waits for the first.

        After a restart of the relay everything is listed again.
        """

        def ask(link: Link) -> tuple[list[Entry], str]:
            query = f"?wait={wait_s:.3f}" + (f"&after={after}" if after else "")
            link.send_head("GET", f"/v1/objects/{config}/{round_}/{attempt}/{query}", {})
            answer = link.read_json(link.response(wait_s))
            try:
                cursor = str(answer["after"])
                if not cursor.replace(".", "").isalnum() or len(cursor) > 64:
                    raise ValueError
                return [
                    Entry(str(o["name"]), bytes.fromhex(o["tree"]), int(o["bytes"])) for o in answer["objects"]
                ], cursor
            except (KeyError, TypeError, ValueError):
                raise RelayProblem(200, "nonsense", "the listing has another form") from None

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
        root = _root(view)

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
        return Incoming(self._links, name, view, self._piece_bytes).fetch(wait_s, tree)

    def close(self) -> None:
        """Close all connections; a thread that pauses gives up."""
        self._links.close()


def _root(view: memoryview) -> bytes:
    digests = (hashlib.sha256(view[at : at + BLOCK_BYTES]).digest() for at in range(0, len(view), BLOCK_BYTES))
    return tree_root(len(view), digests)
