"""A program that starts again: which round its sums belong to, and when what was kept for it may go.

Without a checkpoint a program asks its sums again from the first one on. Over a relay those that are finished are
given to it from the site's disk (finished_sums.py), and it goes on where it was killed.
"""

from __future__ import annotations

from fedhpc.federation.party import NO_BASE, Party
from fedhpc.secure.transcript import input_hash, u64


def round_of(party: Party, purpose: str, done: int, finished: int) -> tuple[int, int]:
    """(round of a statistic, sums done before it): the next round, or the one that this statistic has had before.

    Then it must be the same vector again. `done`: sums finished so far. `finished`: the last one that an earlier
    process finished, over a relay. A program that does not ask for those again goes on after them. Every rank calls.
    """
    if not party.masked and not finished:
        return done + 1, done
    found = b""
    if party.leads:
        before = 0
        if party.journal is not None:
            ledger = party.journal.ledger
            before = ledger.round_of(input_hash(purpose, NO_BASE)) or 0
            if not before and done < finished and ledger.entry_of(done + 1) is not None:
                done = finished
        found = u64(before or done + 1) + u64(done)
    found = party.site.broadcast_bytes(found if party.leads else None)
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:], "little")
