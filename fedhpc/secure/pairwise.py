"""The key agreement of one MPI job, without I/O: keys and the signed transcript (docs/protocol.md section 7).

The masks are the pairwise ones of Bonawitz et al. (2017). All sites are in one MPI job, so the set is the whole cohort,
nobody can be lost within the attempt, and no self mask, tag or recovery is needed. Before the first of many sums the
leaders exchange two messages; ratchet.py takes the keys of each sum from what they agree on:

    propose -> M1 (fresh X25519 keys) of every site -> signature over T2 of every site -> chains

M1 carries no signature of its own here: the signature over T2, which hashes M0 and every M1, covers it, and no key is
derived before all of those were checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedhpc.errors import InternalError, PolicyError
from fedhpc.secure import labels, transcript_chain
from fedhpc.secure.keys import AttemptKey, derive
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.transcript import canon, open_message, parse_canon, sign_message

_HEX_KEY = re.compile(r"[0-9a-f]{64}")
NO_HINT = -1  # left_s of a site that does not know its walltime


@dataclass(frozen=True)
class Member:
    """A site as the others know it."""

    number: int
    name: str
    sign: Ed25519PublicKey


class PairwiseAttempt:
    """One site's side of one agreement. Order: keys, agreed, receive_keys, receive_signatures, chains."""

    def __init__(
        self,
        proposal: Proposal,
        me: int,
        identity: Ed25519PrivateKey,
        roster: Sequence[Member],
        *,
        fresh: tuple[AttemptKey, AttemptKey] | None = None,
    ) -> None:
        """`me`: this site's number, 1..N. `fresh`: (chan, mask) key pairs, given only by test vectors."""
        self._me = me
        self._identity = identity
        self._roster = roster
        self.proposal = proposal.to_bytes()
        self._t0 = transcript_chain.t0(self.proposal)
        self._chan, self._mask = fresh or (AttemptKey(), AttemptKey())
        self._masks_of: list[bytes] = []
        self.t2 = b""
        self._signed = False

    def keys(self) -> bytes:
        """This site's M1 body and its T0, to be gathered from every site."""
        body = {"chan": self._chan.public.hex(), "left_s": NO_HINT, "mask": self._mask.public.hex()}
        return self._t0 + canon(body)

    def agreed(self, messages: Sequence[bytes]) -> bool:
        """Whether every site's `keys()` names this site's T0. All sites see the same answer."""
        return all(message[:32] == self._t0 for message in messages)

    def receive_keys(self, messages: Sequence[bytes]) -> bytes:
        """Every site's `keys()`, in roster order; gives this site's signature over T2 [message].

        Raises PolicyError for a malformed or repeated key, and if this site's own message came back changed: a key
        put in its place would be signed by all, and would tell its owner this site's masks. Call `agreed` first.
        """
        bodies = []
        for member, message in zip(self._roster, messages, strict=True):
            if member.number == self._me and message != self.keys():
                raise PolicyError(f"site {member.name} got its own keys back changed", "the round is refused")
            body = message[32:]
            self._masks_of.append(_mask_key(body, member.name))
            bodies.append(body)
        if len(set(self._masks_of)) != len(self._masks_of):
            raise PolicyError("two sites sent the same key", "a key was replayed; the round is refused")
        listed = {m.number: body for m, body in zip(self._roster, bodies, strict=True)}
        self.t2 = transcript_chain.t2(transcript_chain.t1(self._t0, listed), {})
        return sign_message(self._identity, labels.SIGN_MPI, self._me, self.t2, {})

    def receive_signatures(self, messages: Sequence[bytes]) -> None:
        """Every site's signature over T2. Raises PolicyError unless all signed the T2 of this site."""
        for member, message in zip(self._roster, messages, strict=True):
            if member.number != self._me:
                body = open_message(message, labels.SIGN_MPI, member.number, self.t2, member.sign, member.name)
                if body != {}:
                    raise PolicyError(f"site {member.name} signed an unknown body")
        self._signed = True

    def chains(self) -> dict[int, bytes]:
        """ck_1 [32] of every other site, by number.

        Raises InternalError before `receive_signatures` has checked every site.
        """
        if not self._signed:
            raise InternalError("mask keys were asked for before every signature was checked")
        found = {}
        for other, public in zip(self._roster, self._masks_of, strict=True):
            if other.number != self._me:
                low, high = sorted((self._me, other.number))
                found[other.number] = derive(
                    self.t2, self._mask.shared(public, other.name), labels.KEY_CHAIN, low, high
                )
        return found


def refuse_difference(mine: bytes, proposals: Sequence[bytes], roster: Sequence[Member]) -> None:
    """Raise PolicyError that names a site and the fields of its M0 that differ from `mine`; canonical M0 bodies."""
    own = parse_canon(mine)
    for member, data in zip(roster, proposals, strict=True):
        theirs = _proposal_fields(data, member.name)
        fields = [name for name in own if theirs.get(name) != own[name]]
        if fields:
            values = "; ".join(f"{n}: {_short(own[n])} here, {_short(theirs.get(n))} there" for n in fields[:3])
            raise PolicyError(
                f"site {member.name} proposes another {', '.join(fields)} ({values})",
                "all sites must run the same federation.toml from the same checkpoint with the same software",
            )


def _proposal_fields(data: bytes, who: str) -> dict[str, Any]:
    try:
        value = parse_canon(data)
    except ValueError as error:
        raise PolicyError(f"the proposal of site {who} is malformed: {error}") from None
    if not isinstance(value, dict):
        raise PolicyError(f"the proposal of site {who} is not an object")
    return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _mask_key(body: bytes, who: str) -> bytes:
    """The X25519 mask key in a canonical M1 body. Raises PolicyError for any other form."""
    try:
        value = parse_canon(body)
    except ValueError as error:
        raise PolicyError(f"the M1 message of site {who} is malformed: {error}") from None
    if not isinstance(value, dict) or sorted(value) != ["chan", "left_s", "mask"]:
        raise PolicyError(f"the M1 message of site {who} does not have its fields")
    if type(value["left_s"]) is not int:
        raise PolicyError(f"the M1 message of site {who} has no whole number in left_s")
    keys = []
    for name in ("chan", "mask"):
        text = value[name]
        if type(text) is not str or not _HEX_KEY.fullmatch(text):
            raise PolicyError(f"the {name} key of site {who} is not 32 bytes in lower-case hex")
        keys.append(bytes.fromhex(text))
    if keys[0] == keys[1]:
        raise PolicyError(f"site {who} uses one key for two purposes")
    return keys[1]
