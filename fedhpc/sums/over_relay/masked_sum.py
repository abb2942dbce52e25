"""Masked sums through an untrusted relay (`https` exchange): every rank's share of the work.

The leader goes through the protocol (over_relay/round.py) and gives orders to the ranks of its site: hide and upload,
fetch and open. Each rank moves its own part of the vector over its own connections.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
from typing_extensions import override

from fedhpc.errors import InternalError, InterruptedRun, PolicyError
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.finished_sums import FinishedSums
from fedhpc.federation.input_check import codec_of, inspect, refuse_other_vector, share
from fedhpc.federation.party import NEXT_EPOCH, NO_BASE, CaughtUp, MaskedSums, Opened, Party, RoundOverError, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector, parts
from fedhpc.secure import labels
from fedhpc.secure.catch_up_messages import CommonKnowledge
from fedhpc.secure.ledger import Mark, OtherVectorError
from fedhpc.secure.thresholds import Thresholds
from fedhpc.secure.transcript import input_hash, tree_root, u64
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.over_relay.acceptable_bases import KnownStates
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.catch_up import Attendant, release_input, take
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.sums.over_relay.orders import (
    Answer,
    HideOrder,
    OpenOrder,
    Order,
    SumFetch,
    SumResult,
    Upload,
    end_if_stopped,
)
from fedhpc.sums.over_relay.parts import fetch_part, upload_part
from fedhpc.sums.over_relay.round import RelayedRound
from fedhpc.sums.over_relay.standing_aside import StandingAside
from fedhpc.transport.transport import Transport

_CLOSED = ("round-over", "too-late", "forbidden")


@dataclass(frozen=True)
class Lead:
    """What only the leader of a site has."""

    exchange: RelayExchange
    files: AttemptFiles
    finished: FinishedSums
    thresholds: Thresholds
    states: KnownStates


class RelayedSums(MaskedSums):
    """Sums over sites that meet at a relay."""

    name = "https"

    def __init__(self, party: Party, client: Transport, rails: int, lead: Lead | None) -> None:
        """`client`: this rank's own. `rails`: ranks of this site that move a part. `lead`: at the leader."""
        self._party, self._client, self.rails, self.lead = party, client, rails, lead
        self._round: RelayedRound | None = None  # at the leader, of the sum that is open
        self._attendant: Attendant | None = None
        self._turns = (0, 0)  # of the last sum, at the leader
        self._uncovered, self._salt = 0, b""  # a settled round whose checkpoint is not written yet; S of the last sum
        self._hides = party.agreement.secure.mode != "off"

    @override
    def of(self, party: Party) -> RelayedSums:
        return RelayedSums(party, self._client, self.rails, self.lead)

    # --- one sum

    @override
    def open(self, vector: Vector, plan: SumPlan, *, digest: bool = True) -> Opened:
        """Raises RoundOverError, on every rank, if the round ended without this site."""
        party, layout, stages = self._party, vector.layout, Stages()
        everyone = tuple(m.number for m in party.members)
        begun = time.perf_counter()
        share(party, vector, plan)
        if layout.nbytes == 0:
            self._round = None
            return Opened(plan, tree_root(0, []), stages, 0, 0, everyone, b"")
        my_part = (*parts(layout.nbytes, self.rails), *[(0, 0)] * party.site.size)[party.site.rank]
        stages.share = _lap(begun)
        begun = time.perf_counter()
        mark = inspect(party, vector, plan, my_part)
        stages.ledger = _lap(begun)
        traffic = self._client.traffic
        up, down = traffic.bytes_up, traffic.bytes_down
        engine = BlockEngine(vector, my_part, lambda: codec_of(party, plan))
        result = self._conduct(engine, plan, mark, stages) if party.leads else self._follow(engine, plan, stages)
        begun = time.perf_counter()
        if party.site.size > 1:
            party.site.gather_parts(vector.whole(), parts(layout.nbytes, self.rails))
        stages.share += _lap(begun)
        moved = traffic.bytes_up - up, traffic.bytes_down - down
        return Opened(plan, result.sum_tree, stages, *moved, result.members, vector.salt.tobytes(), *self._turns)

    @override
    def settle(self, opened: Opened, state: bytes) -> None:
        """When it returns, the site holds τ signatures over one result.

        Raises RoundOverError, on every rank, if the others have long gone on and no longer sign this round.
        """
        party = self._party
        begun = time.perf_counter()
        if party.leads and self._round is not None:
            assert self.lead is not None
            try:
                proof = self._round.settle(opened.sum_tree, state)
            except RoundOverError as error:
                self._end_without(opened.plan, error)
            except InterruptedRun as stopped:
                self._stop(stopped)
            if opened.plan.base != NO_BASE:
                self.lead.finished.keep_proof(opened.plan.round_, proof)
            if not opened.plan.checkpointed:
                self.lead.finished.keep(opened.plan, opened, self._round.vector, self._round.mark.fingerprint)
            self._round = None
        if party.leads:
            assert self.lead is not None
            self.lead.states.reached(opened.plan.round_, state)
            self._erase_keys(opened.plan, opened.salt)
        word = party.site.await_bytes(Order.DONE if party.leads else None)
        if word[:1] == Order.OVER and not party.leads:
            raise RoundOverError(opened.plan.round_, word[1:].decode())
        end_if_stopped(word)
        opened.stages.agree += _lap(begun)

    def _erase_keys(self, plan: SumPlan, salt: bytes = b"") -> None:
        """The round is settled: its keys go once the result is durable here, in `sums/` or by a checkpoint."""
        assert self.lead is not None
        if not plan.skip:  # some sites may hold a sum that others skipped
            self._salt = salt
        if plan.checkpointed:
            self._uncovered = plan.round_
        elif not self._uncovered:
            self.lead.files.erase_until(plan.round_)

    # --- the other calls of MaskedSums

    @override
    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        """Each site compares with all that came before it."""
        assert self.lead is not None
        exchange = self.lead.exchange
        exchange.put(0, 0, topic, message or b"-")
        watch = exchange.watch(0, 0)
        watch.wait(lambda w: f"{topic}/{exchange.me}" in w, time.monotonic() + 60)
        return {u: b"" if m == b"-" else m for u, m in watch.messages(topic, watch.sites(topic)).items()}

    @override
    def common_round(self, held: list[int]) -> int | None:
        """A site goes on from its own newest; the others' is found by catching up."""
        return max(held) if held else None

    @override
    def attend(self, store: CheckpointStore) -> None:
        assert self.lead is not None
        assert self._party.identity is not None
        self._attendant = Attendant(self._known(0), self.lead.exchange, self._party.identity, self.lead.finished)
        self._attendant.start(store)

    @override
    def catch_up(self, state: bytes, round_: int, nbytes: int) -> CaughtUp:
        """An input of this site in the round that ended without it is free again."""
        site, lead = self._party.site, self.lead
        data = np.empty(nbytes, dtype=np.uint8)
        number = b""
        if lead is not None:
            assert self._party.identity is not None
            deadline_s = self._party.agreement.cohort.deadline_s
            try:
                known = self._known(nbytes)
                aside = StandingAside(self._party, lead.exchange, lead.thresholds)
                caught, found = take(known, lead.exchange, self._party.identity, state, round_, deadline_s, aside.look)
            except InterruptedRun as stopped:
                self._stop(stopped)
            lead.finished.keep_proof(caught.round_, caught.settled.proof)
            release_input(self._party, lead.files, caught)
            lead.states.reached(caught.round_, caught.state)
            data[:] = found
            whole = len(caught.settled.u3) == len(self._party.members)
            number = Order.DONE + bytes([whole]) + u64(caught.round_)
        word = site.await_bytes(number if lead is not None else None)
        end_if_stopped(word)
        reached = int.from_bytes(word[2:], "little")
        site.broadcast(data)
        return CaughtUp(reached, data, whole=word[1:2] == b"\1")

    @override
    def is_free(self, base: bytes) -> bool:
        taken = b""
        if self._party.leads:
            assert self._party.journal is not None
            taken = b"\1" if self._party.journal.ledger.round_of(input_hash(labels.PURPOSE_TRAIN, base)) else b"\0"
        return self._party.site.await_bytes(taken or None) == b"\0"

    def _known(self, nbytes: int) -> CommonKnowledge:
        assert self.lead is not None
        return CommonKnowledge(self._party.agreement.hash, self._party.members, self.lead.thresholds, nbytes)

    @override
    def keep_until(self, sums: int, *, given: bool = True) -> None:
        """What no other site can give is kept beside the ledger."""
        assert self.lead is not None
        self.lead.files.erase_until(sums)
        self.lead.finished.erase_until(sums, self._salt, beside=given)
        self._uncovered = 0

    @override
    def hear(self, word: str) -> str:
        """Asks the ranks of this site only; other sites have their own jobs."""
        return next((w for w in self._party.site.gather_bytes(word.encode()) if w), b"").decode()

    @override
    def leave(self, *, refused: bool = False) -> None:
        """Erases keys that can open nothing; other sites do not wait for one that is not ready."""
        if self.lead is not None:
            self.lead.files.erase_unsent()
        if self._attendant is not None:
            self._attendant.stop()
        self._client.close()

    # --- the leader

    def _conduct(self, engine: BlockEngine, plan: SumPlan, mark: Mark, stages: Stages) -> SumResult:
        """Go through the round; the other ranks do what they are told."""
        party, lead = self._party, self.lead
        assert lead is not None
        if plan.skip and (lead.finished.is_skipped(plan) or (plan.absent and lead.finished.holds(plan))):
            self._end_without(plan, RoundOverError(plan.round_, f"the sites did without '{plan.purpose}'"))
        kept = None
        try:
            if not plan.absent:
                kept = lead.finished.find(plan, engine.vector, mark.fingerprint)
                refuse_other_vector(party, plan, mark)
        except OtherVectorError as other:
            plan = self._sit_out(plan, other)
        if kept is not None:
            self._order(Order.KEPT)
            party.site.broadcast(engine.vector.whole())
            self._round = None
            result = SumResult(*kept)
            self._order(Order.DONE + result.to_bytes())
            return result

        def hide(attempt: int, streams: tuple[tuple[bytes, int], ...], tag_key: bytes, resume: bool) -> Upload | None:
            order = HideOrder(attempt, resume, tag_key, streams if self._hides else ())
            self._order(order.to_bytes())
            return upload_part(self._party, self._client, engine, plan, order, stages)

        def open_(attempt: int, streams: tuple[tuple[bytes, int], ...], tag_key: bytes) -> SumFetch | None:
            order = OpenOrder(attempt, tag_key, streams if self._hides else ())
            self._order(order.to_bytes())
            return fetch_part(self._party, self._client, engine, plan, order, stages)

        self._round = RelayedRound(party, lead.exchange, lead.files, lead.thresholds, plan, engine.vector, mark)
        lead.states.reached(plan.round_ - 1, plan.state)
        try:
            answer: Answer = self._round.run(hide, open_, lead.states)
        except RoundOverError as error:
            self._end_without(plan, error)
        except InterruptedRun as stopped:
            lead.exchange.leave(plan.round_)
            if stopped.agreed:
                raise
            self._stop(stopped)
        stages.agree += answer.waited_s
        result = SumResult(answer.sum_tree, answer.members)
        self._order(Order.DONE + result.to_bytes())
        self._turns = answer.turns, answer.turns_exposed
        return result

    def _end_without(self, plan: SumPlan, over: RoundOverError) -> NoReturn:
        """The round has ended without a sum here. What may be skipped is skipped then, for good."""
        assert self.lead is not None
        if plan.skip:
            self.lead.finished.keep_skipped(plan)
            self._erase_keys(plan)
            self.lead.states.reached(plan.round_, plan.following)
        if self._attendant is None:  # a program of the user's own: the main loop catches up
            over.hint = (
                "a script takes no later model from the others: where it cannot do without this sum, all sites begin "
                "anew in the next epoch: `fedhpc federation next --again`"
            )
        if plan.round_ <= self.lead.finished.first().round_:
            over.hint = "it was kept until a checkpoint or `fed.forget()`: start from what was saved then"
        self._order(Order.OVER + over.what.encode())
        raise over

    def _sit_out(self, plan: SumPlan, other: OtherVectorError) -> SumPlan:
        """What this site put into the round it cannot put in again: the round goes on without it.

        Gives the plan to do without the sum; raises RoundOverError where the others can end the round, so that this
        site catches up then, and PolicyError where nobody can.
        """
        assert self.lead is not None
        if plan.skip:
            return replace(plan, absent=True)
        if self._attendant is None:  # a program of the user's own: it would not catch up
            raise PolicyError(other.what, other.hint)
        if plan.everyone or self.lead.thresholds.threshold == len(self._party.members):
            as_before = "start it again as the round was begun, with the same ranks, threads, device and data"
            alone = "if that gives other numbers too, the others cannot end the round without this site"
            raise PolicyError(other.what, f"{as_before}; {alone}: {NEXT_EPOCH}")
        self._end_without(plan, RoundOverError(plan.round_, f"{other.what}; this site sits the round out"))

    def _stop(self, stopped: InterruptedRun) -> NoReturn:
        """The leader leaves, and every rank of the site with it."""
        self._order(Order.STOP + stopped.what.encode())
        raise InterruptedRun(stopped.what, agreed=True) from None

    def _order(self, order: bytes) -> None:
        self._party.site.await_bytes(order)

    # --- every rank

    def _follow(self, engine: BlockEngine, plan: SumPlan, stages: Stages) -> SumResult:
        site = self._party.site
        while True:
            order = site.await_bytes(None)
            kind, rest = order[:1], order[1:]
            if kind == Order.HIDE:
                upload_part(self._party, self._client, engine, plan, HideOrder.from_bytes(order), stages)
            elif kind == Order.OPEN:
                fetch_part(self._party, self._client, engine, plan, OpenOrder.from_bytes(order), stages)
            elif kind == Order.KEPT:
                site.broadcast(engine.vector.whole())
            elif kind == Order.OVER:
                raise RoundOverError(plan.round_, rest.decode())
            elif kind == Order.STOP:
                end_if_stopped(order)
            elif kind == Order.DONE:
                return SumResult.from_bytes(rest)
            else:
                raise InternalError("an unknown order within the site")


def _lap(begun: float) -> float:
    return time.perf_counter() - begun
