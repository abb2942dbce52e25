"""Masked sums inside one MPI job, step by step as the protocol has it (`mpi` exchange).

Check and fingerprint, ledger, keys, pipeline, result. Whatever is wrong with this site's own numbers is found before
any rank waits for another site.
"""

from __future__ import annotations

import time

from typing_extensions import override

from fedhpc.errors import DataError, InternalError
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.input_check import codec_of, inspect, share
from fedhpc.federation.party import GIVEN_EPOCH, NO_BASE, CaughtUp, MaskedSums, Opened, Party, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector, parts
from fedhpc.secure import transcript_chain
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.pairwise import PairwiseAttempt, refuse_difference
from fedhpc.secure.proposal import Proposal, one_base
from fedhpc.secure.transcript import input_hash, tree_root
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.in_job.pipeline import Pipeline
from fedhpc.sums.streams import Streams, streams_from_bytes, streams_to_bytes


class MpiSums(MaskedSums):
    """Sums over sites that are all in this job."""

    def __init__(self, party: Party, exchange: Exchange, pipeline: Pipeline, *, rails: int, attempt: int) -> None:
        """`rails`: ranks of each site that carry a part of the vector. `attempt`: names this start of the job."""
        self.name = exchange.name
        self._party, self._exchange, self._pipeline = party, exchange, pipeline
        self.rails, self._attempt_number = rails, attempt
        self._attempt: PairwiseAttempt | None = None  # of the sum that is open

    @override
    def of(self, party: Party) -> MpiSums:
        return MpiSums(party, self._exchange, self._pipeline, rails=self.rails, attempt=self._attempt_number)

    @override
    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        """Asks all sites, which are in this job."""
        return dict(enumerate(self._exchange.gather(message), start=1))

    @override
    def common_round(self, held: list[int]) -> int | None:
        """The newest round in every site's store; None if the run is fresh.

        A kill may fall between two sites' first checkpoints. Round 0 is then made again: it repeats to the last bit,
        and the ledger refuses sums that do not.
        """
        mine = ",".join(map(str, held)).encode()
        all_held = [{int(r) for r in m.decode().split(",") if r} for m in self._exchange.gather(mine)]
        common = set.intersection(*all_held)
        if not common and any(rounds - {0} for rounds in all_held):
            having = [m.name for m, rounds in zip(self._party.members, all_held, strict=True) if rounds]
            raise DataError(
                f"only site {', '.join(having)} has checkpoints, and no round is held by all sites",
                f"put the missing run directories back; if they are lost, {GIVEN_EPOCH}; a new run is the next epoch "
                "too: --again",
            )
        return max(common) if common else None

    @override
    def attend(self, store: CheckpointStore) -> None:
        """Does nothing: within one job no site is away."""

    @override
    def catch_up(self, state: bytes, round_: int, nbytes: int) -> CaughtUp:
        """Never needed: within one job no round ends without a site."""
        raise InternalError("a site of an MPI job cannot have missed a round")

    @override
    def is_free(self, base: bytes) -> bool:
        return True

    @override
    def keep_until(self, sums: int, *, given: bool = True) -> None:
        """Does nothing: a killed job repeats its sums, and nothing is kept for them."""

    @override
    def leave(self, *, refused: bool = False) -> None:
        self._exchange.leave(refused=refused)

    @override
    def hear(self, word: str) -> str:
        """The leaders ask each other."""
        party = self._party
        said = next((w for w in party.site.gather_bytes(word.encode()) if w), b"")
        if party.leads:
            said = next((w for w in self._exchange.gather(said) if w), b"")
        return party.site.broadcast_bytes(said if party.leads else None).decode()

    @override
    def open(self, vector: Vector, plan: SumPlan, *, digest: bool = True) -> Opened:
        party, stages, layout = self._party, Stages(), vector.layout
        everyone = tuple(m.number for m in party.members)
        begun = time.perf_counter()
        share(party, vector, plan)
        my_part = (*parts(layout.nbytes, self.rails), *[(0, 0)] * party.site.size)[party.site.rank]
        stages.share = _lap(begun)
        if len(everyone) == 1:
            return Opened(plan, bytes(32), stages, 0, 0, everyone, b"")

        begun = time.perf_counter()
        mark = inspect(party, vector, plan, my_part)
        if party.leads and party.masked:
            assert party.journal is not None
            input_ = input_hash(plan.purpose, plan.base)
            entry = LedgerEntry(plan.round_, plan.purpose, input_, mark.fingerprint, everyone)
            party.journal.admit(mark.on(entry))
        stages.ledger = _lap(begun)

        begun = time.perf_counter()
        streams, message_bytes = self._agree(vector, plan)
        stages.agree = _lap(begun)

        digests = self._pipeline.run(vector, my_part, lambda: codec_of(party, plan), streams, stages)

        begun = time.perf_counter()
        joined = b"".join(party.site.gather_bytes(b"".join(digests)))
        sum_tree = tree_root(layout.nbytes, [joined])
        if party.site.size > 1:
            party.site.gather_parts(vector.whole(), parts(layout.nbytes, self.rails))
        stages.share += _lap(begun)
        moved = layout.nbytes + message_bytes
        return Opened(plan, sum_tree, stages, moved, moved, everyone, vector.salt.tobytes())

    @override
    def settle(self, opened: Opened, state: bytes) -> None:
        """A training round's M6 is signed, as proof of the model that all went on from; a statistic's is only compared,
        since the model stays and a signature from each site would take longer than the rest of a small sum.
        """
        party = self._party
        if not party.leads or len(party.members) == 1:
            return
        begun = time.perf_counter()
        if self._attempt is None or opened.plan.base == NO_BASE:
            message = opened.sum_tree + state
            for member, result in zip(party.members, self._exchange.gather(message), strict=True):
                if result != message:
                    raise DataError(
                        f"site {member.name} has another {'sum' if result[:32] != message[:32] else 'state'} after "
                        f"round {opened.plan.round_} than site {party.name}",
                        "its memory, NumPy or software differs; the round is not applied",
                    )
        else:
            message = self._attempt.result(state, opened.sum_tree)
            self._attempt.receive_results(self._exchange.gather(message), state, opened.sum_tree)
        opened.bytes_up += len(message)
        opened.bytes_down += len(message)
        opened.stages.agree += _lap(begun)

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


def _lap(begun: float) -> float:
    return time.perf_counter() - begun
