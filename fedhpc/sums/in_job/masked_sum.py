"""Masked sums inside one MPI job, step by step as the protocol has it (`mpi` exchange).

Ledger, keys, pipeline, result. The vector that comes here is checked and has its fingerprint (federation/session.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from typing_extensions import override

from fedhpc.errors import DataError
from fedhpc.federation.input_check import codec_of
from fedhpc.federation.other_sites import Summing
from fedhpc.federation.party import Checked, Opened, Party, Summed, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure import transcript_chain
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.pairwise import refuse_difference
from fedhpc.secure.proposal import Proposal, one_base
from fedhpc.secure.transcript import HASH_BYTES
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.in_job.job_keys import JobKeys
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
        self._keys = JobKeys(party, exchange) if party.leads and party.masked else None

    @override
    def open(self, checked: Checked, stages: Stages) -> Summed:
        party, plan, vector = self._party, checked.plan, checked.vector
        everyone = tuple(m.number for m in party.members)
        if party.leads and party.masked:
            assert party.journal is not None
            with stages.timed("ledger"):
                entry = LedgerEntry(plan.round_, plan.purpose, plan.input, checked.mark.fingerprint, everyone)
                party.journal.admit(checked.mark.on(entry))
        with self._refusals_end_keys():
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
        """M6 is compared unsigned; the MACs of the next sum, or the signatures of `sign_state`, prove it afterwards.

        A sum whose result goes into a checkpoint is signed at once.
        """
        party = self._party
        if not party.leads or len(party.members) == 1:
            return
        with opened.stages.timed("agree"), self._refusals_end_keys():
            if self._keys is None or not opened.plan.checkpointed:
                sent = self._compare(opened, state)
            if self._keys is not None:
                self._keys.settled(state, opened.sum_tree)
                if opened.plan.checkpointed:
                    before = self._keys.sent
                    self._keys.sign_state(state)
                    sent = self._keys.sent - before
        opened.bytes_up += sent
        opened.bytes_down += sent

    @override
    def sign_state(self, state: bytes) -> tuple[bytes, ...]:
        return () if self._keys is None else self._keys.sign_state(state)

    def last_word(self) -> bytes:
        """What this site signs when it leaves: all sums that are not signed yet. Empty if there are none."""
        return b"" if self._keys is None else self._keys.last_word()

    def receive_last_words(self, said: Sequence[bytes]) -> None:
        """The last words of all sites, in roster order. Raises PolicyError that names a site whose result differs."""
        if self._keys is not None:
            self._keys.receive_last_words(said)

    @contextmanager
    def _refusals_end_keys(self) -> Iterator[None]:
        """Whatever goes wrong once a sum was proposed ends the keys: the next sum makes new ones."""
        try:
            yield
        except BaseException:
            if self._keys is not None:
                self._keys.end()
            raise

    def _compare(self, opened: Opened, state: bytes) -> int:
        """Compare M6 with those of the other leaders; the bytes that this one sent."""
        party = self._party
        message = opened.sum_tree + state
        for member, result in zip(party.members, self._exchange.gather(message), strict=True):
            if result != message:
                other = "sum" if result[:-HASH_BYTES] != message[:-HASH_BYTES] else "state"
                raise DataError(
                    f"site {member.name} has another {other} after round {opened.plan.round_} than site {party.name}",
                    "its memory, NumPy or software differs; the round is not applied",
                )
        return len(message)

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
        if not party.masked:
            if party.leads:
                self._compare_proposals(proposal.to_bytes())
            return (), 0
        sent = 0
        secret = b""
        if self._keys is not None:
            before = self._keys.sent
            secret = streams_to_bytes(self._keys.streams(proposal))
            sent = self._keys.sent - before
        # Inside a site the ranks trust each other; the keys live for this one sum.
        return streams_from_bytes(party.site.broadcast_bytes(secret if party.leads else None)), sent

    def _compare_proposals(self, mine: bytes) -> None:
        """Mode `off`: the same comparison of M0, unsigned."""
        hashes = self._exchange.gather(transcript_chain.t0(mine))
        if len(set(hashes)) > 1:
            refuse_difference(mine, self._exchange.gather(mine), self._party.members)
