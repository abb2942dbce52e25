"""What one site holds during one attempt, and the rules its steps share: sets, signatures, one transcript each.

The steps are in attempt_site.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import InternalError, PolicyError
from fedhpc.secure import messages
from fedhpc.secure.attempt_file import AttemptSecrets, SiteDisk
from fedhpc.secure.dealing import Dealt
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.messages import Keys, Masked, Shares
from fedhpc.secure.opening import Opening, Streams
from fedhpc.secure.pairwise import Member
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.shares import Draw
from fedhpc.secure.thresholds import Thresholds, check_degree
from fedhpc.secure.transcript import input_hash, parse_canon, sign_message

_T = TypeVar("_T")


@dataclass(frozen=True)
class Expected:
    """What this site itself would put into M0."""

    config: bytes
    layout: bytes
    purpose: str
    round_: int
    state: bytes
    tensors: tuple[tuple[int, int], ...]  # (bits, lanes)
    base: bytes  # the state this site's vector starts from [32]; 32 zero bytes for a statistic
    bases: frozenset[bytes]  # what others may start from: states of this site's chain within `staleness` rounds


@dataclass(frozen=True)
class MaskPlan:
    """How this site hides its vector: keys for every rank of the site, to be dropped after use."""

    streams: Streams  # its own self mask first, then an edge per neighbour
    tag_key: bytes

    def __repr__(self) -> str:
        return f"MaskPlan({len(self.streams)} streams)"


class AttemptState:
    """What one site holds during one attempt, the rules for signing, and the checks that several steps share."""

    def __init__(
        self,
        me: int,
        identity: Ed25519PrivateKey,
        roster: Sequence[Member],
        thresholds: Thresholds,
        disk: SiteDisk,
        *,
        degree: int = 0,
        stored: AttemptSecrets | None = None,
        draw: Draw = os.urandom,
    ) -> None:
        """`me`: this site's number. `stored`: the attempt file of this attempt. `draw`: given by test vectors only."""
        if degree and degree < thresholds.sites - 1:
            check_degree(degree, thresholds)
        if stored is not None and stored.site != me:
            raise PolicyError(f"the attempt file belongs to site {stored.site}, not to {me}")
        self._me, self._identity, self._disk = me, identity, disk
        self._members = {m.number: m for m in roster}
        self._sites, self._tau = thresholds.sites, thresholds.threshold
        self._degree, self._draw = degree, draw
        self._secrets = stored
        self._m0: Proposal | None = None
        self._own: Expected | None = None
        self._t0 = self._t1 = self._t2 = self._t3 = b""
        self._keys: dict[int, Keys] = {}
        self._chan: dict[int, tuple[bytes, bytes]] = {}  # v -> keys of boxes to v and from v
        self._edges: dict[int, bytes] = {}  # v -> what the two mask keys share
        self._shares: dict[int, Shares] = {}
        self._dealt: dict[int, Dealt] = {}
        self._fingerprint = b""
        self._plan: MaskPlan | None = None
        self._masked: dict[int, Masked] = {}
        self._sum_tree = b""
        self._opening: Opening | None = None
        self._sum_checked = False
        self.faults: list[str] = []
        """Sites that sent something bad which the attempt could do without, and what it was."""

    def __repr__(self) -> str:
        return f"SiteAttempt(site {self._me})"

    @property
    def u1(self) -> tuple[int, ...]:
        """The sites whose keys count, once receive_keys took them."""
        return tuple(self._keys)

    @property
    def u2(self) -> tuple[int, ...]:
        """The sites whose masks are in the vectors."""
        return tuple(self._shares)

    @property
    def u3(self) -> tuple[int, ...]:
        """The sites whose vectors are in the sum."""
        return tuple(self._masked)

    def _check_size(self, members: Sequence[int], what: str) -> None:
        if len(members) < self._tau:
            raise PolicyError(f"{what} has {len(members)} sites; at least {self._tau} are needed")

    def _check_set(self, found: Mapping[int, bytes], within: Sequence[int], name: str, what: str, of: str) -> list[int]:
        """The rising members of a set of the relay: within the one before, large enough, this site unchanged."""
        outside = sorted(set(found) - set(within))
        if outside:
            raise PolicyError(f"{what} names sites {outside}, which are not in {of}")
        self._check_size(list(found), what)
        sent = given(self._secrets).sent.get(name)
        if sent is None or found.get(self._me) != sent:
            raise PolicyError(f"{what} lacks this site's own {name} message, or has it changed")
        return sorted(found)

    def _refuse_outsiders(self, found: Mapping[int, bytes], name: str) -> None:
        outside = sorted(set(found) - set(self._masked))
        if outside:
            raise PolicyError(f"{name} messages of sites {outside}, which are not in U3")

    def _refuse_other_transcript(self, name: str, transcript: bytes, what: str) -> None:
        """Raise PolicyError if this site signed another transcript in message `name` of this attempt."""
        sent = given(self._secrets).sent.get(name)
        if sent is not None and parse_canon(sent)["t"] != transcript.hex():
            raise PolicyError(
                f"the relay shows another {what} than this site signed in {name} of this attempt",
                "a site signs one transcript of each kind per attempt; nothing was sent",
            )

    def _sign_once(self, name: str, transcript: bytes, body: Any) -> bytes:
        """The signed message, durable before it is given out; a stored one is repeated, and never replaced."""
        secrets = given(self._secrets)
        self._refuse_other_transcript(name, transcript, "transcript")
        message = sign_message(self._identity, name, self._me, transcript, body)
        stored = secrets.sent.get(name)
        if stored is not None and stored != message:
            raise PolicyError(f"this site's {name} would differ from the one it signed in this attempt")
        if stored is None:
            secrets.sent[name] = message
            try:
                self._disk.save(secrets.export_private())
            except BaseException:
                del secrets.sent[name]
                raise
        return message

    def _open(self, message: bytes, name: str, transcript: bytes, u: int) -> Any:
        return messages.open_signed(message, name, transcript, self._members[u], self._sites)

    def _tolerate(self, check: Callable[..., _T], *arguments: Any) -> _T | None:
        """What `check` gives; where it refuses, the reason goes to `faults` and the attempt goes on without."""
        try:
            return check(*arguments)
        except PolicyError as error:
            self.faults.append(error.what)
            return None

    def _entry(self, own: Expected, fingerprint: bytes, u3: tuple[int, ...], state: bytes = b"") -> LedgerEntry:
        input_ = input_hash(own.purpose, own.base)
        return LedgerEntry(own.round_, own.purpose, input_, fingerprint, u3, state)

    def _name(self, u: int) -> str:
        return self._members[u].name


def given(value: _T | None) -> _T:
    """`value`, or InternalError where a step was called before the one that makes it."""
    if not value:
        raise InternalError("the steps of an attempt were called out of order, or after it was dropped")
    return value
