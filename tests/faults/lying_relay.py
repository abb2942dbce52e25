"""A relay that lies over real TLS, and enrolled sites in threads that meet it: what the wire attacks are made of.

The relay is RelayServer itself with its own key, run without its coordinator: the test decides what is proposed, which
sets are closed, and what each site is shown. Nothing at the sites is replaced, except where a site itself is hostile.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from free_for_all import FreeForAll
from harness import ledger_entries
from numpy.typing import NDArray

import fedhpc
from fedhpc.agreement.identity import read_identity
from fedhpc.app.federation import Federation
from fedhpc.enrolment.one_machine import Enrolled
from fedhpc.relay.http.connection import Connection, Head
from fedhpc.relay.http.routes import Routes
from fedhpc.relay.http.server import RelayServer
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.relay.rounds.ready import proposal, read_ready
from fedhpc.relay.settings import read_settings
from fedhpc.relay.store.kept_attempt import KeptAttempt
from fedhpc.relay.store.store import Attempt, Store, Stored
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.secure.transcript import canon, tree
from fedhpc.wire.object_names import ObjectName

PATIENCE_S = 60.0  # for one message; a test that waits longer has failed

Lie = Callable[[int, str, bytes], bytes | None]
"""(site that asks, "attempt/NAME" of round 1, what is there) -> what the site is shown; None: nothing is there."""


class ShownStore:
    """The store as the site that asks in this thread is shown it: the truth, or what the lies make of it."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self._store, self._scratch = store, scratch
        self._asks, self._lock = threading.local(), threading.Lock()
        self.lies: list[Lie] = []
        scratch.mkdir()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def for_site(self, site: int) -> None:
        self._asks.site = site

    def find(self, name: ObjectName) -> Stored | None:
        found = self._store.find(name)
        return None if found is None else self._shown(found)

    def list(self, attempt: Attempt, after: int = 0) -> list[Stored]:
        return [s for found in self._store.list(attempt, after) if (s := self._shown(found)) is not None]

    def _shown(self, found: Stored) -> Stored | None:
        site, name = self._asks.site, found.name
        if name.owner == site and name.kind == "M3v":
            return found
        truth = shown = found.path.read_bytes()
        for lie in self.lies:
            said = lie(site, f"{name.attempt}/{name.name}", shown)
            if said is None:
                return None
            shown = said
        if shown == truth:
            return found
        path = self._scratch / hashlib.sha256(shown).hexdigest()
        with self._lock:
            if not path.exists():
                path.write_bytes(shown)
        return replace(found, length=len(shown), tree=tree(shown), path=path)


class LyingRoutes(Routes):
    """Routes over a ShownStore, which is told who asks."""

    shown: ShownStore

    def answer(self, connection: Connection, head: Head, pin: bytes | None) -> None:
        """See Routes."""
        for federation in self._roster().federations.values() if pin is not None else ():
            assert pin is not None
            self.shown.for_site(federation.site_of(pin) or 0)
        super().answer(connection, head, pin)


class HostileRelay:
    """A relay in this process. `lie` changes what sites see from then on; the other calls do a coordinator's work."""

    def __init__(self, enrolled: Enrolled, folder: Path) -> None:
        settings, limits = read_settings(enrolled.relay)
        settings = replace(settings, store=folder / "store", admin="")
        limits = replace(limits, drain_s=1.0)
        self.server = RelayServer(settings, limits, FreeForAll)
        self.store = self.server.store
        self.shown = ShownStore(self.store, folder / "lies")
        routes = LyingRoutes(self.shown, lambda: self.server.roster, limits, self.server.rounds)  # type: ignore[arg-type]
        routes.shown, self.server.routes = self.shown, routes
        self.config = next(iter(self.server.roster.federations))
        self.sites = tuple(range(1, len(enrolled.sites) + 1))
        self.threshold = choose_thresholds(len(self.sites)).threshold
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()
        self.gone: Callable[[], bool] = lambda: False  # whether nobody is left to wait for

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(PATIENCE_S)

    def lie(self, *lies: Lie) -> None:
        self.shown.lies += lies

    def objects(self, attempt: int, round_: int = 1) -> KeptAttempt:
        return KeptAttempt(self.store, (self.config, round_, attempt))

    def machine(self, attempt: int, round_: int = 1) -> RoundMachine:
        return RoundMachine(self.objects(attempt, round_), len(self.sites), self.threshold)

    def has(self, attempt: int, kind: str, sites: Iterable[int] = (0,), round_: int = 1) -> bool:
        """Whether every one of `sites` has stored its `kind`; without sites: whether the relay has."""
        names = set(self.objects(attempt, round_).names())
        return all((f"{kind}/{u}" if u else kind) in names for u in sites)

    def wait(self, attempt: int, kind: str, sites: Iterable[int], round_: int = 1) -> None:
        """Until `sites` have stored their `kind`. AssertionError if none of them lives any more."""
        sites, deadline = tuple(sites), time.monotonic() + PATIENCE_S
        while not self.has(attempt, kind, sites, round_):
            assert not self.gone(), f"nobody is left who could send {kind}"
            assert time.monotonic() < deadline, f"waited for {kind} of {sites}"
            time.sleep(0.005)

    # --- an attempt, step by step

    def propose(self, attempt: int, cohort: Iterable[int] = (), round_: int = 1) -> None:
        cohort = tuple(cohort or self.sites)
        self.wait(0, "READY", cohort, round_)
        lobby = self.objects(0, round_)
        ready = {u: read_ready(lobby.get(f"READY/{u}") or b"") for u in cohort}
        fields, tensors = ready[cohort[0]]
        bases = {u: own.base for u, (own, _) in ready.items()}
        m0 = proposal(self.config, round_, attempt, fields, tensors, cohort, bases)
        self.machine(attempt, round_).propose(m0)
        lobby.put(f"A{attempt}", canon({}))

    def keys(self, attempt: int, sites: Iterable[int] = (), round_: int = 1) -> None:
        """U1 over `sites`, once their M1 are there."""
        self.wait(attempt, "M1", sites or self.sites, round_)
        self.machine(attempt, round_).close_keys()

    def shares(self, attempt: int, sites: Iterable[int] = (), round_: int = 1) -> None:
        self.wait(attempt, "M2", sites or self.sites, round_)
        self.machine(attempt, round_).close_shares()

    def masked(self, attempt: int, sites: Iterable[int] = (), round_: int = 1) -> None:
        for kind in ("M3", "M3v"):
            self.wait(attempt, kind, sites or self.sites, round_)
        self.machine(attempt, round_).close_masked()

    def run(self, attempt: int, sites: Iterable[int] = (), upto: str = "M4r", round_: int = 1) -> None:
        """Propose, and close sets up to U1, U2 or M4r."""
        sites = tuple(sites or self.sites)
        self.propose(attempt, sites, round_)
        for name, step in (("U1", self.keys), ("U2", self.shares), ("M4r", self.masked)):
            step(attempt, sites, round_)
            if name == upto:
                return

    def give_up(self, attempt: int) -> None:
        self.objects(attempt).put("NEXT", canon({"why": "the relay says so"}))

    # --- what was stored

    def sent(self, u: int, round_: int = 1) -> set[str]:
        """ "attempt/KIND" of everything that site `u` has stored in a round."""
        found = self.store.of(self.config)
        return {f"{s.name.attempt}/{s.name.kind}" for s in found if s.name.round == round_ and s.name.owner == u}


class SiteThread:
    """An enrolled site that sums once, in a thread of this process: `fedhpc.join` and `sum`, nothing else."""

    def __init__(
        self,
        stage: Stage,
        number: int,
        vector: NDArray[Any],
        spoil: Callable[[Federation], None] | None,
        more: dict[str, Any],
    ) -> None:
        self.number, self.got = number, 0.0
        """The largest number of the sum."""
        self.error: BaseException | None = None
        self._stage, self._spoil, self._more = stage, spoil, more
        self._numbers = vector
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        enrolled, name = self._stage.enrolled, self._stage.enrolled.sites[self.number - 1]
        try:
            with fedhpc.join(enrolled.federation, site=enrolled.site_file(name), run=self._stage.runs) as fed:
                if self._spoil is not None:
                    self._spoil(fed)
                self.got = fed.sum({"n": self._numbers}, **({"name": "n"} | self._more))["n"].max()
        except BaseException as error:  # the test looks at it
            self.error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> BaseException | None:
        """How it ended."""
        self._thread.join(PATIENCE_S)
        assert not self.alive, f"site {self.number} still waits"
        return self.error


class Stage:
    """One relay, its sites, and where they keep their files."""

    def __init__(self, enrolled: Enrolled, folder: Path) -> None:
        self.enrolled, self.runs = enrolled, folder / "runs"
        for site in enrolled.sites:  # each attack is the first that these sites meet
            shutil.rmtree(self._home(site), ignore_errors=True)
        self.relay = HostileRelay(enrolled, folder)
        self.relay.gone = lambda: bool(self.sites) and not any(s.alive for s in self.sites.values())
        self.sites: dict[int, SiteThread] = {}
        self.patches = ExitStack()  # of what hostile sites run

    def start(
        self,
        *numbers: int,
        lanes: int = 5,
        values: dict[int, Any] | None = None,
        kind: type = np.int64,
        spoil: dict[int, Callable[[Federation], None]] | None = None,
        **more: Any,
    ) -> None:
        """Start sites, all without `numbers`. Site u sums 10^u in each lane, or `values[u]`, a number or [lanes]."""
        for u in numbers or self.relay.sites:
            vector = np.full(lanes, (values or {}).get(u, 10**u), kind)
            self.sites[u] = SiteThread(self, u, vector, (spoil or {}).get(u), more)

    def ledger(self, u: int) -> list[dict[str, Any]]:
        """The entries of a site's ledger, as they were added."""
        return ledger_entries(self._home(self.enrolled.sites[u - 1]) / "ledger.jsonl")

    def _home(self, site: str) -> Path:
        return self.enrolled.site_file(site).parent / "ledger"

    def sets(self, u: int, round_: int = 1) -> set[tuple[int, ...]]:
        """The sets that site `u` has bound itself to in a round."""
        return {tuple(e["cohort"]) for e in self.ledger(u) if e["round"] == round_ and e["cohort"]}

    def identity(self, u: int) -> Ed25519PrivateKey:
        """The key with which site `u` signs."""
        folder = self.enrolled.site_file(self.enrolled.sites[u - 1]).parent
        return Ed25519PrivateKey.from_private_bytes(read_identity(folder / "sign.key"))

    def close(self) -> None:
        self.relay.stop()
        for site in self.sites.values():
            site.end()
        self.patches.close()


@contextmanager
def stage_of(enrolled: Enrolled, folder: Path) -> Iterator[Stage]:
    """A stage that ends with the block."""
    stage = Stage(enrolled, folder)
    try:
        yield stage
    finally:
        stage.close()
