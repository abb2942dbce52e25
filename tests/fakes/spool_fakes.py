"""A relay in memory with RelayClient's calls, for both ends of a spool directory, and a carrier in a thread."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secure_fakes import key_of

from fedhpc.errors import PeersError, PolicyError
from fedhpc.secure.suite import SHA256
from fedhpc.transport.gaps import Gaps
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.listing import Entry
from fedhpc.transport.spool.carrier import Carrier
from fedhpc.transport.spool.client import SpoolClient
from fedhpc.transport.spool.folder import SpoolFolder
from fedhpc.transport.transport import BlockWork, Traffic
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName, block_count

CONFIG, SITE = key_of("spool config").hex(), 2
VECTOR = bytes(random.Random(1).randbytes(2 * BLOCK_BYTES + 1000))
PATIENCE_S = 30.0


def name(text: str, round_: int = 1, attempt: int = 1) -> ObjectName:
    return ObjectName(CONFIG, round_, attempt, text)


class FakeRelay:
    """Objects of one federation, with the rules that a client meets. Shared by any number of FakeClients."""

    def __init__(self) -> None:
        self.objects: dict[ObjectName, bytes] = {}
        self.order: list[ObjectName] = []
        self.partial: dict[ObjectName, tuple[int, dict[int, bytes]]] = {}
        self.over = 0
        self.closed_kinds: set[str] = set()
        self.down = False
        self.changed = threading.Condition()
        self.life = "aa"
        self.sent: list[bytes] = []  # every body that came over the wire
        self.quiet: list[bool] = []

    def check(self, of: ObjectName) -> None:
        if 0 < of.round <= self.over:
            raise RelayProblem(409, "round-over", f"round {of.round} is over")

    def add(self, of: ObjectName, data: bytes) -> None:
        with self.changed:
            self.objects[of] = data
            self.order.append(of)
            self.changed.notify_all()

    def write(self, of: ObjectName, data: bytes) -> None:
        self.check(of)
        if of.owner != SITE:
            raise PolicyError(f"the relay refused (403 forbidden): {of.name} is not this site's to write")
        if of.kind in self.closed_kinds:
            raise RelayProblem(409, "too-late", f"{of.kind} was closed")
        if self.objects.get(of, data) != data and of.kind != "READY":
            raise PolicyError(f"the relay refused (409 conflict): {of.name} is there with other bytes")
        if self.objects.get(of) != data:
            self.add(of, data)


class FakeClient:
    """RelayClient's calls on a FakeRelay."""

    def __init__(self, relay: FakeRelay) -> None:
        self.relay, self.traffic = relay, Traffic()
        self.closed = threading.Event()

    def _reach(self) -> None:
        if self.closed.is_set():
            raise PeersError("closed")
        if self.relay.down:
            time.sleep(0.01)
            raise PeersError("the relay cannot be reached")
        self.traffic.count(requests=1, down=1)

    def put(self, of: ObjectName, data: bytes | memoryview) -> bytes:
        self._reach()
        self.relay.sent.append(bytes(data))
        self.relay.write(of, bytes(data))
        return SHA256.tree(bytes(data))

    def get(self, of: ObjectName) -> bytes | None:
        self._reach()
        self.relay.check(of)
        return self.relay.objects.get(of)

    def get_json(self, path: str) -> dict[str, Any]:
        self._reach()
        self.relay.quiet.append(path.endswith("?quiet"))
        return {"done": self.relay.over, "path": path.partition("?")[0]}

    def listing(
        self,
        config: str,
        round_: int,
        attempt: int,
        after: str = "",
        wait_s: float = 0.0,
        until: tuple[str, int] | None = None,
    ) -> tuple[list[Entry], str]:
        self._reach()
        assert until is None
        assert config == CONFIG
        end = time.monotonic() + wait_s
        life, _, count = after.partition(".")
        with self.relay.changed:
            while True:
                self.relay.check(ObjectName(CONFIG, round_, attempt, "A1"))
                here = [of for of in self.relay.order if (of.round, of.attempt) == (round_, attempt)]
                start = int(count) if life == self.relay.life else 0
                new = list(dict.fromkeys(of for of in self.relay.order[start:] if of in here))
                left = end - time.monotonic()
                if new or left <= 0 or self.closed.is_set():
                    break
                self.relay.changed.wait(min(left, 0.05))
            entries = []
            for of in new:
                data = self.relay.objects[of]
                body = data if len(data) < 100_000 and of.kind not in ("Y", "M3v") else None
                entries.append(Entry(of.name, SHA256.tree(data), len(data), body))
            return entries, f"{self.relay.life}.{len(self.relay.order)}"

    def missing(self, of: ObjectName) -> tuple[int, Gaps] | None:
        self._reach()
        if of in self.relay.objects:
            return len(self.relay.objects[of]), []
        if of not in self.relay.partial:
            return None
        length, blocks = self.relay.partial[of]
        starts = [i * BLOCK_BYTES for i in range(block_count(length)) if i not in blocks]
        return length, [(at, min(at + BLOCK_BYTES, length)) for at in starts]

    def upload(self, of: ObjectName, length: int, *, resume: bool = False) -> FakeOutgoing:
        self._reach()
        return FakeOutgoing(self, of, length)

    def fetch_part(
        self, of: ObjectName, length: int, first: int, view: memoryview, finish: BlockWork | None = None
    ) -> dict[int, bytes] | None:
        self._reach()
        self.relay.check(of)
        data = self.relay.objects.get(of)
        if data is None:
            return None
        if len(data) != length:
            raise RelayProblem(200, "bad-length", f"{of.name} has {len(data)} bytes, not {length}")
        digests = {}
        for at in range(first, first + len(view), BLOCK_BYTES):
            high = min(at + BLOCK_BYTES, first + len(view))
            view[at - first : high - first] = data[at:high]
            digests[at // BLOCK_BYTES] = hashlib.sha256(data[at:high]).digest()
            if finish is not None:
                finish(at, high)
        return digests

    def close(self) -> None:
        self.closed.set()


class FakeOutgoing:
    def __init__(self, client: FakeClient, of: ObjectName, length: int) -> None:
        self._client, self._of, self._length = client, of, length
        self.digests: dict[int, bytes] = {}

    def write(self, first: int, view: memoryview, prepare: BlockWork | None = None) -> None:
        relay = self._client.relay
        self._client._reach()
        relay.check(self._of)
        _, blocks = relay.partial.setdefault(self._of, (self._length, {}))
        for at in range(first, first + len(view), BLOCK_BYTES):
            high = min(at + BLOCK_BYTES, first + len(view))
            if prepare is not None:
                prepare(at, high)
            data = bytes(view[at - first : high - first])
            self.digests[at // BLOCK_BYTES] = hashlib.sha256(data).digest()
            blocks[at // BLOCK_BYTES] = data
            relay.sent.append(data)

    def commit(self, root: bytes | None = None) -> bytes:
        self._client._reach()
        relay = self._client.relay
        _, blocks = relay.partial.get(self._of, (0, {}))
        found = root or SHA256.root(self._length, [self.digests[i] for i in range(block_count(self._length))])
        if self._of not in relay.objects and len(blocks) < block_count(self._length):
            raise PeersError("the relay has lost parts")
        relay.write(self._of, b"".join(blocks[i] for i in sorted(blocks)) or relay.objects[self._of])
        return found


def spool_in(folder: Path) -> SpoolFolder:
    """A spool directory with a name that shells and careless code trip over."""
    spool = folder / "a 'spool'\nof \"two\" lines"
    spool.mkdir(exist_ok=True)
    return SpoolFolder(spool, CONFIG, SITE)


@contextlib.contextmanager
def carrying(folder: SpoolFolder, relay: FakeRelay) -> Iterator[Carrier]:
    """A carrier in a thread, until the block ends; it must not have failed."""
    carrier = Carrier(folder, FakeClient(relay), lambda text: None)  # type: ignore[arg-type]
    failed: list[BaseException] = []

    def run() -> None:
        try:
            carrier.watch(stale_s=5)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield carrier
    finally:
        carrier.stopping.set()
        thread.join(20)
    assert not thread.is_alive()
    assert failed == []


def once(folder: SpoolFolder, relay: FakeRelay) -> int:
    """One pass of a carrier; how much it carried."""
    carrier = Carrier(folder, FakeClient(relay), lambda text: None)  # type: ignore[arg-type]
    carrier.once(stale_s=0.5)
    return carrier.carried


def halves(client: SpoolClient, data: bytes = VECTOR) -> tuple[SpoolClient, bytes]:
    """Two ranks write their parts with clients of their own; the leader's client and the Tree."""
    other = SpoolClient(client._folder, patience_s=PATIENCE_S, leads=False)
    digests: dict[int, bytes] = {}
    of = name("M3v/2")
    buffer = bytearray(data)
    for rank, (low, high) in ((client, (0, BLOCK_BYTES)), (other, (BLOCK_BYTES, len(data)))):
        seen: list[tuple[int, int]] = []
        outgoing = rank.upload(of, len(data))
        outgoing.write(low, memoryview(buffer)[low:high], lambda a, b, seen=seen: seen.append((a, b)))  # type: ignore[misc]
        starts = range(low, high, BLOCK_BYTES)
        assert sorted(seen) == [(at, min(at + BLOCK_BYTES, high)) for at in starts], "each block is prepared once"
        digests |= outgoing.digests
    return client, SHA256.root(len(data), [digests[i] for i in sorted(digests)])


def wait_for(true: Any) -> None:
    """Until `true()`; the test's own time limit is the only one."""
    event = threading.Event()
    for _ in range(6000):
        if true():
            return
        event.wait(0.005)
    raise AssertionError("it never came")
