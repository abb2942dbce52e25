"""What moves a site's objects to the relay and back: RelayClient over https, SpoolClient through a shared directory.

RelayExchange and everything above it know this interface only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedhpc.transport.gaps import Gaps
from fedhpc.transport.listing import Entry
from fedhpc.wire.object_names import ObjectName

BlockWork = Callable[[int, int], object]  # on bytes [low, high) of the vector: one block


@dataclass
class Traffic:
    """What a client has moved, for benchmarks. Bytes are those of bodies, without heads and TLS. Thread-safe."""

    requests: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    waited_s: float = 0.0  # for the heads of answers, over all threads
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, requests: int = 0, up: int = 0, down: int = 0, waited_s: float = 0.0) -> None:
        """Add to the counters."""
        with self._lock:
            self.requests += requests
            self.bytes_up += up
            self.bytes_down += down
            self.waited_s += waited_s


class Sending(Protocol):
    """An object being sent by several ranks, each its own blocks; see https/transfer.py."""

    digests: dict[int, bytes]

    def write(self, first: int, view: memoryview, prepare: BlockWork | None = None) -> None:
        """Send whole blocks from byte `first` on; `prepare` makes each final just before."""
        ...

    def commit(self, tree: bytes | None = None) -> bytes:
        """Declare the Tree of all ranks' blocks and see the object whole."""
        ...


class Transport(Protocol):
    """Objects to and from the relay, whatever the way. Thread-safe. Every call raises what RelayClient raises."""

    @property
    def traffic(self) -> Traffic:
        """What was moved so far."""
        ...

    def put(self, name: ObjectName, data: bytes | memoryview) -> bytes:
        """Store an object at the relay; its Tree [32]. It is there, or refused, when this returns."""
        ...

    def get(self, name: ObjectName) -> bytes | None:
        """A message, or None if the relay does not have it."""
        ...

    def get_json(self, path: str) -> dict[str, Any]:
        """The JSON object at `path` of the relay."""
        ...

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
        ...

    def missing(self, name: ObjectName) -> tuple[int, Gaps] | None:
        """(length, byte ranges still missing) of an own object; None if nothing of it is there."""
        ...

    def upload(self, name: ObjectName, length: int, *, resume: bool = False) -> Sending:
        """An object whose bytes come piece by piece, perhaps from several ranks."""
        ...

    def fetch_part(
        self, name: ObjectName, length: int, first: int, view: memoryview, finish: BlockWork | None = None
    ) -> dict[int, bytes] | None:
        """Whole blocks of an object into `view`; block number -> digest in its suite, None if it is not there."""
        ...

    def close(self) -> None:
        """Nothing more is moved; calls under way end with PeersError."""
        ...
