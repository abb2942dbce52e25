"""A small federation with a relay of its own, in real processes: made from a template, so that each cell has its own.

Enrolment is done once for each kind of federation; a cell gets a copy of the folder, with another port.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import PATIENCE, ledger_entries
from nursery import Child, Nursery
from relayed_site import PLAN

from fedhpc.enrolment.one_machine import enrol
from fedhpc.secure.thresholds import Thresholds, choose_thresholds

NAMES = ("aa", "bb", "cc", "dd", "ee", "ff", "gg")
PATIENT = "answer_s = 60.0\nupload_s = 60.0\ndeadline_s = 120.0"
"""Deadlines that pass only where a site is gone for good."""
SHORT = "answer_s = 3.0\nupload_s = 5.0\ngrace_s = 3.0\ndeadline_s = 60.0"
WAIT_S = 30.0 * PATIENCE


@dataclass(frozen=True)
class Kind:
    """What a template is made for."""

    sites: int = 4
    durable: str = "disk"
    cohort: str = f'policy = "sync"\n{PATIENT}'
    rounds: int = 1

    @property
    def thresholds(self) -> Thresholds:
        return choose_thresholds(self.sites)


SYNC = Kind()
QUORUM = Kind(cohort=f'policy = "quorum"\n{SHORT}')
TRAINING = Kind(rounds=3)
MEMORY = Kind(durable="memory")


class Templates:
    """Enrolled federations, one for each kind, made when first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[Kind, Path] = {}

    def get(self, kind: Kind) -> Path:
        if kind not in self._made:
            folder = self._folder / f"template{len(self._made)}"
            sections = f"[cohort]\n{kind.cohort}\n\n[strategy]\nname = 'fedavg'\n"
            sites = {name: folder / f"{name}.h5" for name in NAMES[: kind.sites]}
            enrol(folder, "faults", sections, sites, rounds=kind.rounds, durable=kind.durable)
            self._made[kind] = folder
        return self._made[kind]


_ports, _ports_lock = iter(range(20_000 + os.getpid() % 5000, 32_000)), threading.Lock()


def free_port() -> int:
    """A port that nobody listens on and no outgoing connection is given: relays are started again on theirs."""
    with _ports_lock:
        for port in _ports:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


@dataclass
class World:
    """One cell's federation. Use as a context manager: everything it started is killed at its end."""

    nursery: Nursery
    folder: Path
    kind: Kind
    port: int
    children: list[Child] = field(default_factory=list)
    relay: Child | None = None
    unbroken: Callable[[], str] = str
    """The final hash of a run of the main loop without faults."""

    @staticmethod
    def make(nursery: Nursery, templates: Path, kind: Kind, folder: Path) -> World:
        shutil.copytree(templates, folder)
        port = free_port()
        relay = folder / "coordinator" / "relay" / "relay.toml"
        old = relay.read_text().split('listen = "127.0.0.1:')[1].split('"')[0]
        for path in (relay, *(folder / "sites" / n / "site.toml" for n in NAMES[: kind.sites])):
            path.write_text(path.read_text().replace(f"127.0.0.1:{old}", f"127.0.0.1:{port}"))
        for name in NAMES[: kind.sites]:
            with (folder / "sites" / name / "site.toml").open("a") as file:
                file.write("connections = 1\npatience_s = 60.0\n")  # blocks go in order, so that half is half
        return World(nursery, folder, kind, port)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exception: object) -> None:
        for child in self.children:
            child.kill()

    # --- processes

    @property
    def federation(self) -> Path:
        return self.folder / "coordinator" / "federation.toml"

    @property
    def config(self) -> str:
        return hashlib.sha256(self.federation.read_bytes()).hexdigest()

    @property
    def store(self) -> Path:
        return self.folder / "coordinator" / "relay" / "store"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def site_file(self, number: int) -> Path:
        return self.folder / "sites" / NAMES[number - 1] / "site.toml"

    @property
    def numbers(self) -> list[int]:
        return list(range(1, self.kind.sites + 1))

    def site_name(self, number: int) -> str:
        return NAMES[number - 1]

    def frozen(self, who: str) -> Path:
        return self.folder / f"{who}.frozen"

    def start_relay(self, point: str = "", **environment: str) -> Child:
        """`point`: where it freezes; of a hostile relay the name of its attack."""
        file = self.folder / "coordinator" / "relay" / "relay.toml"
        log = self.folder / "relay.log"
        before = log.read_text().count("listening") if log.exists() else 0
        self.relay = self._start("relayed_relay", [file, point], "relay", log, environment)
        self.until(lambda: log.read_text().count("listening") > before, "the relay")
        return self.relay

    def start_site(
        self, number: int, job: str = "sums", point: str = "", *, seed: int = 0, **environment: str
    ) -> Child:
        name = NAMES[number - 1]
        words = [self.federation, self.site_file(number), self.run, job, point, str(seed)]
        return self._start("relayed_site", words, name, self.folder / f"{name}.log", environment)

    def start_sites(self, numbers: Iterable[int], job: str = "sums") -> dict[int, Child]:
        return {u: self.start_site(u, job) for u in numbers}

    def _start(self, body: str, words: list[Any], who: str, log: Path, environment: dict[str, str]) -> Child:
        marker = self.frozen(who)
        marker.unlink(missing_ok=True)
        log.touch()
        child = self.nursery.start(body, words, log, {"FEDHPC_TEST_FROZEN": str(marker)} | environment)
        self.children.append(child)
        return child

    def await_frozen(self, who: str, child: Child) -> None:
        self.until(lambda: self.frozen(who).exists() or child.ended.is_set(), f"{who} to freeze")
        assert self.frozen(who).exists(), f"{who} ended with {child.code}\n{self.texts()}"

    def until(self, true: Any, what: str, seconds: float = WAIT_S) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.texts()}"
            time.sleep(0.01)

    def finish(self, sites: dict[int, Child]) -> None:
        """Wait for the end of these sites: with success."""
        for child in sites.values():
            try:
                code = child.wait(WAIT_S)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.texts()}") from None
            assert code == 0, self.texts()

    def stop_relay(self, number: int = signal.SIGKILL) -> None:
        assert self.relay is not None
        self.relay.signal(number)
        self.relay.wait(30)

    # --- what they left

    def lines(self, number: int) -> list[dict[str, Any]]:
        """The JSON lines that a site said in all its lives."""
        found = []
        for line in (self.folder / f"{NAMES[number - 1]}.log").read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [f for f in found if isinstance(f, dict)]

    def final(self) -> str:
        """The final hash of the main loop, the same at all sites."""
        finals = {line["final"] for u in self.numbers for line in self.lines(u) if "final" in line}
        assert len(finals) == 1, f"{finals}\n{self.texts()}"
        return str(finals.pop())

    def sums(self, number: int) -> dict[str, dict[str, Any]]:
        """Sum -> its last line."""
        return {line["sum"]: line for line in self.lines(number) if "sum" in line}

    def members(self, line: dict[str, Any]) -> list[int]:
        return [NAMES.index(name) + 1 for name in line["sites"]]

    def objects(self, round_: int) -> set[str]:
        """Names of the relay's objects in all attempts of a round, `ATTEMPT/NAME`, whole ones."""
        found = self.store / self.config / str(round_)
        return {f"{p.parent.name}/{p.name}" for p in found.glob("*/*") if p.suffix not in (".meta", ".part", ".own")}

    def ledger(self, number: int) -> list[dict[str, Any]]:
        return ledger_entries(self.site_file(number).parent / "ledger" / "ledger.jsonl")

    def texts(self) -> str:
        """All logs, for a test that fails."""
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')}" for p in sorted(self.folder.glob("*.log")))


def plain_sum(name: str, members: Iterable[int], quantum: dict[str, Any], seed: int = 0) -> dict[str, str]:
    """SHA-256 of what `name` of the sites' PLAN adds up to over these sites, computed without any of fedhpc.

    `quantum`: the grid of each array, or of each of its elements.
    """
    values = next(v for n, v, _ in PLAN if n == name)
    given = [values(u, seed) for u in members]
    found = {}
    for key in given[0]:
        arrays, grid = [g[key] for g in given], np.asarray(quantum[key])
        if not grid.all():
            total = sum(a.astype(np.int64) for a in arrays)
        else:
            lanes = sum(np.rint(a.astype(np.float64) / grid).astype(np.int64) for a in arrays)
            total = (lanes.astype(np.float64) * grid).astype(arrays[0].dtype)
        found[key] = hashlib.sha256(total.tobytes()).hexdigest()
    return found


def check_sums(world: World, sites: Iterable[int], names: Iterable[str] = ("one", "two", "three")) -> None:
    """Each site's results are the exact sum over the sites they name, and the same at all of them."""
    for name in names:
        told = {u: world.sums(u).get(name) for u in sites}
        for u, line in told.items():
            assert line is not None, f"site {u} has no sum '{name}'\n{world.texts()}"
            assert line == next(iter(told.values())), f"the sites differ in '{name}': {told}"
            assert {k: line[k] for k in line["quantum"]} == plain_sum(name, world.members(line), line["quantum"])


def check_ledgers(world: World) -> None:
    """No round opened over two sets, and none has two inputs or vectors at one site.

    A site that has bound itself to a set has sent at most its M5 for it; a set opens with τ − t honest answers at the
    least, so every set that τ − t sites stand behind must be the same.
    """
    least = world.kind.thresholds.threshold - world.kind.thresholds.colluders
    rounds: dict[int, dict[tuple[int, ...], int]] = {}
    for u in world.numbers:
        seen: dict[int, tuple[str, str]] = {}
        for entry in world.ledger(u):
            if not int(entry["fingerprint"], 16):  # its input is free again: the round ended without it
                continue
            known = seen.setdefault(entry["round"], (entry["input"], entry["fingerprint"]))
            assert known == (entry["input"], entry["fingerprint"])
        sets = {e["round"]: tuple(e["cohort"]) for e in world.ledger(u) if e["cohort"]}
        for round_, members in sets.items():
            rounds.setdefault(round_, {}).setdefault(members, 0)
            rounds[round_][members] += 1
    for round_, votes in rounds.items():
        assert sum(count >= least for count in votes.values()) <= 1, f"round {round_}: {votes}"
