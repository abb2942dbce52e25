"""The table of everything that sites and relay put before each other: one row for each kind of object.

Its owner, its place, the phase in which it counts, its length, what its signature covers. The relay's gate,
its machine and its listings, and the spool, read this table; docs/relay-rounds.md shows it to people, and a test
compares the two. What a row's signature covers and how long its message is, the vault must know by itself:
secure/message_kinds.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from fedhpc.secure import labels
from fedhpc.secure.message_kinds import BY_NAME, ENVELOPE_BYTES, Signs
from fedhpc.secure.sealing import SEAL_BYTES
from fedhpc.secure.transcript import MAX_CANON_BYTES
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName

MAX_TENSORS = 1 << 14  # ten times those of the largest models that are trained whole
MAX_PURPOSE = 4096
MAX_READY_BYTES = 24 * MAX_TENSORS + 2 * MAX_PURPOSE  # "[64, 9007199254740991], " each, plain text, and the rest
MAX_LEAVE_BYTES = 64

PHASES = {
    "ready": "collecting",
    "keys": "keys",
    "shares": "shares",
    "masked": "masked upload",
    "sum": "sum",
    "answers": "answers",
    "results": "results",
}
"""The phases of a round in their order, as the relay's status names them, and in words for people."""


class Place(Enum):
    """Where an object lies: config/round/attempt/NAME."""

    FEDERATION = "C/0/0"
    CATCH_UP = "C/0/n"  # n is drawn by the site that asks
    LOBBY = "C/r/0"
    ATTEMPT = "C/r/a"


class Owner(Enum):
    """The writer of an object, and how many sites its name has."""

    RELAY = 0
    SITE = 1  # NAME/u
    SITE_FOR_SITE = 2  # NAME/g/u: site g writes it for site u


class Carries(Enum):
    """How an object travels."""

    MESSAGE = "message"  # along with a listing
    VECTOR = "vector"  # by itself, as long as M0 says
    BLOCK = "block"  # by itself: a sealed block of a model


class Set(Enum):
    """The sets of an attempt, each within the one before. Values are the names that RoundMachine gives them."""

    COHORT = "members"
    U1 = "u1"
    U2 = "u2"
    U3 = "u3"


@dataclass(frozen=True)
class Kind:
    """One row."""

    name: str  # of the object, without sites; followed by a number where `numbered`
    place: Place
    owner: Owner
    limit: int = 0  # bytes, where it is neither a message of secure/message_kinds.py nor a vector
    carries: Carries = Carries.MESSAGE
    numbered: bool = False
    phase: str = ""  # of PHASES, which waits for it or ends with it
    senders: Set | None = None  # whose members may send it
    forms: Set | None = None  # what those who sent it become
    shared: bool = True  # whether other sites may read it
    turn: bool = False  # says that the relay has gone on: it ends every wait
    after_next: bool = False  # taken after NEXT too: a site that answered is bound, and the relay wants to know
    after_done: bool = False  # taken after DONE too: a site that comes back opens the sum that holds its vector
    binds: bool = False  # kept of an old attempt in which sites answered: over which set, and who
    purse: str = ""  # whose allowance it takes, where it makes others work (relay/rounds/pace.py)

    @property
    def signs(self) -> Signs:
        """What its signature covers as `t`."""
        return BY_NAME[self.name].signs if self.name in BY_NAME else Signs.NOTHING

    def most_bytes(self, sites: int) -> int | None:
        """The longest object of this kind in a federation of `sites`; None for a vector, whose length M0 says."""
        if self.carries is Carries.VECTOR:
            return None
        return BY_NAME[self.name].most_bytes(sites) if self.name in BY_NAME else self.limit


CONFIG = Kind(labels.SIGN_CONFIG, Place.FEDERATION, Owner.SITE)
FEATURES = Kind("FEATURES", Place.FEDERATION, Owner.SITE, MAX_CANON_BYTES)
# With the purpose `absent` and values that match no other site's, READY says that its site stands aside: a row of its
# own would be refused by relays that do not know it.
READY = Kind("READY", Place.LOBBY, Owner.SITE, MAX_READY_BYTES, phase="ready", purse="READY")
LEAVE = Kind("LEAVE", Place.LOBBY, Owner.SITE, MAX_LEAVE_BYTES, purse="READY")
ABANDON = Kind(labels.SIGN_ABANDON, Place.LOBBY, Owner.SITE)
ANNOUNCED = Kind("A", Place.LOBBY, Owner.RELAY, ENVELOPE_BYTES, numbered=True, turn=True)
DONE = Kind("DONE", Place.LOBBY, Owner.RELAY, ENVELOPE_BYTES, turn=True)
M0 = Kind("M0", Place.ATTEMPT, Owner.RELAY, binds=True)
M1 = Kind(labels.SIGN_KEYS, Place.ATTEMPT, Owner.SITE, phase="keys", senders=Set.COHORT, forms=Set.U1)
U1 = Kind("U1", Place.ATTEMPT, Owner.RELAY)
M2 = Kind(labels.SIGN_SHARES, Place.ATTEMPT, Owner.SITE, phase="shares", senders=Set.U1, forms=Set.U2)
U2 = Kind("U2", Place.ATTEMPT, Owner.RELAY)
M3V = Kind(
    "M3v",
    Place.ATTEMPT,
    Owner.SITE,
    carries=Carries.VECTOR,
    phase="masked",
    senders=Set.U2,
    forms=Set.U3,
    shared=False,  # the relay adds it; other sites have no use for it
)
M3 = Kind(labels.SIGN_MASKED, Place.ATTEMPT, Owner.SITE, phase="masked", senders=Set.U2, forms=Set.U3)
Y = Kind("Y", Place.ATTEMPT, Owner.RELAY, carries=Carries.VECTOR, phase="sum")
M4R = Kind("M4r", Place.ATTEMPT, Owner.RELAY, binds=True)
M4 = Kind(
    labels.SIGN_SURVIVORS, Place.ATTEMPT, Owner.SITE, phase="answers", senders=Set.U3, after_done=True, binds=True
)
M5 = Kind(
    labels.SIGN_UNMASK,
    Place.ATTEMPT,
    Owner.SITE,
    phase="answers",
    senders=Set.U3,
    after_next=True,
    after_done=True,
    binds=True,
)
M6 = Kind(
    labels.SIGN_RESULT, Place.ATTEMPT, Owner.SITE, phase="results", senders=Set.U3, after_next=True, after_done=True
)
NEXT = Kind("NEXT", Place.ATTEMPT, Owner.RELAY, ENVELOPE_BYTES, turn=True)
NEED = Kind(labels.SIGN_NEED, Place.CATCH_UP, Owner.SITE, purse="NEED")
STATE = Kind(labels.SIGN_STATE, Place.CATCH_UP, Owner.SITE_FOR_SITE)
BLOCK = Kind("B", Place.CATCH_UP, Owner.SITE_FOR_SITE, BLOCK_BYTES + SEAL_BYTES, carries=Carries.BLOCK, numbered=True)

KINDS = (
    *(CONFIG, FEATURES, READY, LEAVE, ABANDON, ANNOUNCED, DONE),
    *(M0, M1, U1, M2, U2, M3V, M3, Y, M4R, M4, M5, M6, NEXT),
    *(NEED, STATE, BLOCK),
)
"""Every row, in the order of a round."""
SENT = tuple(kind for kind in KINDS if kind.senders is not None)
"""What sites send in an attempt."""
FORMING = (M1, M2, M3)
"""The messages whose senders the relay counts, and which U1, U2 and U3 are formed by; T1, T2 and T3 hash them."""
UNSHARED = frozenset(kind.name for kind in KINDS if not kind.shared)

_STEM = re.compile(r"([A-Z])[0-9]+")
_ROWS = {kind.name: kind for kind in KINDS if not kind.numbered}
_NUMBERED = {kind.name: kind for kind in KINDS if kind.numbered}


def row(name: str) -> Kind | None:
    """The row of a name without sites, such as `M3v` or `A2`, wherever it may lie; None if there is none."""
    number = _STEM.fullmatch(name)
    return _ROWS.get(name) or (_NUMBERED.get(number[1]) if number else None)


def kind_of(name: ObjectName) -> Kind | None:
    """The row of an object; None where no object of that name lies."""
    found = row(name.kind)
    here = found is not None and found.place is place_of(name) and found.owner.value == len(name.sites)
    return found if here else None


def place_of(name: ObjectName) -> Place:
    """Where an object lies, by the numbers in its name."""
    if name.round == 0:
        return Place.CATCH_UP if name.attempt else Place.FEDERATION
    return Place.ATTEMPT if name.attempt else Place.LOBBY


def announced(name: str) -> int:
    """The attempt that an object of the lobby announces: 3 for `A3`; 0 for every other name."""
    return int(name[len(ANNOUNCED.name) :]) if row(name) is ANNOUNCED else 0


def is_turn(name: str) -> bool:
    """Whether an object of the relay, `name` in full, says that it has gone on."""
    found = row(name)
    return found is not None and found.turn


def carries(name: ObjectName) -> Carries:
    """How an object travels; one of no row as a message does."""
    found = row(name.kind)
    return Carries.MESSAGE if found is None else found.carries
