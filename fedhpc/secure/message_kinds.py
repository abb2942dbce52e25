"""The messages of one round over the relay: what each signature covers, and how long each can be.

The vault checks both and imports nothing from above, so this much of a kind stands here. Owner, place and phase of
an object are the business of relay and transport: wire/kinds.py, whose rows build on these.
Two signed messages never meet the relay's rounds: MPI in one job (pairwise.py), and ENROL (join_request.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fedhpc.secure import labels
from fedhpc.secure.sealing import SEAL_BYTES
from fedhpc.secure.shares import SHARE_BYTES
from fedhpc.secure.transcript import HASH_BYTES, MAX_CANON_BYTES

SHARES_BYTES = 2 * SHARE_BYTES + 32  # what a box of M2 holds: a share of b, a share of a, c
ENVELOPE_BYTES = 1024  # what a message may have beside its lists


class Signs(Enum):
    """What stands as `t` in a signed message: a link of transcript_chain.py, or other 32 bytes."""

    NOTHING = "-"  # the relay signs nothing
    T0 = "T0"
    T1 = "T1"
    T2 = "T2"
    T3 = "T3"
    CONFIG = "config"  # SHA-256 of federation.toml
    STATE = "state"  # the state before the round
    NEED = "NEED"  # H("need", the body of the NEED that it answers)

    @property
    def link(self) -> int | None:
        """0 to 3 for T0 to T3."""
        return int(self.value[1]) if self.value in ("T0", "T1", "T2", "T3") else None


@dataclass(frozen=True)
class Message:
    """One kind of message. Its length is at most the envelope, and what its lists need with N sites."""

    name: str
    signs: Signs
    per_site: int = 0  # bytes, times N
    per_pair: int = 0  # bytes, times N²
    fixed: int = 0  # bytes

    def most_bytes(self, sites: int) -> int:
        """The longest such message in a federation of `sites`; longer ones are refused unread."""
        lists = self.fixed + sites * (self.per_site + sites * self.per_pair)
        return min(MAX_CANON_BYTES, ENVELOPE_BYTES + lists)


_M2_PER_SITE = 2 * (SHARES_BYTES + SEAL_BYTES) + 4 * HASH_BYTES + 16
_M5_PER_SITE, _M5_PER_PAIR = 2 * SEAL_BYTES + 8, 2 * SHARE_BYTES

MESSAGES = (
    Message(labels.SIGN_CONFIG, Signs.CONFIG),
    Message("M0", Signs.NOTHING, per_site=2 * HASH_BYTES + 16, fixed=MAX_CANON_BYTES // 2),  # half for the tensors
    # M1 has `left_s`, how many seconds its site expects to live. It is always -1 and nobody reads it, but its field is
    # in T1 and in the frozen vectors: it goes with the next version of the protocol.
    Message(labels.SIGN_KEYS, Signs.T0),
    Message("U1", Signs.NOTHING, per_site=8),
    Message(labels.SIGN_SHARES, Signs.T1, per_site=_M2_PER_SITE),
    Message("U2", Signs.NOTHING, per_site=8),
    Message(labels.SIGN_MASKED, Signs.T2),
    Message("M4r", Signs.NOTHING, per_site=8),
    Message(labels.SIGN_SURVIVORS, Signs.T3),
    Message(labels.SIGN_UNMASK, Signs.T3, per_site=_M5_PER_SITE, per_pair=_M5_PER_PAIR),
    Message(labels.SIGN_RESULT, Signs.T3, per_site=8),
    Message(labels.SIGN_ABANDON, Signs.STATE),
    Message(labels.SIGN_NEED, Signs.CONFIG),
    Message(labels.SIGN_STATE, Signs.NEED, per_site=ENVELOPE_BYTES, per_pair=8),  # an M6 of each site
)
BY_NAME = {message.name: message for message in MESSAGES}
OF_AN_ATTEMPT = tuple(message.name for message in MESSAGES if message.signs.link is not None)
"""M1 to M6: what a site signs once in an attempt, and keeps in its attempt file."""


def max_bytes(name: str, sites: int) -> int:
    """The longest message `name` in a federation of `sites`; of a name without a row, the envelope."""
    return BY_NAME[name].most_bytes(sites) if name in BY_NAME else ENVELOPE_BYTES
