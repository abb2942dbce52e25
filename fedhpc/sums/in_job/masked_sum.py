"""Masked sums inside one MPI job, step by step as the protocol has it (`mpi` exchange).

Ledger, keys, pipeline, result. The vector that comes here is checked and has its fingerprint (federation/session.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from fedhpc.errors import DataError, InternalError
from fedhpc.federation.input_check import codec_of
from fedhpc.federation.other_sites import Summing
from fedhpc.federation.party import Checked, Opened, Party, SumKind, Summed, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure import transcript_chain
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.pairwise import PairwiseAttempt, refuse_difference
from fedhpc.secure.proposal import Proposal, one_base
from fedhpc.secure.transcript import HASH_BYTES
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.in_job.pipeline import Pipeline
from fedhpc.sums.in_job.segments import carried
from fedhpc.sums.streams import Streams, streams_from_bytes, streams_to_bytes


class MpiSums(Summing):
    """Sums over sites that are all in this job. Nothing is kept of them: a killed job repeats its sums."""

    def __init__(
        self, party: Party, exchange: Exchange, pipeline: Pipeline, *, rails: Sequence[int], attempt: int
    ) -> None:
        """`rails`: the ranks of each site that carry a part of the vector. `attempt`: names this start of the job."""
        self.name = exchange.name
        self._party, self._exchange, self._pipeline = party, exchange, pipeline
        self._rails, self._attempt_number = tuple(rails), attempt
        self.rails = self._rails[party.number - 1]
        self._attempt: PairwiseAttempt | None = None  # of the sum that is open

    @override
    def open(self, checked: Checked, stages: Stages) -> Summed:
        party, plan, vector = self._party, checked.plan, checked.vector
        everyone = tuple(m.number for m in party.members)
        if party.leads and party.masked:
            assert party.journal is not None
            with stages.timed("ledger"):
                entry = LedgerEntry(plan.round_, plan.purpose, plan.input, checked.mark.fingerprint, everyone)
                party.journal.admit(checked.mark.on(entry))
        with stages.timed("agree"):
            streams, message_bytes = self._agree(vector, plan)
        own = carried(vector.layout.nbytes, self._rails, party.number - 1, party.site.rank)
        suite = party.suite_of(plan)
        digests = self._pipeline.run(vector, own, lambda: codec_of(party, plan), streams, stages, suite)
        tree = b""
        if suite is not None:
            with stages.timed("share"):
                tree = suite.root(vector.layout.nbytes, party.site.gather_bytes(b"".join(digests)))
        moved = vector.layout.nbytes + message_bytes
        return Summed(tree, moved, moved, everyone)

    @override
    def settle(self, opened: Opened, state: bytes) -> None:
        """A training round's M6 is signed, as proof of the model that all went on from; a statistic's is only compared,
        since the model stays and a signature from each site would take longer than the rest of a small sum.
        """
        party = self._party
        if not party.leads or len(party.members) == 1:
            return
        with opened.stages.timed("agree"):
            message = self._compare(opened, state)
        opened.bytes_up += len(message)
        opened.bytes_down += len(message)

    def _compare(self, opened: Opened, state: bytes) -> bytes:
        """Compare M6 with those of the other leaders; what this one sent."""
        party = self._party
        if self._attempt is None or opened.plan.kind is SumKind.STATISTIC:
            message = opened.sum_tree + state
            for member, result in zip(party.members, self._exchange.gather(message), strict=True):
                if result != message:
                    other = "sum" if result[:-HASH_BYTES] != message[:-HASH_BYTES] else "state"
                    raise DataError(
                        f"site {member.name} has another {other} after "
                        f"round {opened.plan.round_} than site {party.name}",
                        "its memory, NumPy or software differs; the round is not applied",
                    )
        else:
            message = self._attempt.result(state, opened.sum_tree)
            self._attempt.receive_results(self._exchange.gather(message), state, opened.sum_tree)
        return message

    def _agree(self, vector: Vector, plan: SumPlan) -> tuple[Streams, int]:
        """The leaders agree on M0 and on keys; every rail of the site gets the mask keys. Bytes the leader sent too."""
        party, layout = self._party, vector.layout
        proposal = Proposal(
            attempt=self._attempt_number,
            cohort=one_base((m.number for m in party.members), plan.base),
            config=party.agreement.hash,
            layout=layout.hash_under(plan.layout_key),
            purpose=plan.purpose,
            round_=plan.round_,
            state=plan.state,
            tensors=tuple((bits, lanes) for bits, lanes in layout.shapes()),
        )
        self._attempt = None
        if not party.masked:
            if party.leads:
                self._compare_proposals(proposal.to_bytes())
            return (), 0
        sent = 0
        secret = b""
        if party.leads:
            assert party.identity is not None
            degree = party.agreement.secure.degree
            attempt = PairwiseAttempt(proposal, party.number, party.identity, party.members, degree=degree)
            keys = attempt.keys()
            received = self._exchange.gather(keys)
            if not attempt.agreed(received):
                refuse_difference(attempt.proposal, self._exchange.gather(attempt.proposal), party.members)
                raise InternalError("proposals differ, yet no field does")
            signature = attempt.receive_keys(received)
            attempt.receive_signatures(self._exchange.gather(signature))
            secret = streams_to_bytes(attempt.edges())
            sent = len(keys) + len(signature)
            self._attempt = attempt
        # Inside a site the ranks trust each other; the keys live for this one sum.
        return streams_from_bytes(party.site.broadcast_bytes(secret if party.leads else None)), sent

    def _compare_proposals(self, mine: bytes) -> None:
        """Mode `off`: the same comparison of M0, unsigned."""
        hashes = self._exchange.gather(transcript_chain.t0(mine))
        if len(set(hashes)) > 1:
            refuse_difference(mine, self._exchange.gather(mine), self._party.members)
