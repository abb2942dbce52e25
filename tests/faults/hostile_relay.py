"""A relay with the real TLS key that lies: `hostile_relay.main([RELAY_FILE, ATTACK])`, a name of LIES or DEEDS.

It is the real server; what it shows to a site of the objects of one round goes through a lie first. A lie gets the
object's name, the site that asks and the true bytes, and gives other bytes, or None to hide the object. A deed changes
what the relay does itself. Both are about attempts of round ROUND, all other rounds are honest.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import relayed_relay
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from relayed_site import PLAN

from fedhpc.exchange.objects import ObjectName
from fedhpc.relay import federation_rounds, gate, round_machine, routes
from fedhpc.relay.one_round import phase_of
from fedhpc.relay.store import Store, Stored
from fedhpc.secure.transcript import canon, parse_canon, sign_message, tree

ROUND = 2
OTHER = "77" * 32
Lie = Callable[[ObjectName, int, bytes, Store], bytes | None]


class LyingStore:
    """The store as the relay shows it; `asks.site` is who asks, in this thread."""

    asks = threading.local()

    def __init__(self, store: Store, lie: Lie) -> None:
        self._store, self._lie = store, lie
        self._forgeries: dict[tuple[ObjectName, bytes], Stored] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="lies"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def find(self, name: ObjectName) -> Stored | None:
        return self._shown(self._store.find(name))

    def list(self, attempt: Any, after: int = 0) -> list[Stored]:
        return [shown for stored in self._store.list(attempt, after) if (shown := self._shown(stored)) is not None]

    def _shown(self, stored: Stored | None) -> Stored | None:
        site = getattr(self.asks, "site", 0)
        if stored is None or stored.name.kind == "M3v" or not site:
            return stored
        try:
            truth = stored.path.read_bytes()
        except FileNotFoundError:  # cleaned up meanwhile
            return stored
        told = self._lie(stored.name, site, truth, self._store)
        return stored if told == truth else None if told is None else self._forged(stored, told)

    def _forged(self, stored: Stored, data: bytes) -> Stored:
        key = (stored.name, tree(data))
        if key not in self._forgeries:
            handle, path = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            self._forgeries[key] = replace(stored, length=len(data), tree=key[1], path=Path(path))
        return self._forgeries[key]


def tell(lie: Lie) -> None:
    """From now on `lie` stands between the store and who asks."""
    for name in ("_get", "_list"):
        real = getattr(routes.Routes, name)

        def asked(self: Any, connection: Any, head: Any, what: Any, site: int, pin: bytes, real: Any = real) -> Any:
            LyingStore.asks.site = site
            if not isinstance(self._store, LyingStore):
                self._store = LyingStore(self._store, lie)
            return real(self, connection, head, what, site, pin)

        setattr(routes.Routes, name, asked)


# --- lies


def about(what: str, change: Callable[[bytes], bytes | None], *sites: int, attempt: int = 0) -> Lie:
    """Change the object called `what` for these sites, or all."""

    def lie(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
        here = (name.round, name.name) == (ROUND, what) and attempt in (0, name.attempt)
        return change(truth) if here and (not sites or site in sites) else truth

    return lie


def all_of(*lies: Lie) -> Lie:
    def lie(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
        told: bytes | None = truth
        for one in lies:
            told = None if told is None else one(name, site, told, store)
        return told

    return lie


def with_fields(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda data: canon(parse_canon(data) | fields)


def with_body(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda data: canon((value := parse_canon(data)) | {"body": value["body"] | fields})


def from_round_one(kind: str, owner: int = 0) -> Lie:
    """Messages of the round before, in place of those of this one; its own to nobody but the others."""

    def lie(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
        if name.round != ROUND or name.kind != kind or name.attempt != 1 or owner not in (0, name.owner):
            return truth
        if site == name.owner:
            return truth
        old = store.find(replace(name, round=1))
        assert old is not None
        return old.path.read_bytes()

    return lie


def sum_changed(change: Callable[[bytes], bytes], *, signed: bool) -> Lie:
    """Another sum; `signed`: hashed after the change, so that all sites sign it. Else only site 2 gets it."""

    def lie(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
        if name.round != ROUND or name.name not in ("Y", "M4r") or not (signed or (site, name.name) == (2, "Y")):
            return truth
        if name.name == "Y":
            return change(truth)
        total = store.find(replace(name, name="Y"))
        assert total is not None
        return with_fields(sum=tree(change(total.path.read_bytes())).hex())(truth)

    return lie


def flip(at: int, bit: int = 0) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


_WIDE = -(-PLAN[1][1](1, 0)["x"].nbytes // 16) * 16  # where the 64-bit lanes begin
_MIB = 1 << 20
CHANGES = {
    "a bit": flip(5, 3),
    "the top bit of a 32-bit lane": flip(3, 7),
    "the top bit of a 64-bit lane": flip(_WIDE + 7, 7),
    "a dropped chunk": lambda y: bytes(_MIB) + y[_MIB:],
    "swapped chunks": lambda y: y[_MIB : 2 * _MIB] + y[:_MIB] + y[2 * _MIB :],
}
PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."


def hide(kind: str, attempt: int = 1) -> Lie:
    return lambda name, site, truth, store: (
        None if (name.round, name.kind, name.attempt) == (ROUND, kind, attempt) and site != name.owner else truth
    )


_ZEROS = "00" * 32


def cohort_of(*sites: int, bases: dict[int, str] | None = None) -> Callable[[bytes], bytes]:
    return with_fields(cohort=[[u, (bases or {}).get(u, _ZEROS)] for u in sites])


def second_survivors(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
    """Once site 2 has signed M4 over all sites, it is shown a set without site 4, with the M3 of that set."""
    signed = store.find(replace(name, name="M4/2")) is not None
    if (name.round, name.attempt, name.name, site, signed) == (ROUND, 1, "M4r", 2, True):
        return with_fields(u3=[1, 2, 3], sum=OTHER)(truth)
    return None if (name.round, name.kind) == (ROUND, "M4") and site != name.owner else truth


def another_configuration(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
    """In place of site 3's signature one that it gave for another federation.toml."""
    if (name.round, name.name) != (0, "CONFIG/3"):
        return truth
    identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(Path(os.environ["FEDHPC_TEST_KEY"]).read_text()))
    return sign_message(identity, "CONFIG", 3, bytes.fromhex(OTHER), {})


LIES: dict[str, Lie] = {
    "survivors doubled": about("M4r", with_fields(u3=[1, 2, 2, 3])),
    "survivors with a stranger": about("M4r", with_fields(u3=[1, 2, 3, 9])),
    "survivors too few": about("M4r", with_fields(u3=[1, 2]), 1, 2),
    "survivors changed": second_survivors,
    "survivors split": about("M4r", with_fields(u3=[2, 3, 4], sum=OTHER), 3, 4, attempt=1),
    **{
        f"M0 {field}": about("M0", with_fields(**{field: value}), 2)
        for field, value in (
            ("config", OTHER),
            ("layout", OTHER),
            ("purpose", "weights"),
            ("round", 3),
            ("state", OTHER),
            ("tensors", [[64, 3]]),
        )
    },
    "M0 attempt": about("M0", with_fields(attempt=99), 2),
    "cohort too small": about("M0", cohort_of(3, 4), 4),
    "base unknown": about("M0", cohort_of(1, 2, 3, 4, bases={3: OTHER})),
    **{f"replayed {kind}": from_round_one(kind, 3) for kind in ("M1", "M2", "M3")},
    **{f"all replayed {kind}": from_round_one(kind) for kind in ("M4", "M5")},
    "key chan": about("M1/3", with_body(chan=OTHER), 1, 2, 4),
    "key mask": about("M1/3", with_body(mask=OTHER), 1, 2, 4),
    "U1 too small": about("U1", lambda _: canon([1, 2]), 1, 2),
    "U2 too small": about("U2", lambda _: canon([1, 2]), 1, 2),
    "U2 another": about("U2", lambda _: canon([1, 2, 3]), 2),
    "U2 beyond U1": about("U1", lambda _: canon([1, 2, 3]), 1),
    "a pickle": about("M1/3", lambda _: PICKLE, 1, 2, 4),
    "a torn message": about("M2/3", lambda data: data[:-7], 1, 2, 4),
    "messages dropped": hide("M4"),
    "second set": hide("M6"),
    "another configuration": another_configuration,
    "a sum of another length": about("Y", lambda y: y + bytes(16), 2),
    "another sum for one": about("M4r", with_fields(sum=OTHER), 2),
    "not all of all": about("M4r", with_fields(u3=[1, 2, 3])),
    **{f"signed sum: {name}": sum_changed(change, signed=True) for name, change in CHANGES.items()},
    **{f"served sum: {name}": sum_changed(change, signed=False) for name, change in CHANGES.items()},
}


# --- deeds


def count_everything() -> None:
    """Messages count that an honest relay would take for absent, so that it is the sites that must find them."""

    def check(self: Any, name: str, u: int, data: bytes) -> None:
        if name == "M6":
            self._results[u] = canon(parse_canon(data)["body"])

    round_machine.RoundMachine._check = check  # type: ignore[method-assign]
    real = gate._check_message
    gate._check_message = lambda round_, name, length: None if name.attempt else real(round_, name, length)


def open_again() -> None:
    """Rounds end in the relay's own time: it gives up an attempt whose answers are there, and proposes other sets."""
    sets = [[1, 2, 3], [1, 2, 4]]
    real_drive, real_propose = federation_rounds.FederationRounds._drive, federation_rounds.FederationRounds._propose
    real_settled = round_machine.RoundMachine.settled

    def settled(self: Any) -> Any:
        return real_settled(self) if self.proposed.round_ != ROUND else None

    def drive(self: Any, round_: Any, machine: Any, now: float) -> Any:
        sums = len(machine.there("M6")) if round_.number == ROUND else 0
        if sums >= 3 and phase_of(machine, self.federation.threshold) == "results":
            self._give_up(round_, "the relay wants another set")
            return now
        return real_drive(self, round_, machine, now)

    def propose(self: Any, round_: Any, now: float) -> Any:
        if round_.number != ROUND or not round_.last:
            return real_propose(self, round_, now)
        if round_.last <= len(sets):
            number = round_.last + 1
            first = parse_canon(self._objects(round_.number, 1).get("M0"))
            m0 = canon(first | {"attempt": number, "cohort": [[u, _ZEROS] for u in sets[round_.last - 1]]})
            self._machine(round_.number, number).propose(m0)
        return None

    federation_rounds.FederationRounds._drive = drive  # type: ignore[method-assign]
    federation_rounds.FederationRounds._propose = propose  # type: ignore[method-assign]
    round_machine.RoundMachine.settled = settled  # type: ignore[method-assign]


def alter_a_vector() -> None:
    """A byte of site 3's vector is another one on the relay's disk before the vectors are added."""
    real = round_machine.sum_vectors

    def added(objects: Any, names: Sequence[str], tensors: Any) -> bytes:
        if objects._attempt[1] == ROUND:
            path = objects._store.path(ObjectName(*objects._attempt, "M3v/3"))
            data = bytearray(path.read_bytes())
            data[40] ^= 1
            path.write_bytes(data)
        return real(objects, names, tensors)

    round_machine.sum_vectors = added


def take_late_vectors() -> None:
    """What comes after a set was closed is kept all the same."""
    gate._check_message = lambda round_, name, length: None


DEEDS: dict[str, Callable[[], None]] = {
    "M0 attempt": count_everything,
    "U2 another": count_everything,
    "U2 beyond U1": count_everything,
    "second set": open_again,
    "counts everything": count_everything,
    "a vector altered": alter_a_vector,
    "late vector": take_late_vectors,
}


def main(words: Sequence[str]) -> int:
    file, attack = words
    assert attack in LIES or attack in DEEDS, attack
    if attack in LIES:
        tell(LIES[attack])
    if attack in DEEDS:
        DEEDS[attack]()
    return relayed_relay.main([file, ""])
