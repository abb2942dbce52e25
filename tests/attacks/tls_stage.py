"""The stage over TLS: a relay with its real key that lies, and enrolled sites in threads of this process.

The relay is RelayServer itself, mostly run without its coordinator: the attack decides what is proposed, which sets
are closed, and what each site is shown. Nothing at the sites is replaced, except where a site itself is hostile.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from attack_stage import Change, Lie, Stage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from free_for_all import FreeForAll
from harness import PATIENCE, edit, ledger_entries
from numpy.typing import NDArray
from typing_extensions import override

import fedhpc
from fedhpc.agreement.identity import read_identity
from fedhpc.app.federation import Federation
from fedhpc.enrolment.one_machine import Enrolled, enrol
from fedhpc.relay.http.connection import Connection, Head
from fedhpc.relay.http.routes import Routes
from fedhpc.relay.http.server import RelayServer
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.relay.rounds.ready import proposal, read_ready
from fedhpc.relay.settings import read_settings
from fedhpc.relay.store.kept_attempt import KeptAttempt
from fedhpc.relay.store.object_store import Attempt, Store, Stored
from fedhpc.secure.suite import SHA256
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.secure.transcript import canon
from fedhpc.wire.object_names import ObjectName

PATIENCE_S = 30.0 * PATIENCE  # for one message; a test that waits longer has failed
SECTIONS = '[cohort]\npolicy = "sync"\n[task]\nname = "logistic"\n'

Spoil = Callable[[Federation], None]


class ShownStore:
    """The store as the site that asks in this thread is shown it."""

    def __init__(self, store: Store, scratch: Path, lie: Lie) -> None:
        self._store, self._scratch, self._lie = store, scratch, lie
        self._asks, self._lock = threading.local(), threading.Lock()
        scratch.mkdir()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def for_site(self, site: int) -> None:
        self._asks.site = site

    def find(self, name: ObjectName) -> Stored | None:
        found = self._store.find(name)
        return None if found is None else self._shown(found)

    def reading(self, stored: Stored) -> AbstractContextManager[None]:
        return self._store.reading(self._store.find(stored.name) or stored)  # whose lie it may be

    def list(self, attempt: Attempt, after: int = 0) -> list[Stored]:
        return [s for found in self._store.list(attempt, after) if (s := self._shown(found)) is not None]

    def _shown(self, found: Stored) -> Stored | None:
        site, name = self._asks.site, found.name
        if name.owner == site and name.kind == "M3v":
            return found
        try:
            truth = found.path.read_bytes()
        except FileNotFoundError:  # cleaned up since
            return found
        shown = self._lie(site, f"{name.attempt}/{name.name}", truth)
        if shown is None or shown == truth:
            return None if shown is None else found
        path = self._scratch / hashlib.sha256(shown).hexdigest()
        with self._lock:
            if not path.exists():
                path.write_bytes(shown)
        return replace(found, length=len(shown), tree=SHA256.tree(shown), path=path)


class LyingRoutes(Routes):
    """Routes over a ShownStore, which is told who asks."""

    def __init__(self, shown: ShownStore, *more: Any) -> None:
        super().__init__(shown, *more)  # type: ignore[arg-type]
        self._shown = shown

    @override
    def answer(self, connection: Connection, head: Head, pin: bytes | None) -> None:
        for federation in self._roster().federations.values() if pin is not None else ():
            assert pin is not None
            self._shown.for_site(federation.site_of(pin) or 0)
        super().answer(connection, head, pin)


def four_sites(folder: Path, sections: str = SECTIONS) -> Enrolled:
    """s1 to s4: t = 1, τ = 3, one may be lost. They give up soon on a relay that has gone."""
    made = enrol(folder, "four", sections, {f"s{u}": folder / "no-data" for u in range(1, 5)})
    for name in made.sites:
        edit(made.site_file(name), "[exchange]\n", '[exchange]\nproxy = ""\npatience_s = 1.0\n')
    return made


class SiteThread:
    """An enrolled site that sums once, in a thread of this process: `fedhpc.join` and `sum`, nothing else."""

    def __init__(
        self, stage: TlsStage, number: int, vector: NDArray[Any], spoils: list[Spoil], more: dict[str, Any]
    ) -> None:
        self.number, self.got = number, 0.0
        self.error: BaseException | None = None
        self._stage, self._spoils, self._more = stage, spoils, more
        self._numbers = vector
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        enrolled, name = self._stage.enrolled, self._stage.enrolled.sites[self.number - 1]
        try:
            with fedhpc.join(enrolled.federation, site=enrolled.site_file(name), run=self._stage.runs) as fed:
                for spoil in self._spoils:
                    spoil(fed)
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


def _dies_before(kind: str) -> Spoil:
    def spoil(fed: Any) -> None:
        exchange = fed.session.sums.lead.exchange
        put = exchange.put

        def dying(round_: int, attempt: int, what: str, data: bytes, **more: Any) -> None:
            if what == kind:
                raise ConnectionAbortedError
            put(round_, attempt, what, data, **more)

        exchange.put = dying

    return spoil


def _uploads(change: Change) -> Spoil:
    def spoil(fed: Any) -> None:
        client = fed.session.sums._client
        put = client.put
        client.put = lambda name, data: put(name, change(bytes(data)) if name.kind == "M3v" else data)

    return spoil


class TlsStage(Stage):
    """One relay, its sites, and where they keep their files."""

    def __init__(self, enrolled: Enrolled, folder: Path, *, coordinator: bool = False) -> None:
        """`coordinator`: the relay has its own, and the attack only lies."""
        super().__init__()
        self.enrolled, self.runs = enrolled, folder / "runs"
        for site in enrolled.sites:  # each attack is the first that these sites meet
            shutil.rmtree(self._home(site), ignore_errors=True)
        self.sites: dict[int, SiteThread] = {}
        self._said: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self._said.append(record.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("fedhpc")
        log.addHandler(handler)
        self.patches.callback(log.removeHandler, handler)
        settings, limits = read_settings(enrolled.relay)
        settings = replace(settings, store=folder / "store", admin="")
        limits = replace(limits, drain_s=1.0)
        self.server = RelayServer(settings, limits, *([] if coordinator else [FreeForAll]))
        self.store = self.server.store
        shown = ShownStore(self.store, folder / "lies", self.shown)
        self.server.routes = LyingRoutes(shown, lambda: self.server.roster, limits, self.server.rounds)
        self.config = next(iter(self.server.roster.federations))
        self.numbers = tuple(range(1, len(enrolled.sites) + 1))
        self.threshold = choose_thresholds(len(self.numbers)).threshold
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()

    # --- the relay

    @override
    def objects(self, attempt: int, round_: int = 1) -> KeptAttempt:
        return KeptAttempt(
            self.store, (self.config, round_, attempt), self.server.roster.federations[self.config].suite
        )

    @override
    def machine(self, attempt: int, round_: int = 1) -> RoundMachine:
        return RoundMachine(self.objects(attempt, round_), len(self.numbers), self.threshold)

    @override
    def propose(self, attempt: int, cohort: Iterable[int] = (), round_: int = 1) -> None:
        cohort = tuple(cohort or self.numbers)
        self.wait(0, "READY", cohort, round_)
        lobby = self.objects(0, round_)
        ready = {u: read_ready(lobby.get(f"READY/{u}") or b"") for u in cohort}
        fields, tensors = ready[cohort[0]]
        bases = {u: own.base for u, (own, _) in ready.items()}
        m0 = proposal(self.config, round_, attempt, fields, tensors, cohort, bases)
        self.machine(attempt, round_).propose(m0)
        lobby.put(f"A{attempt}", canon({}))

    @override
    def wait(self, attempt: int, kind: str, sites: Iterable[int], round_: int = 1) -> None:
        sites, deadline = tuple(sites), time.monotonic() + PATIENCE_S
        while not self.has(attempt, kind, sites, round_):
            alive = any(s.alive for s in self.sites.values()) or not self.sites
            assert alive, f"nobody is left who could send {kind}"
            assert time.monotonic() < deadline, f"waited for {kind} of {sites}"
            time.sleep(0.005)

    @override
    def overwrite(self, attempt: int, name: str, change: Callable[[bytes], bytes]) -> None:
        path = self.store.path(ObjectName(self.config, 1, attempt, name))
        path.write_bytes(change(path.read_bytes()))

    @override
    def forget(self, attempt: int, name: str) -> None:
        gone = ObjectName(self.config, 1, attempt, name)
        self.store.drop(lambda other: other == gone)

    @override
    def stop_relay(self) -> None:
        self.server.stop()
        self._thread.join(PATIENCE_S)

    # --- sites

    @override
    def start(
        self,
        *numbers: int,
        lanes: int = 5,
        values: dict[int, Any] | None = None,
        kind: type = np.int64,
        dies: dict[int, str] | None = None,
        uploads: dict[int, Change] | None = None,
        answers_last: int = 0,
        spoil: dict[int, Spoil] | None = None,
        **more: Any,
    ) -> None:
        if np.dtype(kind).kind == "f":
            more = {"bound": 8.0} | more
        for u in numbers or self.numbers:
            vector = np.full(lanes, (values or {}).get(u, 10**u), kind)
            spoils = [spoil[u]] if spoil and u in spoil else []
            spoils += [_dies_before(dies[u])] if dies and u in dies else []
            spoils += [self._answers_last] if u == answers_last else []
            spoils += [_uploads(uploads[u])] if uploads and u in uploads else []
            self.sites[u] = SiteThread(self, u, vector, spoils, more)

    def _answers_last(self, fed: Any) -> None:
        exchange = fed.session.sums.lead.exchange
        put = exchange.put

        def late(round_: int, attempt: int, kind: str, data: bytes, **more: Any) -> None:
            if kind == "M5":
                self.wait(attempt, kind, [u for u in self.numbers if u != fed.session.party.number], round_)
            put(round_, attempt, kind, data, **more)

        exchange.put = late

    @override
    def end(self, u: int) -> BaseException | None:
        return self.sites[u].end()

    @override
    def got(self, u: int) -> float:
        return self.sites[u].got

    @override
    def faults(self, u: int) -> str:
        """What all of them have logged."""
        return "; ".join(self._said)

    @override
    def identity(self, u: int) -> Ed25519PrivateKey:
        folder = self.enrolled.site_file(self.enrolled.sites[u - 1]).parent
        return Ed25519PrivateKey.from_private_bytes(read_identity(folder / "sign.key"))

    @override
    def sent(self, u: int, round_: int = 1) -> set[str]:
        found = self.store.of(self.config)
        return {f"{s.name.attempt}/{s.name.kind}" for s in found if s.name.round == round_ and s.name.owner == u}

    @override
    def cohorts(self, u: int, round_: int = 1) -> list[tuple[int, ...]]:
        lines = ledger_entries(self._home(self.enrolled.sites[u - 1]) / "ledger.jsonl")
        return [tuple(line["cohort"]) for line in lines if line["round"] == round_]

    def _home(self, site: str) -> Path:
        return self.enrolled.site_file(site).parent / "ledger"

    def close(self) -> None:
        self.stop_relay()
        for site in self.sites.values():
            site.end()
        self.patches.close()


@contextmanager
def stage_of(enrolled: Enrolled, folder: Path, *, coordinator: bool = False) -> Iterator[TlsStage]:
    """A stage that ends with the block."""
    stage = TlsStage(enrolled, folder, coordinator=coordinator)
    try:
        yield stage
    finally:
        stage.close()
