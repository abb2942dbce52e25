"""Sites that play rounds over a real relay: the messages of SiteAttempt, vectors of noise, no ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from harness import PATIENCE
from relay_process import CONFIG, Relay

from fedhpc.secure.attempt import Expected, SiteAttempt
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.pairwise import Member
from fedhpc.secure.suite import SHA256
from fedhpc.secure.tag import TAG_BYTES, tag_from_bytes
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.secure.transcript import canon
from fedhpc.wire.object_names import ObjectName

STATE, LAYOUT = hashlib.sha256(b"state").digest(), hashlib.sha256(b"layout").digest()


class Disk:
    """A site's disk that keeps nothing: these sites live as long as the test."""

    def allows(self, entry: LedgerEntry) -> None:
        """Everything is allowed."""

    admit = allows

    def save(self, private: bytes) -> None:
        """Nothing to come back to."""


class Sites:
    """All sites of CONFIG, in one round with vectors of `lanes` 32-bit lanes."""

    def __init__(self, relay: Relay, round_: int = 1, lanes: int = 20, count: int = 4) -> None:
        self.relay, self.round_, self.lanes = relay, round_, lanes
        self.numbers = range(1, count + 1)
        self.clients = {u: relay.client(u) for u in self.numbers}
        self.keys = {u: Ed25519PrivateKey.from_private_bytes(bytes([u]) * 32) for u in self.numbers}
        roster = [Member(u, f"site-{u}", key.public_key()) for u, key in self.keys.items()]
        thresholds = choose_thresholds(count)
        self.new: Callable[[int], SiteAttempt] = lambda u: SiteAttempt(u, self.keys[u], roster, thresholds, Disk())
        self.machines: dict[int, SiteAttempt] = {}
        self.vectors: dict[int, bytearray] = {}

    def name(self, attempt: int, text: str) -> ObjectName:
        return ObjectName(CONFIG, self.round_, attempt, text)

    def ready(self, *sites: int, **changes: Any) -> None:
        own = {"base": STATE.hex(), "everyone": 0, "layout": LAYOUT.hex(), "purpose": "train", "state": STATE.hex()}
        data = canon(own | {"tensors": [[32, self.lanes]]} | changes)
        for u in sites or self.numbers:
            self.clients[u].put(self.name(0, f"READY/{u}"), data)

    def get(self, attempt: int, text: str, u: int = 1) -> bytes:
        """An object, waited for by a long poll."""
        found = self.clients[u].get(self.name(attempt, text), 20.0 * PATIENCE)
        assert found is not None, text
        return found

    def send(self, attempt: int, kind: str, messages: dict[int, bytes]) -> None:
        for u, message in messages.items():
            self.clients[u].put(self.name(attempt, f"{kind}/{u}"), message)

    def read(self, attempt: int, kind: str, of: Iterable[int]) -> dict[int, bytes]:
        return {u: self.get(attempt, f"{kind}/{u}") for u in of}

    def standing(self, u: int = 1) -> dict[str, Any]:
        return self.clients[u].get_json(f"/v1/federations/{CONFIG}")

    # --- an attempt, in three parts

    def agree(self, attempt: int, sites: Iterable[int]) -> None:
        """M1 and M2."""
        m0 = self.get(attempt, "M0")
        shapes = ((32, self.lanes),)
        own = Expected(bytes.fromhex(CONFIG), LAYOUT, "train", self.round_, STATE, shapes, STATE, frozenset([STATE]))
        self.machines = {u: self.new(u) for u in sites}
        self.send(attempt, "M1", {u: m.receive_proposal(m0, own) for u, m in self.machines.items()})
        self.get(attempt, "U1")
        m1 = self.read(attempt, "M1", self.machines)
        self.send(attempt, "M2", {u: m.receive_keys(m1) for u, m in self.machines.items()})
        self.get(attempt, "U2")

    def upload(self, attempt: int, sites: Iterable[int], vectors: dict[int, bytearray]) -> None:
        """M3v and M3."""
        m2 = self.read(attempt, "M2", self.machines)
        self.vectors = vectors
        for u in sites:
            machine = self.machines[u]
            machine.receive_shares(m2)
            machine.begin_masking(bytes(32))
            self.clients[u].put(self.name(attempt, f"M3v/{u}"), vectors[u])
            m3 = machine.masked(SHA256.tree(bytes(vectors[u])), tag_from_bytes(bytes(TAG_BYTES)))
            self.send(attempt, "M3", {u: m3})

    def finish(self, attempt: int, sites: Iterable[int]) -> None:
        """M4, M5 and M6. What stands in M6 is made up: nobody here opens the sum."""
        sites = list(sites)
        m4r = self.get(attempt, "M4r")
        m3 = self.read(attempt, "M3", sites)
        m4 = {u: self.machines[u].receive_survivors(m4r, m3) for u in sites}
        self.send(attempt, "M4", m4)
        self.send(attempt, "M5", {u: self.machines[u].receive_signatures(m4) for u in sites})
        self.send(attempt, "M6", {u: self.result(u) for u in sites})

    def result(self, u: int) -> bytes:
        machine = self.machines[u]
        body = {"state": "33" * 32, "sum": "44" * 32, "u3": list(machine.u3)}
        return machine._sign_once("M6", machine._t3, body)

    def play(self, attempt: int = 1, sites: Iterable[int] = ()) -> None:
        """A whole attempt with small vectors of noise, up to DONE."""
        sites = list(sites or self.numbers)
        self.agree(attempt, sites)
        self.upload(attempt, sites, {u: bytearray(hashlib.shake_128(bytes([u])).digest(4 * self.lanes)) for u in sites})
        self.finish(attempt, sites)
        self.get(0, "DONE")
