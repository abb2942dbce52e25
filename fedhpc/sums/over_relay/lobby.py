"""The lobby of a round: this site says what it is ready for, and waits until it is proposed."""

from __future__ import annotations

import time
from typing import NoReturn

from fedhpc.errors import InterruptedRun, PeersError
from fedhpc.federation.party import Party, RoundOverError, SumPlan
from fedhpc.secure.ring import Layout
from fedhpc.secure.transcript import canon
from fedhpc.sums.over_relay.exchange import RelayExchange, TooLateError, Watch, too_late
from fedhpc.sums.over_relay.skip import KIND, Skip
from fedhpc.sums.over_relay.waiting import late_sites, wait_telling
from fedhpc.wire import kinds

_LOOK_S = 1.0


class Lobby:
    """One site in the lobby of one round."""

    def __init__(self, party: Party, exchange: RelayExchange, plan: SumPlan, layout: Layout, skip: Skip) -> None:
        self._party, self._exchange, self._plan, self._layout, self._skip = party, exchange, plan, layout, skip
        self._awaited = (KIND if skip.allowed else "DONE", 1)  # the relay's own turns end every wait
        self._watch = exchange.watch(plan.round_, 0)

    def be_ready(self, *, ahead: bool) -> None:
        """Tell the relay what this site would put into M0. `ahead`: ask for the proposal at the same time.

        Raises TooLateError if the round is over.
        """
        plan = self._plan
        if ahead:
            self._watch.ahead(*self._awaited)
        body = {
            "base": plan.base.hex(),
            "everyone": int(plan.everyone),
            "layout": self._layout.hash_under(plan.layout_key).hex(),
            "purpose": plan.purpose,
            "state": plan.state.hex(),
            "tensors": [list(shape) for shape in self._layout.shapes()],
        }
        self._exchange.put(plan.round_, 0, "READY", canon(body))

    def come_back(self, attempt: int) -> None:
        """After this site's keys of the open `attempt` are lost: it is ready for the next one, and not waited for now.

        Returns once that attempt has ended, or the round; raises TooLateError like `be_ready`.
        """
        round_, exchange = self._plan.round_, self._exchange
        exchange.leave(round_)
        watch = exchange.watch(round_, attempt)
        while not watch.wait(lambda w: "NEXT" in w, time.monotonic() + _LOOK_S):
            if self._watch.wait(lambda w: _newest(w) > attempt or "DONE" in w, time.monotonic() + _LOOK_S):
                return
            self._skip.look(self._watch)
        self.be_ready(ahead=False)

    def next_attempt(self, after: int) -> int:
        """The newest attempt of the round that was proposed after attempt `after`.

        Raises RoundOverError if the round ended without this site, DoWithoutError if it does without the sum now,
        PeersError that names the sites that are late.
        """
        agreed_s, own_s = self._party.agreement.cohort.deadline_s, self._exchange.interrupts.wait_s
        deadline_s = agreed_s if own_s is None else min(agreed_s, own_s)
        deadline = min(time.monotonic() + deadline_s, self._skip.deadline)

        def seen(watch: Watch) -> bool:
            return _newest(watch) > after or "DONE" in watch or (self._skip.allowed and bool(watch.sites(KIND)))

        found = wait_telling(self._watch, seen, deadline, self._what_is_awaited, self._awaited)
        if _newest(self._watch) > after:
            return _newest(self._watch)
        if "DONE" not in self._watch:
            self._skip.look(self._watch)
        if found:
            raise RoundOverError(self._plan.round_, f"round {self._plan.round_} ended without site {self._party.name}")
        late = self._who_is_late()
        if own_s is not None:
            raise InterruptedRun(f"round {self._plan.round_} did not begin within {deadline_s:.0f} s: {late}")
        raise PeersError(
            f"round {self._plan.round_} did not begin within {deadline_s:.0f} s: {late}",
            "start this site again when the others are there; [cohort] deadline_s says how long it waits",
        )

    def _what_is_awaited(self) -> str:
        return f"round {self._plan.round_} ({self._plan.purpose}) has not begun, {self._who_is_late()}"

    def _who_is_late(self) -> str:
        return late_sites(self._exchange, self._party.agreement.names, self._plan.round_) + self._exchange.at


def explain_lost_sum(exchange: RelayExchange, round_: int, attempt: int) -> NoReturn:
    """Raise TooLateError if the others have gone on long since, PeersError if the attempt was given up."""
    with too_late():
        done = exchange.client.get(exchange.name(round_, 0, "DONE"))
    if done is not None:
        raise TooLateError("round-over", "the relay no longer keeps its sum")
    raise PeersError(
        f"round {round_}: the relay no longer has the sum of attempt {attempt}",
        "start this site again: it goes on with the next attempt over the same sites",
    )


def _newest(watch: Watch) -> int:
    return max(map(kinds.announced, watch.names), default=0)
