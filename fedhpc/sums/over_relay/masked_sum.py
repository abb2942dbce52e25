"""Masked sums through an untrusted relay (`https` exchange): every rank's share of the work.

The leader goes through the protocol (over_relay/round.py) and gives orders to the ranks of its site: hide and upload,
fetch and open. Each rank moves its own part of the vector over its own connections.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from typing_extensions import override

from fedhpc.errors import InternalError, InterruptedRun, PolicyError
from fedhpc.federation.input_check import codec_of, refuse_other_vector
from fedhpc.federation.other_sites import Summing
from fedhpc.federation.party import NEXT_EPOCH, Checked, Opened, Party, RoundOverError, Summed, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure.ledger import Mark, OtherVectorError
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.over_relay.kept_vector import give_parts, is_gathered, whole_at_leader
from fedhpc.sums.over_relay.lead import Lead
from fedhpc.sums.over_relay.orders import (
    Answer,
    HideOrder,
    OpenOrder,
    Order,
    SumFetch,
    SumResult,
    Upload,
    end_if_stopped,
    stop_site,
)
from fedhpc.sums.over_relay.parts import fetch_part, upload_part
from fedhpc.sums.over_relay.recovery import RelayRecovery
from fedhpc.sums.over_relay.round import RelayedRound
from fedhpc.transport.transport import Transport

_CLOSED = ("round-over", "too-late", "forbidden")


class RelayedSums(Summing):
    """Sums over sites that meet at a relay."""

    name = "https"

    def __init__(self, party: Party, client: Transport, rails: int, lead: Lead | None, recovery: RelayRecovery) -> None:
        """`client`: this rank's own. `rails`: ranks of this site that move a part. `lead`: at the leader."""
        self._party, self._client, self.rails, self.lead, self._recovery = party, client, rails, lead, recovery
        self._round: RelayedRound | None = None  # at the leader, of the sum that is open
        self._turns = (0, 0)  # of the last sum, at the leader
        self._vector: Vector | None = None  # of the sum that is open
        self._hides = party.agreement.secure.mode != "off"

    @override
    def open(self, checked: Checked, stages: Stages) -> Summed:
        """Raises RoundOverError, on every rank, if the round ended without this site."""
        party, plan, traffic = self._party, checked.plan, self._client.traffic
        up, down = traffic.bytes_up, traffic.bytes_down
        self._vector = checked.vector
        engine = BlockEngine(checked.vector, checked.part, lambda: codec_of(party, plan), suite=party.suite_of(plan))
        if party.leads:
            result = self._conduct(engine, plan, checked.mark, stages)
        else:
            result = self._follow(engine, plan, stages)
        moved = traffic.bytes_up - up, traffic.bytes_down - down
        return Summed(result.sum_tree, *moved, result.members, *self._turns)

    @override
    def settle(self, opened: Opened, state: bytes) -> None:
        """When it returns, the site holds τ signatures over one result.

        Raises RoundOverError, on every rank, if the others have long gone on and no longer sign this round.
        """
        site, whole = self._party.site, self._vector
        self._vector = None
        if whole is not None and is_gathered(site, opened.plan):
            whole = whole_at_leader(site, whole)
        with opened.stages.timed("agree"):
            if self._party.leads:
                self._settle(opened, state, whole)
            word = self._party.site.await_bytes(Order.DONE if self._party.leads else None)
        if word[:1] == Order.OVER and not self._party.leads:
            raise RoundOverError(opened.plan.round_, word[1:].decode())
        end_if_stopped(word)

    def _settle(self, opened: Opened, state: bytes, vector: Vector | None) -> None:
        """The leader's part, after which nothing is kept that a restart can do without. `vector`: the sum."""
        assert self.lead is not None
        if self._round is not None:
            assert vector is not None
            try:
                proof = self._round.settle(opened.sum_tree, state)
            except RoundOverError as error:
                self._end_without(opened.plan, error)
            except InterruptedRun as stopped:
                stop_site(self._party.site, stopped)
            self.lead.retention.keep(opened, vector, self._round.mark.fingerprint, proof)
            self._round = None
        self.lead.states.reached(opened.plan.round_, state)
        self.lead.retention.settled(opened.plan, opened.salt)

    @override
    def covered(self, sums: int, *, given: bool = True) -> None:
        """What no other site can give is kept beside the ledger."""
        assert self.lead is not None
        self.lead.retention.covered(sums, given=given)

    @override
    def leave(self) -> None:
        assert self.lead is not None
        self.lead.retention.leave()

    # --- the leader

    def _conduct(self, engine: BlockEngine, plan: SumPlan, mark: Mark, stages: Stages) -> SumResult:
        """Go through the round; the other ranks do what they are told."""
        party, lead = self._party, self.lead
        assert lead is not None
        if plan.skip and (lead.finished.is_skipped(plan) or (plan.absent and lead.finished.holds(plan))):
            self._end_without(plan, RoundOverError(plan.round_, f"the sites did without '{plan.purpose}'"))
        kept, vector = None, engine.vector
        if is_gathered(party.site, plan):
            vector = Vector(vector.layout)
        try:
            if not plan.absent:
                kept = lead.finished.find(plan, vector, mark.fingerprint)
                refuse_other_vector(party, plan, mark)
        except OtherVectorError as other:
            plan = self._sit_out(plan, other)
        if kept is not None:
            self._order(Order.KEPT)
            self._share_kept(plan, engine.vector, vector)
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
            stop_site(party.site, stopped)
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
            self.lead.retention.settled(plan)
            self.lead.states.reached(plan.round_, plan.following)
        if not self._recovery.serves:  # a program of the user's own: the main loop catches up
            over.hint = (
                "a script takes no later model from the others: where it cannot do without this sum, all sites begin "
                "anew in the next epoch: `fedhpc federation next --again`"
            )
        if plan.round_ <= self.lead.finished.first().round_:
            over.hint = "it was kept until a checkpoint or `fed.forget()`: start from what was saved then"
        self._order(Order.OVER + over.what.encode())
        raise over

    def _sit_out(self, plan: SumPlan, other: OtherVectorError) -> SumPlan:
        """This site cannot repeat the vector that it put into the round, which goes on without it.

        Returns the plan to do without the sum. Raises RoundOverError where the others can end the round, so that this
        site then catches up, and PolicyError where they cannot.
        """
        assert self.lead is not None
        if plan.skip:
            return replace(plan, absent=True)
        if not self._recovery.serves:  # a program of the user's own: it would not catch up
            raise PolicyError(other.what, other.hint)
        if plan.everyone or self.lead.thresholds.threshold == len(self._party.members):
            as_before = "start it again as the round was begun, with the same ranks, threads, device and data"
            alone = "if that gives other numbers too, the others cannot end the round without this site"
            raise PolicyError(other.what, f"{as_before}; {alone}: {NEXT_EPOCH}")
        self._end_without(plan, RoundOverError(plan.round_, f"{other.what}; this site sits the round out"))

    def _share_kept(self, plan: SumPlan, vector: Vector, whole: Vector) -> None:
        """Give all ranks what they hold of a sum that the leader has found, `whole`."""
        if is_gathered(self._party.site, plan):
            give_parts(self._party.site, vector, whole)
        else:
            self._party.site.broadcast(vector.whole())

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
                self._share_kept(plan, engine.vector, engine.vector)
            elif kind == Order.OVER:
                raise RoundOverError(plan.round_, rest.decode())
            elif kind == Order.STOP:
                end_if_stopped(order)
            elif kind == Order.DONE:
                return SumResult.from_bytes(rest)
            else:
                raise InternalError("an unknown order within the site")
