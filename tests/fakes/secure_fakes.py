"""Sites in memory, for the tests of the vault: no MPI, no files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.secure.keys import AttemptKey
from fedhpc.secure.pairwise import Member, PairwiseAttempt
from fedhpc.secure.proposal import Proposal, one_base
from fedhpc.secure.ratchet import Ratchet
from fedhpc.secure.ring import Layout, Tensor


def key_of(*words: object) -> bytes:
    """A fixed private key [32]."""
    return hashlib.sha256(repr(words).encode()).digest()


def proposal_of(sites: int, **changes: object) -> Proposal:
    layout = Layout([Tensor("x", "float32", (5,), 20)])
    fields: dict[str, object] = {
        "attempt": 11,
        "cohort": one_base(range(1, sites + 1), bytes(32)),
        "config": key_of("config"),
        "layout": layout.hash,
        "purpose": "train",
        "round_": 3,
        "state": key_of("state"),
        "tensors": ((32, 5),),
    }
    return Proposal(**(fields | changes))  # type: ignore[arg-type]


@dataclass
class Sites:
    """N sites' identities and one attempt of each."""

    count: int
    degree: int = 0
    fixed: bool = True
    salt: str = ""
    identities: list[Ed25519PrivateKey] = field(init=False)
    roster: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        numbers = range(1, self.count + 1)
        self.identities = [Ed25519PrivateKey.from_private_bytes(key_of("identity", u)) for u in numbers]
        self.roster = [Member(u, f"site-{u}", k.public_key()) for u, k in zip(numbers, self.identities, strict=True)]

    def attempt(self, u: int, proposal: Proposal | None = None) -> PairwiseAttempt:
        fresh = None
        if self.fixed:
            fresh = (AttemptKey(key_of("chan", u, self.salt)), AttemptKey(key_of("mask", u, self.salt)))
        proposal = proposal or proposal_of(self.count)
        return PairwiseAttempt(proposal, u, self.identities[u - 1], self.roster, fresh=fresh)

    def attempts(self, proposal: Proposal | None = None) -> list[PairwiseAttempt]:
        return [self.attempt(u, proposal) for u in range(1, self.count + 1)]

    def signed(self, proposal: Proposal | None = None) -> list[PairwiseAttempt]:
        """Attempts of which each has checked every signature."""
        attempts = self.attempts(proposal)
        keys = [a.keys() for a in attempts]
        assert all(a.agreed(keys) for a in attempts)
        signatures = [a.receive_keys(keys) for a in attempts]
        for attempt in attempts:
            attempt.receive_signatures(signatures)
        return attempts

    def ratchet(self, attempt: PairwiseAttempt, u: int) -> Ratchet:
        chains = attempt.chains()
        return Ratchet(u, self.identities[u - 1], self.roster, attempt.t2, chains, degree=self.degree)

    def ratchets(self, proposal: Proposal | None = None) -> list[Ratchet]:
        """After an agreement, before the first sum."""
        return [self.ratchet(attempt, u) for u, attempt in enumerate(self.signed(proposal), start=1)]

    def summing(self, proposal: Proposal | None = None) -> list[list[tuple[bytes, int]]]:
        """The edges of each site in the first sum after an agreement."""
        return begin_sum(self.ratchets(proposal), (proposal or proposal_of(self.count)).to_bytes())


def begin_sum(ratchets: Sequence[Ratchet], m0: bytes) -> list[list[tuple[bytes, int]]]:
    """Every site takes the next step with the proposal `m0`; the edges of each."""
    if ratchets[0].index == 1:
        ready = [r.first(m0) for r in ratchets]
    else:
        proposals = [r.propose(m0) for r in ratchets]
        ready = [r.receive_proposals(proposals) for r in ratchets]
    for r in ratchets:
        r.receive_ready(ready)
    return [r.edges() for r in ratchets]


def edges_of(count: int, degree: int = 0, salt: str = "") -> list[list[tuple[bytes, int]]]:
    """Mask edges of each site without a key exchange: one key per pair within reach, + towards the higher number."""

    def near(a: int, b: int) -> bool:
        distance = min((a - b) % count, (b - a) % count)
        return a != b and (degree == 0 or degree >= count - 1 or distance <= degree // 2)

    return [
        [(key_of("edge", min(u, v), max(u, v), salt), 1 if v > u else -1) for v in range(count) if near(u, v)]
        for u in range(count)
    ]


def random_bytes(n: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(hashlib.shake_256(b"%d" % seed).digest(n), dtype=np.uint8).copy()
