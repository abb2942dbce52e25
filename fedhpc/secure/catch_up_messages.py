"""NEED and STATE: a site that was away gets the present state from another, sealed, with τ signatures as proof.

The relay carries the messages and the sealed blocks and reads none of it. A giver cannot lie: the tensors must hash to
the state that τ sites signed, in a round later than the taker's own (docs/protocol.md section 6).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import InternalError, PolicyError
from fedhpc.secure import labels, messages
from fedhpc.secure.attempt_file import SiteDisk
from fedhpc.secure.keys import KEY_BYTES, AttemptKey, derive
from fedhpc.secure.ledger import NO_VECTOR, LedgerEntry
from fedhpc.secure.pairwise import Member
from fedhpc.secure.results import RoundResults, Settled
from fedhpc.secure.sealing import seal, unseal
from fedhpc.secure.thresholds import Thresholds
from fedhpc.secure.transcript import (
    HASH_BYTES,
    TREE_BLOCK_BYTES,
    canon,
    hash_parts,
    parse_canon,
    sign_message,
    state_hash,
)

BLOCK_BYTES = TREE_BLOCK_BYTES


@dataclass(frozen=True)
class CommonKnowledge:
    """What both ends know: the configuration, its sites, and how long the tensors of a state are."""

    config: bytes
    roster: Sequence[Member]
    thresholds: Thresholds
    nbytes: int

    def member(self, u: int) -> Member:
        """Site `u`. Raises PolicyError if there is none."""
        if not 1 <= u <= len(self.roster):
            raise PolicyError(f"there is no site {u}")
        return self.roster[u - 1]

    def block_length(self, n: int) -> int:
        """Bytes of block `n`. Raises PolicyError for a block beyond the tensors."""
        if not 0 <= n * BLOCK_BYTES < max(self.nbytes, 1):
            raise PolicyError(f"there is no block {n} in {self.nbytes} bytes")
        return min(BLOCK_BYTES, self.nbytes - n * BLOCK_BYTES)


@dataclass(frozen=True)
class CaughtUp:
    """The state that the taker moves to, and why."""

    round_: int
    state: bytes
    settled: Settled


def release(disk: SiteDisk, entry: LedgerEntry, me: int, caught: CaughtUp) -> None:
    """Free the input of `entry`, a round's ledger entry, for a later round, because the round ended without this site.

    Only the tensors tie a state to its round: M6 of an older round, shown as if it were of this one, would free an
    input that is still in use. Raises PolicyError for another round, or if this site is in the set.
    """
    if entry.round_ != caught.round_ or not caught.settled.u3 or me in caught.settled.u3:
        raise PolicyError(f"round {entry.round_} is not known to have ended without this site; its input stays bound")
    disk.admit(LedgerEntry(entry.round_, entry.purpose, entry.input, NO_VECTOR, caught.settled.u3, caught.state))


class Taker:
    """The site that was away. Order: need, receive_state, block…, finish."""

    def __init__(
        self,
        federation: CommonKnowledge,
        me: int,
        identity: Ed25519PrivateKey,
        state: bytes,
        round_: int,
        *,
        fresh: AttemptKey | None = None,
    ) -> None:
        """`state` [32] and `round_`: what this site has, the round whose result that state is.

        `fresh`: the key pair of this NEED, given only by test vectors.
        """
        self._federation, self._me = federation, me
        self._state, self._round = state, round_
        self._key = fresh or AttemptKey()
        body = {"key": self._key.public.hex(), "state": state.hex()}
        self.need = sign_message(identity, labels.SIGN_NEED, me, federation.config, body)
        self._t = hash_parts(labels.HASH_NEED, canon(body))
        self._box_key = b""
        self._giver: Member | None = None
        self._offered: tuple[int, Settled] | None = None

    def __repr__(self) -> str:
        return f"Taker(site {self._me})"

    def receive_state(self, giver: int, message: bytes) -> None:
        """STATE of site `giver`. Raises PolicyError unless τ sites signed one state of a later round, as it claims."""
        federation = self._federation
        member = federation.member(giver)
        sites = federation.thresholds.sites
        what = f"the STATE message of site {member.name}"
        body = messages.open_signed(message, labels.SIGN_STATE, self._t, member, sites)
        value = messages.read_object(body, ("key", "m6", "round"), what)
        public = messages.read_hex(value["key"], KEY_BYTES, f"the key in {what}")
        round_ = messages.read_int(value["round"], 0, (1 << 53) - 1, f"the round in {what}")
        results = RoundResults(federation.roster, federation.thresholds, None)
        for m6 in messages.read_list(value["m6"], sites, f"m6 in {what}"):
            results.receive(canon(m6))
        settled = results.settled()
        if settled is None:
            raise PolicyError(f"{what} does not bring {federation.thresholds.threshold} signatures over one state")
        if round_ <= self._round:
            raise PolicyError(f"{what} offers round {round_}; this site is at round {self._round} already")
        shared = self._key.shared(public, member.name)
        self._box_key = derive(self._t, shared, labels.KEY_STATE, giver, self._me)
        self._giver, self._offered = member, (round_, settled)

    def block(self, n: int, box: bytes) -> bytes:
        """Block `n` of the tensors, opened. It counts only once `finish` has checked all of them together."""
        if self._giver is None:
            raise InternalError("a block before STATE")
        return unseal(self._box_key, n, self._t, box, self._federation.block_length(n), self._giver.name)

    def finish(self, tensors_tree: bytes) -> CaughtUp:
        """`tensors_tree` [32]: Tree of all blocks joined. Raises PolicyError unless it is what τ sites signed."""
        if self._offered is None or self._giver is None:
            raise InternalError("the end of a transfer before STATE")
        round_, settled = self._offered
        found = state_hash(self._federation.config, round_, tensors_tree)
        if not hmac.compare_digest(found, settled.state):
            raise PolicyError(
                f"site {self._giver.name} gave another model than {self._federation.thresholds.threshold} sites signed",
                "nothing was taken over; ask another site",
            )
        return CaughtUp(round_, settled.state, settled)


class Giver:
    """The site that answers one NEED; a new one for every NEED, so that a box key is never used for two states."""

    def __init__(
        self,
        federation: CommonKnowledge,
        me: int,
        identity: Ed25519PrivateKey,
        taker: int,
        need: bytes,
        round_: int,
        proof: Sequence[bytes],
        *,
        fresh: AttemptKey | None = None,
    ) -> None:
        """`proof`: τ messages M6 (or ABANDON) for the result of `round_`. Raises PolicyError for a NEED of nobody.

        `fresh`: the key pair of this answer, given only by test vectors.
        """
        member = federation.member(taker)
        sites = federation.thresholds.sites
        what = f"the NEED message of site {member.name}"
        body = messages.open_signed(need, labels.SIGN_NEED, federation.config, member, sites)
        value = messages.read_object(body, ("key", "state"), what)
        messages.read_hex(value["state"], HASH_BYTES, f"the state in {what}")
        public = messages.read_hex(value["key"], KEY_BYTES, f"the key in {what}")
        key = fresh or AttemptKey()
        self._federation = federation
        self._t = hash_parts(labels.HASH_NEED, canon(body))
        self._box_key = derive(self._t, key.shared(public, member.name), labels.KEY_STATE, me, taker)
        answer = {"key": key.public.hex(), "m6": [parse_canon(m6) for m6 in proof], "round": round_}
        self.state = sign_message(identity, labels.SIGN_STATE, me, self._t, answer)

    def __repr__(self) -> str:
        return "Giver(<key>)"

    def box(self, n: int, block: bytes) -> bytes:
        """Block `n` of the tensors, sealed. Always call it with the same bytes for one `n`."""
        if len(block) != self._federation.block_length(n):
            raise InternalError(f"block {n} has {len(block)} bytes")
        return seal(self._box_key, n, self._t, block)
