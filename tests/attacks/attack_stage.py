"""What an attack is made with, wherever it is played: four sites, a relay in the hands of the attack, and one round.

There are two stages: memory_stage.py has the machines without I/O, tls_stage.py a relay and sites that meet over TLS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.relay.rounds.attempt_objects import Objects
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.secure.transcript import canon

ALL = (1, 2, 3, 4)
"""The sites: t = 1 may collude, τ = 3 open a sum, and one may be lost."""

Lie = Callable[[int, str, bytes], bytes | None]
"""(site that asks, "attempt/NAME" of the round, what is there) -> what the site is shown; None: nothing is there."""
Change = Callable[[bytes], bytes | None]
Victims = tuple[int, ...]


class Stage(ABC):
    """The relay is honest but for its lies and for what an attack stores in its name; sites do what they should.

    A hostile site is one whose code an attack patches (`patches` ends with the stage).
    """

    def __init__(self) -> None:
        self.lies: list[Lie] = []
        self.patches = ExitStack()

    # --- the relay

    @abstractmethod
    def objects(self, attempt: int, round_: int = 1) -> Objects:
        """What the relay has of an attempt; 0: of what comes before the first."""

    @abstractmethod
    def machine(self, attempt: int, round_: int = 1) -> RoundMachine:
        """The relay's view of an attempt."""

    @abstractmethod
    def propose(self, attempt: int, cohort: Iterable[int] = (), round_: int = 1) -> None:
        """Propose an attempt over `cohort`, or over all."""

    @abstractmethod
    def wait(self, attempt: int, kind: str, sites: Iterable[int], round_: int = 1) -> None:
        """Until `sites` have stored their `kind`. AssertionError if nobody goes on."""

    @abstractmethod
    def overwrite(self, attempt: int, name: str, change: Callable[[bytes], bytes]) -> None:
        """Another content for a large object that lies at the relay."""

    @abstractmethod
    def forget(self, attempt: int, name: str) -> None:
        """Drop one object."""

    @abstractmethod
    def stop_relay(self) -> None:
        """From now on nobody reaches it."""

    def lie(self, *lies: Lie) -> None:
        self.lies += lies

    def shown(self, site: int, what: str, truth: bytes) -> bytes | None:
        """What a site is shown of an object, after all lies."""
        told: bytes | None = truth
        for lie in self.lies:
            if told is not None:
                told = lie(site, what, told)
        return told

    def large(self, attempt: int, name: str) -> bytes:
        """A vector or a sum that lies at the relay."""
        objects = self.objects(attempt)
        data = bytearray(objects.size(name))
        objects.read_into(name, 0, memoryview(data))
        return bytes(data)

    def has(self, attempt: int, kind: str, sites: Iterable[int] = (0,), round_: int = 1) -> bool:
        """Whether every one of `sites` has stored its `kind`; without sites: whether the relay has."""
        names = set(self.objects(attempt, round_).names())
        return all((f"{kind}/{u}" if u else kind) in names for u in sites)

    def give_up(self, attempt: int) -> None:
        self.objects(attempt).put("NEXT", canon({"why": "the relay says so"}))

    def masked(self, attempt: int, sites: Iterable[int] = ALL, round_: int = 1) -> None:
        """The sum over all whose vector and M3 are there, once those of `sites` are."""
        for kind in ("M3", "M3v"):
            self.wait(attempt, kind, sites, round_)
        self.machine(attempt, round_).close_masked()

    def run(self, attempt: int, sites: Iterable[int] = ALL, upto: str = "M4r", round_: int = 1) -> None:
        """Propose, and close sets up to U1, U2 or M4r; up to M0 nothing but propose."""
        sites = tuple(sites)
        self.propose(attempt, sites, round_)
        if upto == "M0":
            return
        self.wait(attempt, "M1", sites, round_)
        self.machine(attempt, round_).close_keys()
        if upto == "U1":
            return
        self.wait(attempt, "M2", sites, round_)
        self.machine(attempt, round_).close_shares()
        if upto != "U2":
            self.masked(attempt, sites, round_)

    # --- sites

    @abstractmethod
    def start(self, *numbers: int, **more: Any) -> None:
        """Start sites, all without `numbers`; each sums a vector of `lanes` (5) equal numbers of a NumPy `kind`.

        values     site -> its number, or [lanes]; without it site u has 10^u
        dies       site -> the kind of message before which it ends, with all that it has written by then
        uploads    site -> what it makes of its vector after it has signed M3
        answers_last    the site that sends M5 after all others
        everyone, bound, spoil    over TLS only: of `Federation.sum`, and what is done to a Federation first
        """

    @abstractmethod
    def end(self, u: int) -> BaseException | None:
        """Wait for the end of a site; how it ended."""

    @abstractmethod
    def got(self, u: int) -> float:
        """The largest number of the sum that a site has given out; 0 if none."""

    @abstractmethod
    def faults(self, u: int) -> str:
        """What a site says of those whose messages it could do without."""

    @abstractmethod
    def identity(self, u: int) -> Ed25519PrivateKey:
        """The key with which a site signs."""

    @abstractmethod
    def sent(self, u: int, round_: int = 1) -> set[str]:
        """ "attempt/KIND" of everything that a site has stored in a round."""

    @abstractmethod
    def cohorts(self, u: int, round_: int = 1) -> list[tuple[int, ...]]:
        """The sets of a site's ledger lines of a round, as they were added; () for a vector that is bound to none."""

    def sets(self, u: int, round_: int = 1) -> set[tuple[int, ...]]:
        """The sets that a site has bound itself to in a round."""
        return {cohort for cohort in self.cohorts(u, round_) if cohort}
