"""The way out of a round over everyone that a site can do without: ABANDON, and τ sites behind one next state.

A statistic leaves the tensors as they are, so its next state is known beforehand: M6 of a site that holds the sum and
ABANDON of one that does without it name the same one, and count together.
"""

from __future__ import annotations

import logging
import math
import time

from fedhpc.errors import InterruptedRun, PeersError, PolicyError
from fedhpc.federation.party import Party, SumPlan
from fedhpc.secure import labels
from fedhpc.secure.ledger import NO_SET, LedgerEntry, Mark
from fedhpc.secure.results import RoundResults, Settled, abandon
from fedhpc.secure.thresholds import Thresholds
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.exchange import RelayExchange, TooLateError, Watch
from fedhpc.sums.over_relay.waiting import late_sites, wait_telling
from fedhpc.wire import kinds

_log = logging.getLogger("fedhpc.federation")
KIND = kinds.ABANDON.name
_LOOK_S = 1.0


class DoWithoutError(Exception):
    """This site does without the sum of this round now."""


class Skip:
    """One site's leader in one round: until when it wants the sum, and how it leaves without."""

    def __init__(
        self, party: Party, exchange: RelayExchange, files: AttemptFiles, thresholds: Thresholds, plan: SumPlan
    ) -> None:
        self._party, self._exchange, self._files, self._thresholds = party, exchange, files, thresholds
        self._plan = plan
        self.allowed = plan.skip
        self.deadline = time.monotonic() + party.agreement.cohort.upload_s if plan.skip else math.inf

    def look(self, lobby: Watch | None = None) -> None:
        """Raise DoWithoutError if it is time to, or if another site does without: then there will be no sum."""
        if time.monotonic() >= self.deadline or (self.allowed and lobby is not None and lobby.sites(KIND)):
            raise DoWithoutError

    def abandon(self, mark: Mark) -> Settled:
        """Sign ABANDON, and wait until τ sites stand behind the next state. `mark`: of the vector.

        An absent site may have put a vector into this round that it no longer has: the ledger knows.
        Raises TooLateError if the others have gone on, PeersError if too few sites do without the sum.
        """
        plan, party = self._plan, self._party
        assert party.identity is not None
        assert party.journal is not None
        before = party.journal.ledger.entry_of(plan.round_)
        if plan.absent and before is not None:
            mark = Mark(before.fingerprint, before.category, before.value, before.everyone, before.data)
        entry = LedgerEntry(plan.round_, plan.purpose, plan.input, mark.fingerprint, NO_SET)
        disk = self._files.disk(plan.round_, mark)
        mine = abandon(party.identity, party.number, disk, entry, plan.state, plan.following)
        _log.info("round %d (%s): this site does without the sum", plan.round_, plan.purpose)
        watch = self._exchange.watch(plan.round_, 0)
        watch.ahead("DONE")
        self._put(mine)
        return self._await(watch, mine)

    def _put(self, mine: bytes) -> None:
        """Once somebody is ready for the round: a site that is absent may be there first."""
        end = time.monotonic() + self._wait_s()
        while True:
            try:
                return self._exchange.put(self._plan.round_, 0, KIND, mine)
            except TooLateError as error:
                if error.kind == "round-over":
                    raise
                return
            except PolicyError as error:
                if not self._plan.absent or "forbidden" not in error.what or time.monotonic() > end:
                    raise
            why = self._exchange.interrupts.idle()
            if why:
                raise InterruptedRun(f"left while it waited for other sites: {why}")
            time.sleep(_LOOK_S)

    def _wait_s(self) -> float:
        """How long to wait for others: as agreed, or as long as this job may."""
        agreed_s, own_s = self._party.agreement.cohort.deadline_s, self._exchange.interrupts.wait_s
        return agreed_s if own_s is None else min(agreed_s, own_s)

    def _await(self, watch: Watch, mine: bytes) -> Settled:
        results = RoundResults(self._party.members, self._thresholds, self._plan.state)
        results.receive(mine)
        taken = {self._party.number}
        deadline = time.monotonic() + self._wait_s()
        need = self._thresholds.threshold

        def seen(watch: Watch) -> bool:
            return "DONE" in watch or len(taken.union(watch.sites(KIND))) >= need

        while True:
            need = max(need, len(taken) + 1)
            there = wait_telling(watch, seen, deadline, self._what_is_awaited, (KIND, need))
            new = set(watch.sites(KIND)) - taken
            self._take(results, watch.messages(KIND, sorted(new)))
            taken |= new
            settled = results.settled()
            if settled is None and "DONE" in watch:
                self._take_results(results, watch)
                settled = results.settled()
            if settled is not None:
                return settled
            if "DONE" in watch:
                # One of those whom the relay counted signed nothing that holds. The next state is known all the same,
                # and a relay could always say that the round is over.
                raise TooLateError("round-over", "the others do without its sum")
            if there:
                continue
            what = f"round {self._plan.round_}: too few sites do without the sum '{self._plan.purpose}'"
            if self._exchange.interrupts.wait_s is not None:
                raise InterruptedRun(what)
            raise PeersError(what, "start this site again when the others are there")

    def _take_results(self, results: RoundResults, watch: Watch) -> None:
        """M6 of every attempt: some of those whom the relay counted hold the sum."""
        for attempt in sorted(filter(None, map(kinds.announced, watch.names))):
            entries, _ = self._exchange.listing(self._plan.round_, attempt, "", 0.0)
            messages: dict[int, bytes] = {}
            for entry in entries:
                kind, _, site = entry.name.partition("/")
                if kind == labels.SIGN_RESULT and site.isdigit():
                    name = self._exchange.name(self._plan.round_, attempt, entry.name)
                    body = entry.body if entry.body is not None else self._exchange.client.get(name)
                    if body is not None:
                        messages[int(site)] = body
            self._take(results, messages)

    def _take(self, results: RoundResults, messages: dict[int, bytes]) -> None:
        for message in messages.values():
            try:
                results.receive(message)
            except PolicyError as error:
                _log.warning("round %d: %s", self._plan.round_, error.what)

    def _what_is_awaited(self) -> str:
        plan, need = self._plan, self._thresholds.threshold
        late = late_sites(self._exchange, self._party.agreement.names, plan.round_)
        what = f"round {plan.round_} ({plan.purpose}) ends without a sum once {need} sites do without it"
        return f"{what}, {late}{self._exchange.at}"
