"""One masked sum over all ranks of all sites, step by step as the protocol has it (`mpi` exchange).

Check and fingerprint, ledger, keys, pipeline, result. Whatever is wrong with this site's own numbers is found before
any rank waits for another site.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import DataError, InternalError
from fedhpc.exchange.base import Exchange
from fedhpc.federation.agreement import Agreement
from fedhpc.federation.journal import Journal
from fedhpc.federation.layout import Vector, parts
from fedhpc.federation.pipeline import LaneMasks, Pipeline, Stages
from fedhpc.mpi.collectives import Group
from fedhpc.secure import labels
from fedhpc.secure.keys import KEY_BYTES, derive
from fedhpc.secure.ledger import FINGERPRINT_BLOCK_BYTES, LedgerEntry, LedgerKeys, fingerprint, fingerprint_blocks
from fedhpc.secure.masks import Masks, NoMasks
from fedhpc.secure.pairwise import Member, PairwiseAttempt, Proposal, refuse_difference
from fedhpc.secure.ring import Codec
from fedhpc.secure.transcript import canon, hash_parts, input_hash, tree_root

NO_BASE = bytes(32)  # the base of a statistic


@dataclass(frozen=True)
class Party:
    """This rank's place in the federation: fixed for the life of the job."""

    agreement: Agreement
    number: int  # its site
    site: Group
    rails: int
    exchange: Exchange
    members: list[Member]
    identity: Ed25519PrivateKey | None = field(repr=False)  # leaders of a masked federation only
    ledger_keys: LedgerKeys | None = field(repr=False)  # on every rank of a masked site
    journal: Journal | None  # leaders only
    attempt: int  # names this start of the job

    @property
    def name(self) -> str:
        """The site's name."""
        return self.agreement.names[self.number - 1]

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its site."""
        return self.site.rank == 0

    @property
    def masked(self) -> bool:
        """Whether sums are hidden: not with mode `off`, and not where there is one site."""
        return self.agreement.secure.mode == "pairwise" and len(self.members) > 1


@dataclass(frozen=True)
class SumPlan:
    """What one sum is: agreed on by all sites through M0."""

    round_: int
    purpose: str
    base: bytes  # the state the vector starts from [32]; NO_BASE for a statistic
    state: bytes  # the state before this round [32]
    factors: dict[str, float] = field(default_factory=dict)  # w_u / W by tensor; 1 where absent
    replicated: bool = False  # every rank of the site already holds the site's vector


@dataclass
class Opened:
    """An opened sum, before the sites have compared results."""

    plan: SumPlan
    sum_tree: bytes
    stages: Stages
    bytes_up: int
    bytes_down: int
    attempt: PairwiseAttempt | None


def open_sum(party: Party, pipeline: Pipeline, vector: Vector, plan: SumPlan, *, digest: bool = True) -> Opened:
    """Replace `vector`, in place and on every rank, by the sum over the sites.

    `digest`: hash the sum for M6; a benchmark leaves it out to time the sum alone.

    Called by every rank of every site. Raises DataError for numbers that have no place in the ring, PolicyError if
    the ledger forbids the sum or the sites do not agree; nothing of the vector has left the site then.
    """
    stages = Stages()
    agreement, layout = party.agreement, vector.layout
    sites = len(party.members)
    begun = time.perf_counter()
    if party.site.size > 1 and not plan.replicated:
        # Compared first: a broadcast into a buffer of another size ends in MPI's own words, or never.
        _refuse_other_layouts(party, party.site.gather_bytes(layout.hash))
        party.site.broadcast(vector.buffer)
    my_part = (*parts(layout.nbytes, party.rails), *[(0, 0)] * party.site.size)[party.site.rank]
    input_ = input_hash(plan.purpose, plan.base)

    def codec() -> Codec:
        rounding = None
        if agreement.secure.rounding == "stochastic":
            rounding = derive(input_, agreement.hash, labels.KEY_ROUNDING, party.number)
        return Codec(sites, party.name, plan.factors, rounding)

    stages.share = _lap(begun)
    if sites == 1:
        return Opened(plan, bytes(32), stages, 0, 0, None)

    begun = time.perf_counter()
    keys = party.ledger_keys if party.masked else None
    tags = _inspect(vector, my_part, codec(), keys)
    gathered = party.site.gather_bytes(layout.hash + tags)
    _refuse_other_layouts(party, gathered)
    if party.leads and party.masked:
        assert party.journal is not None
        assert keys is not None
        factors = canon({name: value.hex() for name, value in plan.factors.items()})
        mark = fingerprint(keys.whole, layout.hash, factors, layout.nbytes, [m[32:] for m in gathered])
        cohort = tuple(m.number for m in party.members)
        party.journal.admit(LedgerEntry(plan.round_, plan.purpose, input_, mark, cohort))
    stages.ledger = _lap(begun)

    begun = time.perf_counter()
    attempt, masks, message_bytes = _agree(party, vector, plan)
    stages.agree = _lap(begun)

    digests = pipeline.run(vector, my_part, codec, masks, stages, digest=digest)

    begun = time.perf_counter()
    joined = b"".join(party.site.gather_bytes(b"".join(digests)))
    sum_tree = tree_root(layout.nbytes, [joined])
    if party.site.size > 1:
        bounds = parts(layout.nbytes, party.rails)
        party.site.gather_parts(vector.buffer, bounds)
    stages.share += _lap(begun)
    return Opened(plan, sum_tree, stages, layout.nbytes + message_bytes, layout.nbytes + message_bytes, attempt)


def _inspect(vector: Vector, part: tuple[int, int], codec: Codec, keys: LedgerKeys | None) -> bytes:
    """Check the values of bytes `part` and fingerprint them, block by block while a block is in the caches.

    Gives the blocks' tags, none without keys. Raises DataError for a value that has no place in the ring.
    """
    tags = []
    for start in range(*part, FINGERPRINT_BLOCK_BYTES):
        stop = min(start + FINGERPRINT_BLOCK_BYTES, part[1])
        for piece in vector.layout.pieces(start, stop):
            codec.check(vector.buffer, piece)
        if keys is not None:
            tags.append(fingerprint_blocks(keys.blocks, vector.buffer, start, stop))
    return b"".join(tags)


def settle(party: Party, opened: Opened, state: bytes) -> None:
    """Compare results with the other sites (M6): they hold the same sum and move to the same `state` [32].

    A training round's M6 is signed, as proof of the model that all went on from; a statistic's is compared only, since
    the model stays and a signature from each site would take longer than the rest of a small sum.
    PolicyError or DataError names a site whose result differs; the caller must not apply or store the result then.
    """
    if not party.leads or len(party.members) == 1:
        return
    begun = time.perf_counter()
    if opened.attempt is None or opened.plan.base == NO_BASE:
        message = opened.sum_tree + state
        for member, result in zip(party.members, party.exchange.gather(message), strict=True):
            if result != message:
                raise DataError(
                    f"site {member.name} has another {'sum' if result[:32] != message[:32] else 'state'} after round "
                    f"{opened.plan.round_} than site {party.name}",
                    "its memory, NumPy or software differs; the round is not applied",
                )
    else:
        message = opened.attempt.result(state, opened.sum_tree)
        opened.attempt.receive_results(party.exchange.gather(message), state, opened.sum_tree)
    opened.bytes_up += len(message)
    opened.bytes_down += len(message)
    opened.stages.agree += _lap(begun)


def _agree(party: Party, vector: Vector, plan: SumPlan) -> tuple[PairwiseAttempt | None, LaneMasks, int]:
    """The leaders agree on M0 and on keys; every rail of the site gets the mask keys. Bytes sent by the leader too."""
    layout = vector.layout
    proposal = Proposal(
        attempt=party.attempt,
        bases=(plan.base,) * len(party.members),
        config=party.agreement.hash,
        layout=layout.hash,
        purpose=plan.purpose,
        round_=plan.round_,
        state=plan.state,
        tensors=tuple((bits, lanes) for bits, lanes in layout.shapes()),
    )
    if not party.masked:
        if party.leads:
            _compare_proposals(party, canon(proposal.as_json()))
        return None, NoMasks(), 0
    attempt: PairwiseAttempt | None = None
    sent = 0
    secret = b""
    if party.leads:
        assert party.identity is not None
        degree = party.agreement.secure.degree
        attempt = PairwiseAttempt(proposal, party.number, party.identity, party.members, degree=degree)
        keys = attempt.keys()
        received = party.exchange.gather(keys)
        if not attempt.agreed(received):
            refuse_difference(attempt.proposal, party.exchange.gather(attempt.proposal), party.members)
            raise InternalError("proposals differ, yet no field does")
        signature = attempt.receive_keys(received)
        attempt.receive_signatures(party.exchange.gather(signature))
        secret = b"".join(key + (b"+" if sign > 0 else b"-") for key, sign in attempt.edges())
        sent = len(keys) + len(signature)
    # Inside a site the ranks trust each other; the keys live for this one sum.
    secret = party.site.broadcast_bytes(secret if party.leads else None)
    step = KEY_BYTES + 1
    edges = [
        (secret[i : i + KEY_BYTES], 1 if secret[i + KEY_BYTES : i + step] == b"+" else -1)
        for i in range(0, len(secret), step)
    ]
    return attempt, Masks(edges), sent


def _compare_proposals(party: Party, mine: bytes) -> None:
    """Mode `off`: the same comparison of M0, unsigned."""
    hashes = party.exchange.gather(hash_parts(labels.HASH_T0, mine))
    if len(set(hashes)) > 1:
        refuse_difference(mine, party.exchange.gather(mine), party.members)


def _refuse_other_layouts(party: Party, messages: list[bytes]) -> None:
    """DataError unless every rank of the site begins its message with the same layout hash."""
    if len({message[:32] for message in messages}) > 1:
        raise DataError(
            f"the ranks of site {party.name} sum different names, shapes or scales",
            "every rank of a site makes the same calls with the same names and shapes",
        )


def _lap(begun: float) -> float:
    return time.perf_counter() - begun
