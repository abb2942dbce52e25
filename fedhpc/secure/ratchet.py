"""The keys of one MPI job, turned by one step for every sum, without I/O (docs/protocol.md section 7).

The sites agree on keys and sign once (pairwise.py). From then on every two of them share a chain key ck_i, and sum i
takes its edge and MAC keys from it. Before a lane is masked each site has seen two MACs of every other one: over the
same head, which hashes all proposals since the agreement, and over its word that it has checked the MACs of all.

    propose -> T0 and a MAC for each other site -> receive_proposals -> a second MAC for each -> receive_ready -> edges
    -> … -> settled

The first sum's proposal is in what all have signed, so it begins with `first` instead of `propose`. An index is burnt
before its edge keys are handed out. Whatever is refused on the way ends the ratchet: no step is taken twice, and nobody
skips one. Then, at a checkpoint, and after MAX_SUMS sums, new keys are agreed on.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import InternalError, PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.pairwise import Member
from fedhpc.secure.signed_state import refuse_other_result
from fedhpc.secure.thresholds import neighbours
from fedhpc.secure.transcript import HASH_BYTES, canon, hash_parts, sign_message, u16, u64
from fedhpc.secure.transcript_chain import t0

MAX_SUMS = 1000  # of one agreement: bounds what a key that was copied out of memory can open
MAC_BYTES = 32
NO_RESULT = bytes(HASH_BYTES)  # stands for M6 of the sum before the first


class _Stage(Enum):
    IDLE = "between two sums"
    PROPOSED = "after its proposal"
    CHECKED = "after the MACs of the others were checked"
    READY = "after all sites said so"
    SUMMING = "in a sum"
    ENDED = "over"


class Ratchet:
    """One site's side of the chain. Calls in any other order than the module says end it."""

    def __init__(
        self,
        me: int,
        identity: Ed25519PrivateKey,
        roster: Sequence[Member],
        t2: bytes,
        chains: Mapping[int, bytes],
        *,
        degree: int = 0,
    ) -> None:
        """`me`: this site's number, 1..N. `t2`: what all have signed [32]. `chains`: ck_1 [32] of each other site."""
        self._me, self._identity, self._roster, self._degree = me, identity, roster, degree
        self._others = [m for m in roster if m.number != me]
        self._t2 = t2
        self._chains = {member.number: bytearray(chains[member.number]) for member in self._others}
        self._macs: dict[int, bytes] = {}  # MAC keys of the sum that is begun
        self._covered = b""  # what its MACs cover besides their name and the two sites
        self._stage = _Stage.IDLE
        self.index = 1
        """i of the next sum, or of the one that is begun and whose masks are not handed out."""
        self.head = t2
        """head_i of the sum that is begun, or of the last one [32]."""
        self._result: dict[str, Any] | None = None  # the body of M6 of the last settled sum
        self._last = NO_RESULT  # its hash

    def __repr__(self) -> str:
        return f"Ratchet(site {self._me}, sum {self.index}, {self._stage.value})"

    @property
    def usable(self) -> bool:
        """Whether the next sum may take its keys from here."""
        return self._stage is _Stage.IDLE and self.index <= MAX_SUMS

    @property
    def settled_result(self) -> bool:
        """Whether a sum was settled with these keys, and none is begun: there is a result to sign."""
        return self._stage is _Stage.IDLE and self._result is not None

    def first(self, m0: bytes) -> bytes:
        """Begin the first sum, whose proposal `m0` is hashed in T2: this site's word that all is checked [N-1, 32]."""
        self._enter(_Stage.IDLE)
        if self.index != 1 or self.head != self._t2:
            self.wipe()
            raise InternalError("only the first sum of a key agreement begins without MACs")
        self._begin(m0)
        self._stage = _Stage.CHECKED
        return self._said(labels.MAC_READY)

    def propose(self, m0: bytes) -> bytes:
        """Begin sum i with the proposal `m0`: T0 [32] and a MAC for each other site, in roster order [N-1, 32]."""
        self._enter(_Stage.IDLE)
        if not 1 < self.index <= MAX_SUMS:
            self.wipe()
            raise InternalError(f"sum {self.index} of a key agreement cannot begin with MACs")
        self._begin(m0)
        self._stage = _Stage.PROPOSED
        return t0(m0) + self._said(labels.MAC_PROPOSAL)

    def receive_proposals(self, messages: Sequence[bytes]) -> bytes:
        """Every site's `propose`, in roster order; this site's word that all of them hold [N-1, 32].

        Raises PolicyError that names a site whose MAC does not hold: it has another head, index or result of the sum
        before, or it does not have the key.
        """
        self._enter(_Stage.PROPOSED)
        self._check(messages, labels.MAC_PROPOSAL, HASH_BYTES)
        self._stage = _Stage.CHECKED
        return self._said(labels.MAC_READY)

    def receive_ready(self, messages: Sequence[bytes]) -> None:
        """Every site's word that it has checked all. Raises PolicyError that names a site that did not say so."""
        self._enter(_Stage.CHECKED)
        self._check(messages, labels.MAC_READY, 0)
        self._stage = _Stage.READY

    def edges(self) -> list[tuple[bytes, int]]:
        """(mask key [32], sign) for every site this one shares a mask with: + towards the higher number.

        Index i is burnt by this: the chain keys are those of the next sum when it returns. Raises InternalError before
        `receive_ready` has heard every site.
        """
        self._enter(_Stage.READY)
        near = {self._roster[at].number for at in neighbours(self._me - 1, len(self._roster), self._degree)}
        found = []
        for number, chain in self._chains.items():
            if number in near:
                key = self._derive(self.head, chain, labels.KEY_EDGE, number)
                found.append((key, 1 if number > self._me else -1))
            chain[:] = self._derive(self.head, chain, labels.KEY_NEXT, number)
        self._macs = {}
        self.index += 1
        self._stage = _Stage.SUMMING
        return found

    def settled(self, state: bytes, sum_tree: bytes) -> None:
        """The sum is done, and all sites said that they hold the same: the next state [32] and Tree(X) [32].

        `sum_tree` is empty where the next state depends on X anyway (training, start).

        The MACs of the next sum, or the signatures over this one, prove what they said.
        """
        self._enter(_Stage.SUMMING)
        self._result = self._body(state, sum_tree)
        self._last = hash_parts(labels.HASH_RESULT, canon(self._result))
        self._stage = _Stage.IDLE

    def sign_result(self, state: bytes = b"") -> bytes:
        """This site's signed M6 over the head of the last settled sum; `state`: another [32] that followed it since."""
        if self._result is None or self._stage is not _Stage.IDLE:
            raise InternalError("no sum of this key agreement is settled")
        return sign_message(self._identity, labels.SIGN_RESULT, self._me, self.head, self._with(state))

    def receive_results(self, messages: Sequence[bytes], state: bytes = b"") -> None:
        """Every site's `sign_result`, in roster order. Raises PolicyError that names a site whose result differs."""
        expected = self._with(state)
        for member, message in zip(self._roster, messages, strict=True):
            if member.number != self._me:
                refuse_other_result(message, self.head, expected, member)

    def wipe(self) -> None:
        """End it, and overwrite the chain keys. Copies that Python or a library made stay until memory is used anew."""
        self._stage = _Stage.ENDED
        self._macs = {}
        for chain in self._chains.values():
            chain[:] = bytes(len(chain))

    def _enter(self, stage: _Stage) -> None:
        """Leave `stage`. Until the caller sets the next one the ratchet counts as ended, so an error ends it."""
        now, self._stage = self._stage, _Stage.ENDED
        if now is not stage:
            self.wipe()
            raise InternalError(f"the keys of this job are {now.value}, not {stage.value}; edges come last")

    def _begin(self, m0: bytes) -> None:
        self.head = hash_parts(labels.HASH_SUM, self.head, u64(self.index), m0)
        self._covered = u64(self.index) + self.head + self._last
        self._macs = {u: self._derive(self._t2, chain, labels.KEY_MAC, u) for u, chain in self._chains.items()}

    def _derive(self, salt: bytes, chain: bytearray, name: bytes, other: int) -> bytes:
        return derive(salt, bytes(chain), name, min(self._me, other), max(self._me, other))

    def _mac(self, name: bytes, sender: int, to: int) -> bytes:
        said = labels.PROTOCOL + b"\0" + name + b"\0" + u16(sender) + u16(to) + self._covered
        return hmac.digest(self._macs[to if sender == self._me else sender], said, "sha256")

    def _said(self, name: bytes) -> bytes:
        return b"".join(self._mac(name, self._me, member.number) for member in self._others)

    def _check(self, messages: Sequence[bytes], name: bytes, skipped: int) -> None:
        """Raise PolicyError unless every other site's message holds its MAC for this one after `skipped` bytes."""
        for member, message in zip(self._roster, messages, strict=True):
            if member.number == self._me:
                continue
            place = skipped + MAC_BYTES * (self._me - 1 - (self._me > member.number))
            said = message[place : place + MAC_BYTES]
            whole = len(message) == skipped + MAC_BYTES * len(self._others)
            if not message:
                self.wipe()
                raise PolicyError(
                    f"site {member.name} refused sum {self.index} of this key agreement",
                    "its own output says why; the next sum makes new keys",
                )
            if not whole or not hmac.compare_digest(said, self._mac(name, member.number, self._me)):
                self.wipe()
                raise PolicyError(
                    f"the {name.decode()} MAC of site {member.name} for sum {self.index} of this key agreement does "
                    "not hold",
                    "it does not have the key, or another proposal or result; the sum is refused, the next one makes "
                    "new keys",
                )

    def _body(self, state: bytes, sum_tree: bytes) -> dict[str, Any]:
        return {"state": state.hex(), "sum": sum_tree.hex(), "u3": [m.number for m in self._roster]}

    def _with(self, state: bytes) -> dict[str, Any]:
        assert self._result is not None
        return self._result | ({"state": state.hex()} if state else {})
