"""M6 and ABANDON: which next state τ sites stand behind (docs/protocol.md sections 5 and 6).

A round ends once τ sites have signed one M6 body, in any of its attempts. M6 of another attempt is signed over
a T3 that this site cannot compute; that is enough, since the state it names holds configuration and round in its hash,
and a site that acts on a state has the tensors that hash to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import PolicyError
from fedhpc.secure import labels, messages
from fedhpc.secure.attempt_file import SiteDisk
from fedhpc.secure.ledger import NO_SET, LedgerEntry
from fedhpc.secure.messages import Result
from fedhpc.secure.pairwise import Member
from fedhpc.secure.thresholds import Thresholds
from fedhpc.secure.transcript import open_message, parse_canon, sign_message

_HASH = re.compile(r"[0-9a-f]{64}")
ABANDONED: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settled:
    """What τ sites signed for a round, and their messages as proof."""

    state: bytes
    u3: tuple[int, ...]  # ABANDONED where sites do without the sum
    sum_: bytes  # Tree(X); empty where abandoned
    proof: tuple[bytes, ...]


class RoundResults:
    """Collects M6 and ABANDON messages of one round."""

    def __init__(self, roster: Sequence[Member], thresholds: Thresholds, present: bytes | None) -> None:
        """`present`: the state before the round [32]; None where it is not known, for a site that was away."""
        self._members = {m.number: m for m in roster}
        self._sites, self._tau = thresholds.sites, thresholds.threshold
        self._present = present
        self._bodies: dict[Result, dict[int, bytes]] = {}
        self._abandoned: dict[bytes, dict[int, bytes]] = {}
        self._said: dict[int, bytes] = {}  # the next state that each site stands behind

    def receive(self, message: bytes) -> None:
        """Count a message once per sender. Raises PolicyError that names the site where a message is not valid.

        A site that signs a second next state is refused and the error names both: they are the evidence.
        """
        name, u, transcript = self._outside(message)
        member = self._members[u]
        body = open_message(message, name, u, transcript, member.sign, member.name)
        if name == labels.SIGN_RESULT:
            result = messages.read_result(body, self._sites, member.name)
            if len(result.u3) < self._tau:
                raise PolicyError(f"the M6 message of site {member.name} names {len(result.u3)} sites")
            self._one_state(member, result.state)
            self._bodies.setdefault(result, {})[u] = message
        else:
            if self._present is not None and transcript != self._present:
                raise PolicyError(f"site {member.name} abandoned a round from another state")
            state = read_abandon(body, member.name)
            self._one_state(member, state)
            self._abandoned.setdefault(state, {})[u] = message

    def settled(self) -> Settled | None:
        """What τ different sites stand behind, if they do. ABANDON counts as M6 for the state it names."""
        for result, signed in self._bodies.items():
            if len(signed) >= self._tau:
                return Settled(result.state, result.u3, result.sum_, tuple(signed.values())[: self._tau])
        for state, signed in self._abandoned.items():
            alike = {u: m for result, of in self._bodies.items() if result.state == state for u, m in of.items()}
            proof = tuple((alike | signed).values())
            if len(proof) >= self._tau:
                return Settled(state, ABANDONED, b"", proof[: self._tau])
        return None

    def _one_state(self, member: Member, state: bytes) -> None:
        before = self._said.setdefault(member.number, state)
        if before != state:
            raise PolicyError(
                f"site {member.name} signed two next states for one round, {before.hex()[:16]} and {state.hex()[:16]}",
                "keep both messages as evidence; the round is not applied on the strength of this site",
            )

    def _outside(self, message: bytes) -> tuple[str, int, bytes]:
        """Name, sender and transcript as the message claims them; open_message checks the signature over them."""
        messages.check_length(message, labels.SIGN_RESULT, self._sites, "a result (M6)")
        try:
            value = parse_canon(message)
        except ValueError as error:
            raise PolicyError(f"a result (M6) is malformed: {error}") from None
        fields = value if isinstance(value, dict) else {}
        name, u, transcript = fields.get("name"), fields.get("from"), fields.get("t")
        if name not in (labels.SIGN_RESULT, labels.SIGN_ABANDON) or type(u) is not int or u not in self._members:
            raise PolicyError("a result (M6) is of no known kind or site")
        if type(transcript) is not str or not _HASH.fullmatch(transcript):
            raise PolicyError(f"the {name} message of site {u} has no transcript")
        return str(name), u, bytes.fromhex(transcript)


def read_abandon(body: object, who: str) -> bytes:
    """The next state [32] in the body of ABANDON. Raises PolicyError for any other form."""
    if not isinstance(body, dict) or sorted(body) != ["state"] or type(body["state"]) is not str:
        raise PolicyError(f"the ABANDON message of site {who} does not have its fields (state)")
    if not _HASH.fullmatch(body["state"]):
        raise PolicyError(f"the ABANDON message of site {who} does not name a state")
    return bytes.fromhex(body["state"])


def abandon(
    identity: Ed25519PrivateKey, me: int, disk: SiteDisk, entry: LedgerEntry, present: bytes, following: bytes
) -> bytes:
    """This site's ABANDON of the round of `entry`, its ledger's entry, which it can do without.

    `following` [32]: the next state, which has the same tensors as `present` [32]. The ledger allows one next state per
    round, so a site that signed M6 of a round cannot abandon it for another state, nor the other way round.
    """
    disk.admit(LedgerEntry(entry.round_, entry.purpose, entry.input, entry.fingerprint, NO_SET, following))
    return sign_message(identity, labels.SIGN_ABANDON, me, present, {"state": following.hex()})
