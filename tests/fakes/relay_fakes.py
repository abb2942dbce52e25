"""A coordinator over a real store, with a clock that tests turn, and sites that speak by hand or by SiteAttempt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secure_fakes import key_of

from fedhpc.cohort.settings import CohortSettings
from fedhpc.enrolment.certificates import Issued
from fedhpc.relay.metrics import Metrics
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.relay.rounds.round_threads import Coordinator
from fedhpc.relay.settings import HostedFederation, Roster, default_threshold
from fedhpc.relay.store.object_store import Quota, Store
from fedhpc.relay.store.upload import Upload
from fedhpc.secure.suite import SHA256, Suite
from fedhpc.secure.transcript import canon, parse_canon, sign_message
from fedhpc.wire import kinds
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName

CONFIG, OTHER = "ab" * 32, "cd" * 32
STATE, LAYOUT = "11" * 32, "22" * 32
TENSORS = [[32, 5], [64, 3]]  # with a gap
NBYTES = 56


def federation(sites: int = 4, config: str = CONFIG, suite: Suite = SHA256, **cohort: Any) -> HostedFederation:
    pins = {u: key_of("pin", config, u) for u in range(1, sites + 1)}
    return HostedFederation(
        config, pins, Quota(1 << 30, 10_000, sites), default_threshold(sites), CohortSettings(**cohort), suite
    )


class Relay:
    """A store and a coordinator without threads. `now` is its clock."""

    def __init__(self, folder: Path, *federations: HostedFederation) -> None:
        self.folder, self.federations = folder, federations or (federation(),)
        self.now = 1000.0
        self.open()

    def open(self) -> None:
        self.store = Store(self.folder)
        self.coordinator = Coordinator(self.store, Metrics(), lambda: self.now)
        self.coordinator.update(Roster({f.config: f for f in self.federations}))

    def restart(self) -> None:
        """Another process over the same disk."""
        self.store.close()
        self.open()

    def settle(self, config: str = CONFIG) -> float | None:
        return self.coordinator.settle(config)

    def later(self, seconds: float, alive: Iterable[int] = ()) -> float | None:
        """Time passes; sites in `alive` are heard of at its end."""
        self.now += seconds
        self.hear(alive)
        return self.settle()

    def hear(self, sites: Iterable[int], config: str = CONFIG) -> None:
        for u in sites:
            self.coordinator.heard(config, u)

    def get(self, path: str, config: str = CONFIG) -> Any:
        """A small object as JSON; None if it is not there."""
        stored = self.store.find(ObjectName.parse(f"{config}/{path}"))
        return None if stored is None else json.loads(stored.path.read_bytes())

    def raw(self, path: str, config: str = CONFIG) -> bytes:
        stored = self.store.find(ObjectName.parse(f"{config}/{path}"))
        assert stored is not None, path
        return stored.path.read_bytes()

    def names(self, config: str = CONFIG) -> set[str]:
        return {f"{s.name.round}/{s.name.attempt}/{s.name.name}" for s in self.store.of(config)}

    def put(self, path: str, data: bytes, config: str = CONFIG, *, checked: bool = True) -> None:
        """As a PUT does. Raises Problem. `checked` False: as if the gate had been passed before."""
        name = ObjectName.parse(f"{config}/{path}")
        if checked:
            self.coordinator.check_write(name, len(data), self.suite(config).tree(data))
        upload = self.begin(name, len(data))
        upload.declare_tree(self.suite(config).tree(data))
        for at in range(0, len(data), BLOCK_BYTES):
            upload.write_block(at // BLOCK_BYTES, memoryview(data)[at : at + BLOCK_BYTES])
        assert self.store.finish(upload)

    def begin(self, name: ObjectName, length: int) -> Upload:
        """As the first bytes of a PUT do. Raises Problem."""
        quota = next(f.quota for f in self.federations if f.config == name.config)
        return self.store.begin(name, length, quota, self.suite(name.config))

    def suite(self, config: str = CONFIG) -> Suite:
        return next(f.suite for f in self.federations if f.config == config)

    def status(self, config: str = CONFIG) -> dict[str, Any]:
        return self.coordinator.standing(config)

    def only_round(self) -> dict[str, Any]:
        (found,) = self.status()["sums"]
        return dict(found)


def ready(**changes: Any) -> bytes:
    """READY of a site."""
    own = {"base": STATE, "everyone": 0, "layout": LAYOUT, "purpose": "train", "state": STATE, "tensors": TENSORS}
    return canon(own | changes)


class Hand:
    """What well-behaved sites send in one attempt, made by hand; shares and tags are noise of the right length."""

    def __init__(self, relay: Relay, round_: int = 1, attempt: int = 1, config: str = CONFIG) -> None:
        self.relay, self.round_, self.attempt, self.config = relay, round_, attempt, config

    def at(self, name: str) -> str:
        return f"{self.round_}/{self.attempt}/{name}"

    def machine(self) -> RoundMachine:
        """The relay's own view, which knows the transcripts."""
        rounds = self.relay.coordinator._federations[self.config]
        return rounds.rounds[self.round_].attempts[self.attempt]

    def body(self, name: str, u: int) -> Any:
        machine = self.machine()
        if name == "M1":
            chan, mask = (key_of(kind, self.round_, self.attempt, u).hex() for kind in ("chan", "mask"))
            return {"chan": chan, "left_s": -1, "mask": mask}
        if name == "M2":
            u1 = machine.u1 or ()
            hashes = [key_of("hash", v).hex() for v in u1]
            sealed = ["" if v == u else "ab" * (96 + 16) for v in u1]
            return {"commit": "aa" * 32, "group": "bb" * 32, "hash_a": hashes, "hash_b": hashes, "sealed": sealed}
        if name == "M3":
            return {"tag": "cc" * 24, "vector": self.relay.suite(self.config).tree(self.vector(u)).hex()}
        if name == "M4":
            return {}
        if name == "M5":
            size = 32 * len(machine.u2 or ()) + 16
            return {"sealed": ["" if v == u else "dd" * size for v in machine.u3 or ()]}
        return {"state": "33" * 32, "sum": "44" * 32, "u3": list(machine.u3 or ())}

    def message(self, name: str, u: int, **changes: Any) -> bytes:
        kind = kinds.row(name)
        assert kind is not None
        t = self.machine()._transcript(kind)
        identity = Ed25519PrivateKey.from_private_bytes(key_of("identity", u))
        return sign_message(identity, name, u, t, self.body(name, u) | changes)

    def vector(self, u: int) -> bytes:
        return (key_of("vector", u) * 2)[:NBYTES]

    def send(self, name: str, *sites: int) -> None:
        for u in sites:
            if name == "M3v":
                self.relay.put(self.at(f"M3v/{u}"), self.vector(u), self.config)
            else:
                self.relay.put(self.at(f"{name}/{u}"), self.message(name, u), self.config)

    def vectors(self, *sites: int) -> None:
        for u in sites:
            self.send("M3v", u)
            self.send("M3", u)

    def play(self, *sites: int, upto: str = "M6") -> None:
        """All steps of an attempt over `sites`, with a settled relay after each; `upto` is the last one."""
        for name in ("M1", "M2", "M3", "M4", "M5", "M6"):
            self.relay.settle(self.config)
            if name == "M3":
                self.vectors(*sites)
            else:
                self.send(name, *sites)
            if name == upto:
                break
        self.relay.settle(self.config)

    def sum_over(self, *sites: int) -> bytes:
        total = np.zeros(NBYTES, np.uint8)
        for u in sites:
            vector = np.frombuffer(self.vector(u), np.uint8)
            total[:20].view("<u4")[:] += vector[:20].view("<u4")
            total[32:].view("<u8")[:] += vector[32:].view("<u8")
        return total.tobytes()


def all_ready(relay: Relay, *sites: int, round_: int = 1, config: str = CONFIG) -> None:
    for u in sites:
        relay.put(f"{round_}/0/READY/{u}", ready(), config)
    relay.settle(config)


__all__ = ["CONFIG", "Hand", "OTHER", "Relay", "all_ready", "federation", "parse_canon", "ready"]


def relay_toml(folder: Path, relay: Issued, authority: Issued) -> Path:
    """A relay's files in `folder`, without federations; its relay.toml."""
    relay.write(folder, "relay")
    (folder / "ca.pem").write_bytes(authority.certificate)
    (folder / "roster.toml").write_text("")
    text = '[relay]\nlisten = "127.0.0.1:0"\nstore = "store"\nroster = "roster.toml"\ncertificate = "relay.pem"\n'
    (folder / "relay.toml").write_text(f'{text}key = "relay.key"\nclient_authorities = ["ca.pem"]\n')
    return folder / "relay.toml"
