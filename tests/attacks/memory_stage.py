"""The stage in memory: sites are their machines (secure/attempt.py) over disks that last, without I/O or threads.

A site is a generator: it goes on as far as what it is shown lets it, and yields where it has to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from attack_stage import ALL, Change, Stage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from protocol_fakes import Memory, Site, World
from typing_extensions import override

from fedhpc.errors import FedhpcError, PeersError
from fedhpc.relay.rounds.attempt_objects import put_once
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.secure import messages
from fedhpc.secure.attempt_file import from_private
from fedhpc.secure.pairwise import Member
from fedhpc.secure.results import RoundResults
from fedhpc.secure.ring import Layout, Tensor

T = TypeVar("T")
Wait = Generator[None, None, T]
SCALE = 20  # float32: steps of 2^-20


class _GivenUp(Exception):
    """The attempt is over for this site, and the next one is waited for."""


@dataclass
class _Attempt:
    """What a machine is made for."""

    world: World
    m0: bytes


class MemorySite:
    """One site from its start to its end."""

    def __init__(self, stage: MemoryStage, number: int, dies: str, upload: Change | None) -> None:
        self.number, self.got = number, 0.0
        self.error: BaseException | None = None
        self.alive = True
        self.site: Site | None = None
        self._stage, self._dies, self._upload = stage, dies, upload
        self._attempt = 0
        self._life = self._live()

    def go_on(self) -> None:
        """As far as it can now."""
        try:
            next(self._life)
        except StopIteration:
            self.alive = False
        except (FedhpcError, ConnectionAbortedError) as error:
            self.alive, self.error = False, error

    def _live(self) -> Wait[None]:
        while True:
            self._attempt = yield from self._until(self._next_attempt, within=False)
            try:
                yield from self._go_through()
            except _GivenUp:
                continue
            return

    def _next_attempt(self) -> int | None:
        """The newest attempt in whose cohort it is. Like the loop over TLS it asks its machine about no other."""
        found = self._stage.attempts()
        newest = max(found, default=0)
        return newest if newest > self._attempt and self.number in self._stage.machine(newest).members else None

    def _go_through(self) -> Wait[None]:
        world = self._stage.world
        m0 = yield from self._object("M0")
        self.site = site = Site(_Attempt(world, m0), self.number, restarted=True)  # type: ignore[arg-type]
        machine = site.machine
        self._put("M1", machine.receive_proposal(m0, world.expected()))
        self._put("M2", machine.receive_keys((yield from self._set("U1", "M1"))))
        machine.receive_shares((yield from self._set("U2", "M2")))
        m3, y = site.mask()
        told = y if self._upload is None else self._upload(y)
        assert told is not None
        self._here.large[f"M3v/{self.number}"] = bytearray(told)
        self._here.trees[f"M3v/{self.number}"] = self._here.suite.tree(told)
        self._put("M3", m3)
        m4r = yield from self._object("M4r")
        u3 = messages.read_survivors(m4r, world.sites).u3
        if self.number not in {*u3, *(self._stage.machine(self._attempt).u3 or ())}:
            raise _GivenUp  # it was left out; a lie about that is its machine's business
        self._put("M4", machine.receive_survivors(m4r, (yield from self._messages("M3", u3))))
        self._put("M5", (yield from self._enough("M4", machine.receive_signatures, u3)))
        answers = yield from self._enough("M5", lambda m5s: (machine.receive_answers(m5s), m5s)[1], u3)
        x = site.open(answers, (yield from self._object("Y")))
        m6 = machine.result(world.next_state(x), b"")
        self._put("M6", m6)
        results = RoundResults(world.roster, world.thresholds, world.state)
        results.receive(m6)
        seen = {self.number}
        while results.settled() is None:
            new = yield from self._until(lambda: set(self._shown("M6")) - seen or None)
            for u in sorted(new):
                seen.add(u)
                try:
                    results.receive(self._shown("M6")[u])
                except FedhpcError as error:
                    machine.faults.append(str(error))
        self.got = self._stage.largest(x)

    # --- what it is shown

    @property
    def _here(self) -> Memory:
        return self._stage.objects(self._attempt)

    def _see(self, name: str) -> bytes | None:
        here = self._here
        truth = here.get(name) if name in here.small else bytes(here.large[name]) if name in here.large else None
        return None if truth is None else self._stage.shown(self.number, f"{self._attempt}/{name}", truth)

    def _shown(self, kind: str, among: Iterable[int] = ALL) -> dict[int, bytes]:
        found = {u: self._see(f"{kind}/{u}") for u in among}
        return {u: message for u, message in found.items() if message is not None}

    def _until(self, found: Callable[[], T | None], *, within: bool = True) -> Wait[T]:
        """What is found. `within` an attempt: raises _GivenUp where the relay has given that up before."""
        while True:
            value = found()
            if value is not None:
                return value
            if within and self._see("NEXT"):
                raise _GivenUp
            if self._stage.stopped:
                raise PeersError("the relay cannot be reached")
            yield

    def _object(self, name: str) -> Wait[bytes]:
        return (yield from self._until(lambda: self._see(name)))

    def _messages(self, kind: str, of: Iterable[int]) -> Wait[dict[int, bytes]]:
        of = list(of)
        return (yield from self._until(partial(self._at_least, len(of), kind, of)))

    def _set(self, name: str, kind: str) -> Wait[dict[int, bytes]]:
        sites = messages.read_sites((yield from self._object(name)), self._stage.world.sites, name)
        return (yield from self._messages(kind, sites))

    def _enough(self, kind: str, take: Callable[[dict[int, bytes]], T], u3: tuple[int, ...]) -> Wait[T]:
        others = [u for u in u3 if u != self.number]
        need = min(self._stage.world.tau - 1, len(others))
        while True:
            have = yield from self._until(partial(self._at_least, need, kind, others))
            try:
                return take(have)
            except PeersError:
                if len(have) == len(others):
                    raise
                need = len(have) + 1

    def _at_least(self, need: int, kind: str, of: list[int]) -> dict[int, bytes] | None:
        found = self._shown(kind, of)
        return found if len(found) >= need else None

    def _put(self, kind: str, message: bytes) -> None:
        if kind == self._dies:
            self._stage.died.add(self.number)
            raise ConnectionAbortedError
        put_once(self._here, f"{kind}/{self.number}", message)
        self._stage.writes += 1


class MemoryStage(Stage):
    """See the module. `round_`: the one that is played."""

    def __init__(self, round_: int = 1) -> None:
        super().__init__()
        self.world = World(len(ALL), round_=round_)
        self.world.roster = [Member(m.number, f"s{m.number}", m.sign) for m in self.world.roster]
        self.sites: dict[int, MemorySite] = {}
        self.stopped, self.writes = False, 0
        self.died: set[int] = set()
        self._objects: dict[int, Memory] = {}

    # --- the relay

    @override
    def objects(self, attempt: int, round_: int = 0) -> Memory:
        return self._objects.setdefault(attempt, Memory())

    @override
    def machine(self, attempt: int, round_: int = 0) -> RoundMachine:
        return RoundMachine(self.objects(attempt), self.world.sites, self.world.tau)

    @override
    def propose(self, attempt: int, cohort: Iterable[int] = (), round_: int = 0) -> None:
        self.machine(attempt).propose(self.world.proposal(attempt, tuple(cohort) or ALL))

    def attempts(self) -> list[int]:
        """Those that were proposed."""
        return [n for n, objects in self._objects.items() if "M0" in objects.small]

    @override
    def wait(self, attempt: int, kind: str, sites: Iterable[int], round_: int = 0) -> None:
        sites = tuple(sites)
        self._go_on(lambda: self.has(attempt, kind, sites))
        assert self.has(attempt, kind, sites), f"nobody is left who could send {kind}"

    def _go_on(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Let sites go on by turns until it is enough, or none of them moves."""
        moved = True
        while moved and not enough():
            before = (self.writes, sum(s.alive for s in self.sites.values()))
            for site in list(self.sites.values()):
                if site.alive:
                    site.go_on()
            moved = before != (self.writes, sum(s.alive for s in self.sites.values()))

    @override
    def overwrite(self, attempt: int, name: str, change: Callable[[bytes], bytes]) -> None:
        large = self.objects(attempt).large
        large[name] = bytearray(change(bytes(large[name])))

    @override
    def forget(self, attempt: int, name: str) -> None:
        del self.objects(attempt).small[name]

    @override
    def stop_relay(self) -> None:
        self._go_on()
        self.stopped = True

    # --- sites

    @override
    def start(self, *numbers: int, lanes: int = 5, values: dict[int, Any] | None = None, kind: type = np.int64,
              dies: dict[int, str] | None = None, uploads: dict[int, Change] | None = None,
              answers_last: int = ALL[-1]) -> None:  # fmt: skip
        assert answers_last == ALL[-1], "sites go on by turns"
        scale = SCALE if kind is np.float32 else 0
        self.world.layout = layout = Layout([Tensor("n", np.dtype(kind).name, (lanes,), scale)])
        for u in numbers or ALL:
            plain = np.zeros(layout.nbytes, np.uint8)
            own = np.full(lanes, (values or {}).get(u, 10**u) * 2**scale, f"<i{np.dtype(kind).itemsize}")
            plain[: own.nbytes] = own.view(np.uint8)
            self.world.plain[u] = plain
            self.sites[u] = MemorySite(self, u, (dies or {}).get(u, ""), (uploads or {}).get(u))

    def largest(self, x: bytes) -> float:
        """Of a sum's lanes, as a number."""
        tensor = self.world.layout.tensors[0]
        lanes = np.frombuffer(x, f"<i{tensor.lane_bytes}")
        return float(lanes.max()) / 2 ** (SCALE if tensor.bits == 32 else 0)

    @override
    def end(self, u: int) -> BaseException | None:
        self._go_on()
        assert not self.sites[u].alive, f"site {u} still waits"
        return self.sites[u].error

    @override
    def got(self, u: int) -> float:
        return self.sites[u].got

    @override
    def faults(self, u: int) -> str:
        site = self.sites[u].site
        return "" if site is None else "; ".join(site.machine.faults)

    @override
    def identity(self, u: int) -> Ed25519PrivateKey:
        return self.world.identities[u]

    @override
    def sent(self, u: int, round_: int = 0) -> set[str]:
        """What it has signed counts as sent, unless it ended before it could send it."""
        names = [(n, name) for n, here in self._objects.items() for name in here.names()]
        found = {f"{n}/{name.split('/')[0]}" for n, name in names if name.endswith(f"/{u}")}
        private = self.world.disks[u].private
        if private is not None and u not in self.died:
            stored = from_private(private)
            attempts = [n for n in self.attempts() if self.objects(n).small["M0"] == stored.m0][:1]
            found |= {f"{n}/{kind}" for n in attempts for kind in stored.sent}
        return found

    @override
    def cohorts(self, u: int, round_: int = 0) -> list[tuple[int, ...]]:
        return [entry.cohort for entry in self.world.disks[u].entries]
