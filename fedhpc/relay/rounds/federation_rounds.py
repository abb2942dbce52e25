"""All rounds of one federation at the relay, without threads and without a clock of its own.

`step(now)` does whatever the objects in the store and the time allow, writes the relay's own objects, and says when to
come back. Work that reads whole vectors is handed out as a Job, to be run without the lock. Everything is derived from
the store, every write can be the last one before a crash, and a step after it goes on from there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from fedhpc.cohort.policy import Propose, Situation, decide
from fedhpc.errors import PolicyError
from fedhpc.relay.metrics import Metrics
from fedhpc.relay.rounds import abandoning
from fedhpc.relay.rounds.accumulator import Accumulator
from fedhpc.relay.rounds.block_memory import BlockMemory
from fedhpc.relay.rounds.heard import Heard
from fedhpc.relay.rounds.machine import Audit, RoundMachine, opened_set
from fedhpc.relay.rounds.needs import CatchUps
from fedhpc.relay.rounds.news import News, Piece
from fedhpc.relay.rounds.one_round import Round, awaited, limits
from fedhpc.relay.rounds.pace import Paces
from fedhpc.relay.rounds.phase_times import PhaseTimes
from fedhpc.relay.rounds.ready import largest_group, proposal, read_ready
from fedhpc.relay.settings import HostedFederation
from fedhpc.relay.store.kept_attempt import KeptAttempt, drop_large, drop_messages, drop_ready
from fedhpc.relay.store.object_store import Store, Stored
from fedhpc.secure.transcript import canon, parse_canon
from fedhpc.wire import kinds
from fedhpc.wire.kinds import Kind, Owner
from fedhpc.wire.object_names import ObjectName

_log = logging.getLogger("fedhpc.relay")
KEPT_ROUNDS = 2  # up to the last that is done; then everything of a round goes
KEPT_BAD = 100  # reports of bad vectors


@dataclass(frozen=True)
class Job:
    """Long work: `run` without the lock, then `then` with what it gave, with the lock."""

    what: str
    run: Callable[[], Any]
    then: Callable[[Any], None]


@dataclass(frozen=True)
class Step:
    """When to step again at the latest (None: when something happens), and a job to run before that."""

    wake: float | None
    job: Job | None = None


class FederationRounds:
    """The open rounds of one federation.

    `lock` guards everything but `note` and what `heard` does, which any thread may call.
    """

    def __init__(
        self, store: Store, federation: HostedFederation, metrics: Metrics, memory: BlockMemory | None = None
    ) -> None:
        """`memory`: what sums of all federations lie in while vectors arrive."""
        self._memory = memory or BlockMemory()
        self.lock = threading.Lock()
        self.federation = federation
        self.rounds: dict[int, Round] = {}
        self.done = 0
        self.heard = Heard()
        self.bad_vectors: list[tuple[int, int, int]] = []  # round, attempt, site
        self.catchups = CatchUps(store, federation.config)
        self._store, self._metrics = store, metrics
        self._label = f'federation="{federation.config[:16]}"'
        self.times = PhaseTimes(lambda phase, s: metrics.observe_phase(self._label, phase, s))
        metrics.begin_federation(self._label)
        self.paces = Paces()
        self._news = News(store)
        self._holders: tuple[int, ...] = ()  # the sites that have the result of the last round that is done

    @property
    def kept_rounds(self) -> int:
        """How many of the last rounds are kept. With older updates (`staleness`) also those they may have begun from.

        A training round is up to three sums (its scale, what was measured), and that of the weights may lie between.
        """
        staleness = self.federation.cohort.staleness
        return max(KEPT_ROUNDS, 3 * (staleness + 1) + 1 if staleness else 0)

    def load(self) -> None:
        """Take up what the store has, once `note` is called for what it gets."""
        self._news.put_before(self._store.of(self.federation.config))

    def note(self, stored: Stored) -> None:
        """An object became whole. Without the lock: reading it may take a while."""
        self._news.put(stored)

    def has(self, name: ObjectName, tree: bytes | None = None) -> bool:
        """Whether an object is there; `tree`: with this hash."""
        stored = self._store.find(name)
        return stored is not None and tree in (None, stored.tree)

    def make_room(self, name: ObjectName, length: int, tree: bytes) -> None:
        """Drop a READY whose content changed: its site was reconfigured. The caller holds the lock."""
        kept = self._store.find(name) or self._store.upload(name)
        if kept is not None and (kept.length, kept.tree) != (length, tree):
            self._store.drop(lambda other: other == name)
            if name.round in self.rounds and name.owner is not None:
                self.rounds[name.round].ready.pop(name.owner, None)

    # --- the step; the caller holds the lock

    def step(self, now: float) -> Step:
        """Do what can be done now. Raises Problem (507) and OSError of the disk; the next step tries again."""
        while True:
            self.take_news(now)
            times: list[float] = []
            for number in sorted(self.rounds):
                found = self._advance(self.rounds[number], now)
                self.times.look(self.rounds[number], self.federation.threshold, now)
                if isinstance(found, Job):
                    return Step(None, found)
                times += [] if found is None else [found]
            if not self._news:
                break
        asked = self.catchups.step(now, self._holders or tuple(self.federation.pins), self.heard.alive(now))
        return Step(min([*times, *([] if asked is None else [asked])], default=None))

    def take_news(self, now: float) -> None:
        """Look at the objects that became whole since the last time."""
        for piece in self._news.take():
            if piece.name.round == 0:
                self.catchups.note(piece.name, now)
            elif piece.name.round > self.done - self.kept_rounds:
                self._take(piece, now)

    def _take(self, piece: Piece, now: float) -> None:
        """Do what a row of wire/kinds.py asks for: `_TAKEN` has the rows that move a round."""
        kind = kinds.kind_of(piece.name)
        if kind is None or kind not in _TAKEN or (kind is kinds.READY and piece.ready is None):
            return
        if kind.owner is Owner.RELAY or piece.owner in self.federation.pins:
            _TAKEN[kind](self, self._round(piece.name.round), piece, now)

    def _take_ready(self, round_: Round, piece: Piece, now: float) -> None:
        assert piece.ready is not None
        round_.ready.setdefault(piece.owner, (piece.ready, now))
        if piece.owner not in round_.abandoned:
            round_.left.discard(piece.owner)
        self.catchups.caught_up(piece.owner)

    def _take_abandon(self, round_: Round, piece: Piece, _: float) -> None:
        try:
            abandoning.take(self._objects(round_.number, 0), round_, piece.owner, self.federation.numbers)
        except PolicyError as error:
            _log.warning("site %s, round %d: %s", piece.owner, round_.number, error.what)

    def _take_done(self, round_: Round, piece: Piece, _: float) -> None:
        round_.done = True
        self._over(round_.number, self._objects(round_.number, 0).get(piece.name.name))

    def _take_announced(self, round_: Round, piece: Piece, _: float) -> None:
        round_.announced.add(kinds.announced(piece.name.name))

    def _take_proposal(self, round_: Round, piece: Piece, _: float) -> None:
        attempt = piece.name.attempt
        try:
            round_.attempts[attempt] = self._machine(round_.number, attempt)
            if piece.stored.sequence <= self._store.found_at_start and self._store.rebooted:
                round_.suspect.add(attempt)
        except PolicyError as error:  # damaged, or of a roster that had more sites
            _log.error("round %d, attempt %d cannot go on: %s", round_.number, attempt, error.what)
            round_.given_up.add(attempt)

    def _take_next(self, round_: Round, piece: Piece, _: float) -> None:
        round_.given_up.add(piece.name.attempt)

    def _take_leave(self, round_: Round, piece: Piece, _: float) -> None:
        """A site goes away for a while: it is not ready, and what it owes an attempt does not come soon.

        Both objects go, so that READY can be put again. A restart between the two finds LEAVE and comes here again.
        """
        round_.ready.pop(piece.owner, None)
        round_.left.add(piece.owner)
        drop_ready(self._store, piece.name.attempt_name, piece.owner)
        _log.info("round %d: site %d leaves for a while", round_.number, piece.owner)

    def _advance(self, round_: Round, now: float) -> float | Job | None:
        """One round as far as it goes: the time of its next deadline, or a job."""
        if round_.done:
            return None
        for number, machine in round_.attempts.items():
            u3 = machine.settled()
            if u3 is not None:
                done = canon({"attempt": number, "u3": list(u3)})
                self._objects(round_.number, 0).put(kinds.DONE.name, done)
                self._metrics.count("sums_done_total", 1, self._label)
                _log.info("round %d is done over %s, attempt %d", round_.number, list(u3), number)
                return None
        abandoned = abandoning.ended(round_, self.federation.threshold)
        if abandoned is not None:
            self._objects(round_.number, 0).put(kinds.DONE.name, abandoned)
            self._metrics.count("rounds_done_total", 1, self._label)
            _log.info("round %d is done without a sum: given up by %s", round_.number, sorted(round_.abandoned))
            return None
        left = self._tidy(round_)
        if left is not None:
            return left
        if round_.open is None:
            return self._propose(round_, now)
        if round_.last not in round_.announced:
            self._objects(round_.number, 0).put(f"{kinds.ANNOUNCED.name}{round_.last}", canon({}))
        return self._drive(round_, round_.open, now)

    def _propose(self, round_: Round, now: float) -> float | None:
        """The next attempt, if the policy says so."""
        settings = self.federation.cohort
        any_base = settings.staleness > 0
        ready = {u: of for u, of in round_.ready.items() if u not in round_.abandoned}
        group = largest_group({u: fields for u, (fields, _) in ready.items()}, any_base=any_base)
        if group is None:
            return None
        opened = opened_set(round_.attempts.values())
        fields, fitting = group
        known = Situation(
            frozenset(self.federation.pins),
            self.federation.threshold,
            fields.everyone,
            {u: since for u, (_, since) in ready.items()},
            fitting,
            self.heard.alive(now) if round_.last else None,
            frozenset(opened.u3 or ()) if opened else None,
        )
        decision = decide(settings, known, now)
        if not isinstance(decision, Propose):
            return decision.until
        attempt = round_.last + 1
        if opened is not None:
            cohort = tuple((u, base) for u, base in opened.proposed.cohort if u in decision.cohort)
            m0 = replace(opened.proposed, attempt=attempt, cohort=cohort).to_bytes()
        else:
            # Another base than the group's would have every other site refuse M0; a site that differs refuses alone.
            bases = {u: round_.ready[u][0].base for u in fitting}
            like = self._objects(round_.number, 0).get(f"{kinds.READY.name}/{min(fitting)}")
            _, tensors = read_ready(like or b"")
            where = (self.federation.config, round_.number, attempt)
            m0 = proposal(*where, fields, tensors, decision.cohort, bases)
            round_.everyone[attempt] = fields.everyone
        self._machine(round_.number, attempt).propose(m0)
        self._metrics.count("attempts_total", 1, self._label)
        _log.info("round %d, attempt %d over %s", round_.number, attempt, list(decision.cohort))
        return None

    def _drive(self, round_: Round, machine: RoundMachine, now: float) -> float | Job | None:
        """The open attempt: close a set, add, give up, or wait."""
        phase, since = round_.look(now, self.federation.threshold)
        until = since + limits(self.federation.cohort)[phase]
        seen = frozenset(self._objects(round_.number, round_.last).names())
        expected, there = awaited(machine, phase)
        if round_.last in round_.suspect and phase == "masked":
            round_.suspect.discard(round_.last)
            lost = set(machine.there(kinds.M3)) - set(machine.arrived())
            if lost:  # their sites have sent all, and would not send it again
                self._give_up(round_, f"the relay's machine started again and lost the vector of site {min(lost)}")
                return now
        if phase == "results":
            return until if now < until else self._audit(round_, round_.last)
        if phase == "answers" and len(there) >= self.federation.threshold:
            return now  # they came since the phase was looked at
        complete = there == expected
        # Nobody waits for a site that has left, nor where too many have before they signed the set, nor for another
        # vector of one that sent something else than it signed.
        bad = set(machine.other_vectors()) if phase == "masked" else set()
        self._tell_bad(round_.number, round_.last, sorted(bad))
        due = now >= until or (set(expected) - set(there)) <= round_.left | bad
        due = due or (phase == "answers" and round_.never_opens(self.federation.threshold))
        if not complete and not due:
            return until
        if phase == "answers" or len(there) < self.federation.threshold or not (complete or self._may_lose(round_)):
            missing = ", ".join(str(u) for u in expected if u not in there)
            why = f"{phase}: {len(there)} of {len(expected)} sites in time, not {missing}"
            self._give_up(round_, _bad_vector(min(bad)) if bad else why, seen)
        elif phase == "keys":
            machine.close_keys()
        elif phase == "shares":
            machine.close_shares()
        else:
            return self._sum(round_, machine)
        return now  # something was written; the next turn of the step looks again

    def _may_lose(self, round_: Round) -> bool:
        """Whether an attempt makes sense over fewer sites than were proposed."""
        machine, settings = round_.attempts[round_.last], self.federation.cohort
        opened = opened_set(m for a, m in round_.attempts.items() if a != round_.last)
        return not round_.needs_all(round_.last, settings) and (opened is None or opened.u3 != machine.members)

    def _sum(self, round_: Round, machine: RoundMachine) -> Job:
        round_.adding = True

        def run() -> None:
            try:
                self._store.room_for(machine.nbytes)
                machine.close_masked()
            finally:
                round_.adding = False
                if round_.gone:
                    machine.let_go()

        def then(_: None) -> None:
            _log.info("round %d, attempt %d: added %s", round_.number, round_.last, list(machine.u3 or ()))

        return Job(f"the sum of round {round_.number}", run, then)

    def _give_up(self, round_: Round, why: str, seen: frozenset[str] | None = None) -> None:
        """`seen`: only if nothing else has come since. So a site that finds τ answers finds NEXT too, or never will."""
        objects = self._objects(round_.number, round_.last)
        if not objects.put_beside(kinds.NEXT.name, canon({"why": why}), seen):
            return
        self.times.gave_up(round_.number, why)
        self._metrics.count("attempts_given_up_total", 1, self._label)
        _log.warning("round %d, attempt %d is given up: %s", round_.number, round_.last, why)

    # --- sums of vectors that arrive

    def arriving(self, name: ObjectName) -> Accumulator | None:
        """What adds the blocks of a vector as they come; None where nobody waits for it, or for another object."""
        round_ = self.rounds.get(name.round)
        if kinds.kind_of(name) is not kinds.M3V or round_ is None or round_.open is None or round_.last != name.attempt:
            return None
        return None if round_.done else round_.open.arriving()

    def close(self) -> None:
        """Another takes these rounds up, or nobody. The caller holds the lock, and comes with nothing else after."""
        for round_ in self.rounds.values():
            round_.let_go()

    # --- what is no longer needed

    def _tidy(self, round_: Round) -> Job | None:
        """Remove the vectors and the sum of attempts that were given up, once they have been looked at."""
        for number in sorted(round_.given_up - round_.tidied):
            kept = self._store.list((self.federation.config, round_.number, number))
            machine = round_.attempts.get(number)
            if machine is not None and machine.u3 is not None and any(s.name.kind == kinds.M3V.name for s in kept):
                job = self._audit(round_, number)
                if job is not None:
                    return job
            if machine is not None:
                machine.let_go()
            drop_large(self._store, self.federation.config, round_.number, number)
            round_.tidied.add(number)
        for number in [n for n in round_.attempts if n in round_.given_up and n < round_.last - 1]:
            self._forget_attempt(round_, number)
        return None

    def _forget_attempt(self, round_: Round, number: int) -> None:
        answered = round_.attempts[number].answered()
        drop_messages(self._store, (self.federation.config, round_.number, number), answered)
        if not answered:
            del round_.attempts[number]

    def _audit(self, round_: Round, number: int) -> Job | None:
        """Find out whose vector is not the one it signed, once for an attempt."""
        if number in round_.audited:
            return None
        round_.audited.add(number)
        machine = round_.attempts[number]

        def then(found: Audit) -> None:
            self._tell_bad(round_.number, number, found.bad)
            if number in round_.given_up or round_.done:
                return
            if found.bad:
                self._give_up(round_, _bad_vector(found.bad[0]))
            elif found.differs:
                _log.error("round %d, attempt %d: the sum is not that of the vectors kept here", round_.number, number)
                self._give_up(round_, "the sum is not that of the vectors: this relay's memory or disk")

        return Job(f"a look at the vectors of round {round_.number}", machine.audit, then)

    def _tell_bad(self, round_: int, attempt: int, bad: Iterable[int]) -> None:
        """Once for each vector: in the log, in a counter, to whoever asks."""
        new = [(round_, attempt, u) for u in bad if (round_, attempt, u) not in self.bad_vectors]
        for _, _, u in new:
            _log.error("round %d, attempt %d: site %d signed another vector", round_, attempt, u)
        self.bad_vectors = [*self.bad_vectors, *new][-KEPT_BAD:]
        self._metrics.count("bad_vectors_total", len(new), self._label)

    def _over(self, number: int, done: bytes | None) -> None:
        """Round `number` is done."""
        if number > self.done and done is not None:
            self.paces.round_done()
            self.done, self._holders = number, tuple(parse_canon(done)["u3"])
        for machine in self.rounds[number].attempts.values():
            machine.let_go()
        drop_large(self._store, self.federation.config, number, None, also_sum=False)
        self._store.drop_rounds(self.federation.config, self.done - self.kept_rounds + 1)
        for old in [n for n in self.rounds if n <= self.done - self.kept_rounds]:
            self.rounds.pop(old).let_go()  # the sites may have left it half added
        for old in [n for n in self.rounds if n <= self.done - KEPT_ROUNDS]:
            drop_large(self._store, self.federation.config, old, None)

    def _round(self, number: int) -> Round:
        return self.rounds.setdefault(number, Round(number))

    def _machine(self, round_: int, attempt: int) -> RoundMachine:
        sites, threshold = self.federation.numbers, self.federation.threshold
        return RoundMachine(self._objects(round_, attempt), sites, threshold, memory=self._memory)

    def _objects(self, round_: int, attempt: int) -> KeptAttempt:
        return KeptAttempt(self._store, (self.federation.config, round_, attempt), self.federation.suite)


def _bad_vector(site: int) -> str:
    return f"the vector of site {site} is not the one that its M3 names"


_TAKEN: dict[Kind, Callable[[FederationRounds, Round, Piece, float], None]] = {
    kinds.READY: FederationRounds._take_ready,
    kinds.LEAVE: FederationRounds._take_leave,
    kinds.ABANDON: FederationRounds._take_abandon,
    kinds.ANNOUNCED: FederationRounds._take_announced,
    kinds.DONE: FederationRounds._take_done,
    kinds.M0: FederationRounds._take_proposal,
    kinds.NEXT: FederationRounds._take_next,
}
"""What moves a round as soon as it is there. Messages of an attempt are looked at by its machine."""
