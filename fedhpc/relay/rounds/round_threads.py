"""Runs the rounds of all federations: a worker thread for each, woken by objects and deadlines.

Adding vectors takes long, so each federation has a lock and a thread of its own, and the lock is free while a Job runs.
Without `start` nothing happens by itself and `settle` does the work: that is how tests drive it, with their own clock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fedhpc.relay.metrics import Metrics
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds import gate
from fedhpc.relay.rounds.accumulator import Accumulator
from fedhpc.relay.rounds.block_memory import BlockMemory
from fedhpc.relay.rounds.federation_rounds import FederationRounds
from fedhpc.relay.rounds.heard import Heard
from fedhpc.relay.rounds.status_json import PAST, standing
from fedhpc.relay.settings import HostedFederation, Roster
from fedhpc.relay.store.object_store import Store, Stored
from fedhpc.wire import kinds
from fedhpc.wire.object_names import ObjectName

_log = logging.getLogger("fedhpc.relay")
AGAIN_S = 10.0  # after a failed step, such as one that met a full disk


class Coordinator:
    """One for a server. Thread-safe."""

    def __init__(self, store: Store, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._metrics, self._clock = store, metrics, clock
        self._memory = BlockMemory()
        # Which federations and workers there are changes under `_life`. Requests look single ones up without it, which
        # is one step of the interpreter for text as a key.
        self._life = threading.RLock()
        self._federations: dict[str, FederationRounds] = {}
        self._workers: dict[str, _Worker] = {}
        self._turns: dict[str, threading.Lock] = {}  # a federation that left and came back may have a job running still
        self._started = False
        store.on_object.append(self._note)

    # --- life

    def update(self, roster: Roster) -> None:
        """Take over the roster: federations come, go, and change. Deadlines of one that changed start anew."""
        with self._life:
            for config in set(self._federations) - set(roster.federations):
                self._leave(self._federations.pop(config))
                if config in self._workers:
                    self._workers.pop(config).stop()
            for config, federation in roster.federations.items():
                before = self._federations.get(config)
                if before is None or _rules(before.federation) != _rules(federation):
                    self._take_up(config, federation, before)
                if self._started:
                    self._work(config)

    def _take_up(self, config: str, federation: HostedFederation, before: FederationRounds | None) -> None:
        rounds = FederationRounds(self._store, federation, self._metrics, self._memory)
        if before is not None:
            rounds.heard = Heard(before.heard.times())
            rounds.times, rounds.bad_vectors = before.times, before.bad_vectors
            self._leave(before)
        with rounds.lock:  # nobody asks it for anything before it knows what the store has
            self._federations[config] = rounds
            rounds.load()

    def _leave(self, rounds: FederationRounds) -> None:
        """Nobody asks these rounds any more; a job of theirs may still run, and a vector arrive."""
        with rounds.lock:
            rounds.close()

    def start(self) -> None:
        """Begin to work, in a thread for each federation."""
        with self._life:
            self._started = True
            for config in self._federations:
                self._work(config)

    def stop(self) -> None:
        """End the threads, each after the step or job it is in."""
        with self._life:
            self._started = False
            for worker in self._workers.values():
                worker.stop()

    def _work(self, config: str) -> None:
        if config not in self._workers:
            self._workers[config] = _Worker(lambda: self.settle(config), f"rounds {config[:8]}", self._clock)
        self._workers[config].wake()

    # --- work

    def settle(self, config: str) -> float | None:
        """Do all that can be done for a federation now; when to come back, None: when something happens."""
        with self._turns.setdefault(config, threading.Lock()):
            while (rounds := self._federations.get(config)) is not None:
                with rounds.lock:
                    step = rounds.step(self._clock())
                if step.job is None:
                    return step.wake
                result = step.job.run()
                with rounds.lock:
                    step.job.then(result)
        return None

    def _note(self, stored: Stored) -> None:
        rounds = self._federations.get(stored.name.config)
        if rounds is not None:
            rounds.note(stored)
            self._wake(stored.name.config)

    def _wake(self, config: str) -> None:
        worker = self._workers.get(config)
        if worker is not None:
            worker.wake()

    # --- what requests ask

    def heard(self, config: str, site: int) -> None:
        """A site of the federation made a request, or still does."""
        rounds = self._federations.get(config)
        if rounds is not None and rounds.heard.note(site, self._clock()):
            self._wake(config)

    def check_write(self, name: ObjectName, length: int, tree: bytes | None) -> None:
        """Whether the owner of `name` may write it now (see gate.py). Raises Problem (400, 403, 409, 413, 507)."""
        with self._locked(name.config) as rounds:
            gate.check_write(rounds, name, length, tree, self._clock())

    def arriving(self, name: ObjectName) -> Accumulator | None:
        """What adds the blocks of a vector as they come; None for another object."""
        rounds = self._federations.get(name.config)
        if rounds is None or name.kind != kinds.M3V.name:
            return None
        with rounds.lock:
            return rounds.arriving(name)

    def check_round(self, config: str, round_: int) -> None:
        """Raise Problem (409, round-over) for a round whose objects were cleaned up."""
        rounds = self._federations.get(config)
        if rounds is not None:  # one number: the lock would have every request wait for the disk
            gate.check_round(rounds, round_)

    def standing(self, config: str, past: int = PAST) -> dict[str, Any]:
        """The answer to GET /v1/federations/C, with the times of the last `past` rounds."""
        with self._locked(config) as rounds:
            return standing(rounds, self._clock(), past)

    @contextmanager
    def _locked(self, config: str) -> Iterator[FederationRounds]:
        rounds = self._federations.get(config)
        if rounds is None:
            raise Problem("forbidden", f"federation {config[:16]} has left the roster")
        with rounds.lock:
            rounds.take_news(self._clock())
            yield rounds


class _Worker:
    """A thread that calls `settle` when woken, and at the time it asked for."""

    def __init__(self, settle: Callable[[], float | None], name: str, clock: Callable[[], float]) -> None:
        self._settle, self._clock = settle, clock
        self._event, self._stopped = threading.Event(), False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wake(self) -> None:
        self._event.set()

    def stop(self) -> None:
        self._stopped = True
        self._event.set()

    def _run(self) -> None:
        while not self._stopped:
            self._event.clear()
            try:
                until = self._settle()
            except Exception:  # a full disk, a file that was damaged: the round waits, the others go on
                _log.exception("a step failed; again in %.0f s", AGAIN_S)
                until = self._clock() + AGAIN_S
            if not self._stopped:
                self._event.wait(None if until is None else max(0.0, until - self._clock()))


def _rules(federation: HostedFederation) -> tuple[Any, ...]:
    return federation.pins, federation.threshold, federation.cohort, federation.suite
