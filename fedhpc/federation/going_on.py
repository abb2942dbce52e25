"""A program that starts again: which round its sums belong to, and when what was kept for it may go.

Without a checkpoint a program asks its sums again from the first one on. Over a relay those that are finished are
given to it from the site's disk (sums/over_relay/finished_sums.py), and it goes on where it was killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fedhpc.federation.party import NO_BASE
from fedhpc.secure.transcript import input_hash, u64

if TYPE_CHECKING:
    from fedhpc.federation.session import Session


class Reached(NamedTuple):
    """A sum that this site has finished."""

    round_: int  # 0: none
    salt: bytes  # its S [40]; empty where there is none


NONE_FINISHED = Reached(0, b"")


def round_of(session: Session, purpose: str) -> int:
    """The next round, or the round that this statistic has had before: then it must be the same vector again.

    A program that starts again and does not ask for what it has finished goes on after it: `federation` is then where
    the last of those sums led to. Every rank calls.
    """
    party, done, finished = session.party, session.round_, session.finished
    if not party.masked and not finished.round_:
        return done + 1
    found = b""
    if party.leads:
        before = 0
        if party.journal is not None:
            ledger = party.journal.ledger
            before = ledger.round_of(input_hash(purpose, NO_BASE)) or 0
            if not before and done < finished.round_ and ledger.entry_of(done + 1) is not None:
                done = finished.round_
        found = u64(before or done + 1) + u64(done)
    found = party.site.broadcast_bytes(found if party.leads else None)
    if int.from_bytes(found[8:], "little") != session.round_:
        session.round_, session.last_salt = finished
    return int.from_bytes(found[:8], "little")
