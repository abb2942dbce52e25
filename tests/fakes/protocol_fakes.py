"""Sites, a relay and their disks in memory: everything dies and comes back when a test says so."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secure_fakes import key_of

from fedhpc.errors import PeersError, PolicyError
from fedhpc.relay.rounds.attempt_objects import put_once
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.secure import messages
from fedhpc.secure.attempt import Expected, SiteAttempt
from fedhpc.secure.attempt_file import from_private
from fedhpc.secure.ledger import LedgerEntry, RoundLedger
from fedhpc.secure.masks import Masks
from fedhpc.secure.pairwise import Member
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.ring import Layout, Tensor, lanes_of
from fedhpc.secure.suite import SHA256
from fedhpc.secure.tag import Tagger
from fedhpc.secure.thresholds import Thresholds, choose_thresholds
from fedhpc.secure.transcript import parse_canon
from fedhpc.wire import kinds

LAYOUT = Layout(
    [
        Tensor("w", "float32", (5,), 20),  # a gap of 12 bytes
        Tensor("n", "int64", (3,)),
        Tensor("b", "float32", (3, 3), 20),
        Tensor("loss", "float64", (2,), 30),
    ]
)


class Crash(BaseException):
    """A process dies here: nothing may catch it but the test."""


class Disk:
    """A site's disk. `trap(kind)` is called before and after every write and may raise Crash."""

    def __init__(self) -> None:
        self.ledger = RoundLedger()
        self.private: bytes | None = None
        self.trap: Callable[[str], None] = lambda when: None
        self.entries: list[LedgerEntry] = []  # of the ledger, as they were added

    def allows(self, entry: LedgerEntry) -> None:
        self.ledger.check(entry)

    def admit(self, entry: LedgerEntry) -> None:
        self.trap("before")
        if self.ledger.check(entry):
            self.ledger.add(entry)
            self.entries.append(entry)
        self.trap("after")

    def save(self, private: bytes) -> None:
        self.trap("before")
        self.private = private
        self.trap("after")


class Memory:
    """The relay's objects of one attempt."""

    suite = SHA256

    def __init__(self) -> None:
        self.small: dict[str, bytes] = {}
        self.large: dict[str, bytearray] = {}
        self.trees: dict[str, bytes] = {}  # of vectors, as they came
        self.kept = b""
        self.trap: Callable[[str, str], None] = lambda when, name: None
        self.largest_read = 0

    def get(self, name: str) -> bytes | None:
        return self.small.get(name)

    def put(self, name: str, data: bytes) -> None:
        self.trap("before", name)
        self.small[name] = bytes(data)
        self.trap("after", name)

    def names(self) -> list[str]:
        return [*self.small, *self.large]

    def size(self, name: str) -> int:
        return len(self.large.get(name, b""))

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        self.largest_read = max(self.largest_read, len(view))
        view[:] = self.large[name][offset : offset + len(view)]

    def tree(self, name: str) -> bytes:
        return self.trees.get(name) or self.suite.tree(bytes(self.large.get(name, b"")))

    def make(self, name: str, length: int) -> None:
        """See relay.objects."""

    def read_made(self, name: str, offset: int, view: memoryview) -> None:
        self.read_into(name, offset, view)

    def unmake(self, name: str) -> None:
        """What was written of a sum stays: nobody looks at it before `keep`."""

    def keep(self, name: str, tree: bytes) -> None:
        self.trap("before", "keep")
        self.kept = tree
        self.trap("after", "keep")

    def write(self, name: str, offset: int, data: Any) -> None:
        self.trap("before", name)
        held = self.large.setdefault(name, bytearray())
        assert offset <= len(held)
        raw = bytes(data)
        half = len(raw) // 2
        held[offset : offset + half] = raw[:half]
        self.trap("during", name)
        held[offset + half : offset + len(raw)] = raw[half:]
        self.trap("after", name)


class FakeRelay(RoundMachine):
    """The relay's machine with its door: what arrives is checked as the real relay does, and sites may read."""

    _objects: Memory

    def put(self, name: str, u: int, data: bytes) -> None:
        messages.read_envelope(data, name, u, self._sites)
        self.check_open(name, u)
        put_once(self._objects, f"{name}/{u}", data)

    def put_vector(self, u: int, offset: int, data: bytes) -> int:
        """Bytes of a vector, in order and perhaps again; how many are there."""
        self.check_open("M3v", u)
        name = f"M3v/{u}"
        there = self._objects.size(name)
        assert 0 <= offset <= there
        if there < offset + len(data):
            self._objects.trees.pop(name, None)  # a relay that dies here finds it by the bytes
            self._objects.write(name, there, memoryview(data[there - offset :]))
            self._objects.trees[name] = self._objects.suite.tree(bytes(self._objects.large[name]))
        return self._objects.size(name)

    def messages(self, name: str) -> dict[int, bytes]:
        """What sites see of a kind: of the set, once it was formed; M4, M5 and M6 as they come."""
        kind = kinds.row(name)
        assert kind is not None
        found = self.set_of(kind.forms) if kind in kinds.FORMING else tuple(self._senders(kind))
        if found is None:
            raise PeersError(f"the set of {name} is still open")
        return {u: self._objects.small[f"{name}/{u}"] for u in found}

    @property
    def m0(self) -> bytes | None:
        return self._objects.get("M0")

    @property
    def m4r(self) -> bytes | None:
        return self._objects.get("M4r")

    def y(self) -> bytes:
        assert self.survivors is not None
        return bytes(self._objects.large.get(kinds.Y.name, b""))


def lanes_at_random(layout: Layout, site: int, seed: object, sites: int) -> np.ndarray[Any, Any]:
    """An encoded vector within the lane bound: what a Codec would make."""
    buffer = np.zeros(layout.nbytes, dtype=np.uint8)
    for piece in layout.pieces(0, layout.nbytes):
        raw = hashlib.shake_256(repr((site, seed, piece.start)).encode()).digest(piece.stop - piece.start)
        lanes = buffer[piece.start : piece.stop].view(f"<i{piece.tensor.lane_bytes}")
        bound = ((1 << (piece.tensor.bits - 1)) - 1) // sites
        values = np.frombuffer(raw, dtype=lanes.dtype)
        lanes[:] = [int(v) % (2 * bound + 1) - bound for v in values]
        if lanes.size:
            lanes[0] = bound if site % 2 else -bound
    return buffer


@dataclass
class World:
    """N sites of one federation, in one round."""

    sites: int
    degree: int = 0
    layout: Layout = field(default_factory=lambda: LAYOUT)
    round_: int = 7
    purpose: str = "train"
    thresholds: Thresholds = field(init=False)
    draw: Callable[[int], Callable[[int], bytes]] | None = None  # site -> its fixed randomness

    def __post_init__(self) -> None:
        numbers = range(1, self.sites + 1)
        self.thresholds = choose_thresholds(self.sites, accept_two_sites=True)
        self.identities = {u: Ed25519PrivateKey.from_private_bytes(key_of("identity", u)) for u in numbers}
        self.roster = [Member(u, f"site-{u}", k.public_key()) for u, k in self.identities.items()]
        self.disks = {u: Disk() for u in numbers}
        self.state = key_of("state", self.round_)
        self.plain = {u: lanes_at_random(self.layout, u, self.round_, self.sites) for u in numbers}
        self.attempts: list[Attempt] = []

    @property
    def tau(self) -> int:
        return self.thresholds.threshold

    @property
    def numbers(self) -> list[int]:
        return list(self.identities)

    def expected(self, **changes: Any) -> Expected:
        fields: dict[str, Any] = {
            "config": key_of("config"),
            "layout": self.layout.hash,
            "purpose": self.purpose,
            "round_": self.round_,
            "state": self.state,
            "tensors": tuple((b, n) for b, n in self.layout.shapes()),
            "base": self.state,
            "bases": frozenset([self.state]),
        }
        return Expected(**(fields | changes))

    def proposal(self, attempt: int, members: Iterable[int], **changes: Any) -> bytes:
        own = self.expected()
        fields: dict[str, Any] = {
            "attempt": attempt,
            "cohort": tuple((u, own.base) for u in sorted(members)),
            "config": own.config,
            "layout": own.layout,
            "purpose": own.purpose,
            "round_": own.round_,
            "state": own.state,
            "tensors": own.tensors,
        }
        return Proposal(**(fields | changes)).to_bytes()

    def attempt(self, cohort: Iterable[int] | None = None) -> Attempt:
        made = Attempt(self, len(self.attempts) + 1, sorted(cohort or self.numbers))
        self.attempts.append(made)
        return made

    def sum_over(self, u3: Iterable[int], plain: dict[int, Any] | None = None) -> bytes:
        """The plain integer sum, lane by lane, with Python's integers."""
        vectors = plain or self.plain
        total = np.zeros(self.layout.nbytes, dtype=np.uint8)
        for piece in self.layout.pieces(0, self.layout.nbytes):
            dtype = f"<i{piece.tensor.lane_bytes}"
            columns = zip(*(vectors[u][piece.start : piece.stop].view(dtype).tolist() for u in u3), strict=True)
            total[piece.start : piece.stop].view(dtype)[:] = [sum(c) for c in columns]
        return total.tobytes()

    def next_state(self, x: bytes) -> bytes:
        return hashlib.sha256(self.state + x).digest()


class Site:
    """One site's process in one attempt; `SiteAttempt` with a rank that masks."""

    def __init__(self, attempt: Attempt, u: int, *, restarted: bool = False) -> None:
        world = attempt.world
        self.world, self.attempt, self.u = world, attempt, u
        self.disk = world.disks[u]
        stored = None
        if restarted and self.disk.private is not None:
            stored = from_private(self.disk.private)
            if stored.m0 != attempt.m0:
                stored = None
        draw = {} if world.draw is None else {"draw": world.draw(u)}
        self.machine = SiteAttempt(
            u,
            world.identities[u],
            world.roster,
            world.thresholds,
            self.disk,
            degree=world.degree,
            stored=stored,
            **draw,
        )
        self.x: bytes | None = None
        self.y = b""

    def mask(self) -> tuple[bytes, bytes]:
        """M3 and y."""
        world, layout = self.world, self.world.layout
        buffer = world.plain[self.u].copy()
        plan = self.machine.begin_masking(hashlib.sha256(b"key" + buffer.tobytes()).digest())
        pieces = layout.pieces(0, layout.nbytes)
        tag = Tagger(plan.tag_key).of(buffer, pieces)
        apply(layout, buffer, plan.streams)
        return self.machine.masked(SHA256.tree(buffer), tag), buffer.tobytes()

    def open(self, m5s: dict[int, bytes], y: bytes) -> bytes:
        """X, after the tag was checked."""
        layout = self.world.layout
        opening = self.machine.receive_answers(m5s)
        buffer = np.frombuffer(y, dtype=np.uint8).copy()
        apply(layout, buffer, opening.streams)
        tag = Tagger(opening.tag_key).of(buffer, layout.pieces(0, layout.nbytes))
        self.machine.check_sum(SHA256.tree(y), tag)
        return buffer.tobytes()


def apply(layout: Layout, buffer: np.ndarray[Any, Any], streams: tuple[tuple[bytes, int], ...]) -> None:
    masks = Masks(streams)
    for piece in layout.pieces(0, layout.nbytes):
        masks.add(lanes_of(buffer, piece.start, piece.stop, piece.tensor.bits), piece.start)


STEPS = ("M1", "M2", "M3", "M3v", "M4", "M5", "M6")


class Attempt:
    """One attempt: who is there, and a driver that plays it message by message."""

    def __init__(self, world: World, number: int, cohort: list[int]) -> None:
        self.world, self.number, self.cohort = world, number, cohort
        self.m0 = world.proposal(number, cohort)
        self.round_ = world.round_
        self.objects = Memory()
        self.relay = self.new_relay()
        self.live: dict[int, Site] = {u: Site(self, u) for u in cohort}
        self.hook: Callable[[str, str, int], None] = lambda step, when, u: None
        """Called with step, before/after, site: may crash that site."""
        self.around_relay: Callable[[str], None] = lambda step: None
        self.comeback: Callable[[str, int, Callable[[Site], None]], None] | None = None
        """Called with step, site and what it was doing, after it died: may bring it back."""
        self.opened: dict[int, bytes] = {}
        self.lies: Callable[[str, int, Any], Any] = lambda name, u, truth: truth
        """A hostile relay: what it shows of an object to a site."""
        self.hostile = False
        self.refused: dict[int, tuple[str, str]] = {}  # site -> step and error, where hostile

    def new_relay(self) -> FakeRelay:
        return FakeRelay(self.objects, self.world.sites, self.world.tau)

    def each(self, step: str, act: Callable[[Site], None], among: Iterable[int] | None = None) -> None:
        """Let every living site of a set make a step; one that crashes is gone."""
        for u in list(self.live if among is None else among):
            site = self.live.get(u)
            if site is None:
                continue
            try:
                self.hook(step, "before", u)
                act(site)
                self.hook(step, "after", u)
            except PolicyError as error:
                if not self.hostile:
                    raise
                self.live.pop(u, None)
                self.refused[u] = (step, error.what)
            except Crash:
                self.live.pop(u, None)
                if self.comeback is not None:
                    self.comeback(step, u, act)

    def to_relay(self, step: str, call: Callable[[FakeRelay], Any]) -> Any:
        """Call the relay; if it dies, start it from its objects and let the caller repeat, as a site would."""
        try:
            return call(self.relay)
        except Crash:
            self.objects.trap = lambda when, name: None
            self.relay = self.new_relay()
            return call(self.relay)

    def send(self, site: Site, name: str, message: bytes) -> None:
        self.hook(name, "saved", site.u)
        self.to_relay(name, lambda relay: relay.put(name, site.u, message))

    def replay(self, site: Site, upto: str) -> None:
        """Bring a restarted site up to a step from what the relay has."""
        steps = {
            "M1": lambda: site.machine.receive_proposal(self.m0, self.world.expected()),
            "M2": lambda: site.machine.receive_keys(self.relay.messages("M1")),
            "M3": lambda: (site.machine.receive_shares(self.relay.messages("M2")), site.mask()),
            "M4": lambda: site.machine.receive_survivors(self.relay.m4r, self.relay.messages("M3")),
            "M5": lambda: site.machine.receive_signatures(self.relay.messages("M4")),
        }
        for name, step in steps.items():
            if name == upto:
                return
            step()

    def run(self, stop: str = "") -> dict[int, bytes]:
        """Play the attempt, until before a step if asked; X by site. Raises PeersError where too few are left."""
        for step, act in self._plan():
            if step == stop:
                return {}
            act()
        if not self.opened:
            raise PeersError("nobody could open the sum")
        return self.opened

    def go_on(self, start: str) -> dict[int, bytes]:
        """The rest of an attempt that was stopped before `start`."""
        steps = self._plan()
        with contextlib.suppress(PeersError if self.hostile else ()):
            for _, act in steps[[name for name, _ in steps].index(start) :]:
                act()
        return self.opened

    def _plan(self) -> list[tuple[str, Callable[[], Any]]]:
        return [
            ("M0", lambda: self.to_relay("M0", lambda relay: relay.propose(self.m0))),
            ("M1", lambda: self.each("M1", self._m1)),
            ("U1", lambda: self.to_relay("U1", lambda relay: relay.close_keys())),
            ("M2", lambda: self.each("M2", self._m2, self.relay.u1)),
            ("U2", lambda: self.to_relay("U2", lambda relay: relay.close_shares())),
            ("M3", lambda: self.each("M3", self._m3, self.relay.u2)),
            ("M3v", lambda: self.each("M3v", self._m3v, self.relay.u2)),
            ("M4r", lambda: self.to_relay("M4r", lambda relay: relay.close_masked())),
            ("M4", lambda: self.each("M4", self._m4, self.relay.u3)),
            ("M5", lambda: self.each("M5", self._m5, self.relay.u3)),
            ("M6", lambda: self.each("M6", self._m6, self.relay.u3)),
        ]

    def told(self, name: str, site: Site) -> Any:
        """What the relay tells a site: the truth, or what `lies` makes of it."""
        if name == "M0":
            truth: Any = self.relay.m0
        elif name == "M4r":
            truth = self.relay.m4r
        elif name == "Y":
            truth = self.relay.y()
        else:
            truth = self.relay.messages(name)
        return self.lies(name, site.u, truth)

    def _m1(self, site: Site) -> None:
        self.send(site, "M1", site.machine.receive_proposal(self.told("M0", site), self.world.expected()))

    def _m2(self, site: Site) -> None:
        self.send(site, "M2", site.machine.receive_keys(self.told("M1", site)))

    def _m3(self, site: Site) -> None:
        site.machine.receive_shares(self.told("M2", site))
        m3, site.y = site.mask()
        self.send(site, "M3", m3)

    def _m3v(self, site: Site) -> None:
        half = len(site.y) // 2
        self.to_relay("M3v", lambda relay: relay.put_vector(site.u, 0, site.y[:half]))
        self.hook("M3v", "during", site.u)
        self.to_relay("M3v", lambda relay: relay.put_vector(site.u, 0, site.y))

    def _m4(self, site: Site) -> None:
        message = site.machine.receive_survivors(self.told("M4r", site), self.told("M3", site))
        self.send(site, "M4", message)

    def _m5(self, site: Site) -> None:
        try:
            m5 = site.machine.receive_signatures(self.told("M4", site))
        except PeersError:
            return
        self.send(site, "M5", m5)

    def _m6(self, site: Site) -> None:
        if "M5" not in site.machine._secrets.sent:
            return
        try:
            x = site.open(self.told("M5", site), self.told("Y", site))
        except PeersError:
            return
        m6 = site.machine.result(self.world.next_state(x), b"")
        site.x = self.opened[site.u] = x
        self.send(site, "M6", m6)


def audit(world: World) -> None:
    """No set that the ledger forbids could have been opened by the relay with any t sites."""
    opened = set()
    ledgers = {u: disk.ledger.entry_of(world.round_) for u, disk in world.disks.items()}
    for attempt in world.attempts:
        if attempt.round_ != world.round_:
            continue
        answered: dict[str, set[int]] = {}
        for u, message in attempt.relay.messages("M5").items():
            answered.setdefault(parse_canon(message)["t"], set()).add(u)
        for senders in answered.values():
            sets = {ledgers[u].cohort for u in senders if ledgers[u] is not None}
            assert len(sets) == 1
            if len(senders) >= world.tau - world.thresholds.colluders:
                opened |= sets
    assert len(opened) <= 1
    for entry in ledgers.values():
        assert entry is None or entry.cohort == () or not opened or entry.cohort in opened
