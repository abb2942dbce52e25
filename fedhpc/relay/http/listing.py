"""What `GET /v1/objects/C/r/a/` answers: which objects, when it is enough to answer, and small bodies along with them.

A site names what it waits for, such as 3 objects of the kind M4, so that it is not woken by each message of the others;
and it gets the messages in the same answer, so that a phase of an attempt costs one round trip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedhpc.relay.problems import Problem
from fedhpc.relay.store.object_store import Stored
from fedhpc.wire.kinds import Carries, carries, is_turn

MAX_INLINE_BYTES = 1 << 20  # of all bodies in one answer
FRAMED = "application/vnd.fedhpc.listing"
_KIND = re.compile(r"[A-Z][A-Za-z0-9]{0,15}")


@dataclass(frozen=True)
class Wanted:
    """The query of a listing. Raises Problem for a kind or count that cannot be."""

    kind: str = ""  # '': any new object
    count: str = ""
    inline: str = ""

    def __post_init__(self) -> None:
        if self.kind and not _KIND.fullmatch(self.kind):
            raise Problem("bad-request", "kind is the name of a kind of objects, such as M1")
        if not re.fullmatch(r"|[1-9][0-9]{0,3}", self.count) or (self.count and not self.kind):
            raise Problem("bad-request", "count is a whole number of 1 to 9999 and goes with kind")
        if self.inline not in ("", "0", "1"):
            raise Problem("bad-request", "inline is 0 or 1")

    def choose(self, objects: Sequence[Stored], after: int) -> list[Stored] | None:
        """The objects that came after sequence `after`; None if there is more to wait for."""
        new = [s for s in objects if s.sequence > after]
        if not self.kind:
            return new or None
        if any(is_turn(s.name.name) for s in new):
            return new
        return new if sum(s.name.kind == self.kind for s in objects) >= int(self.count or 1) else None


def small(found: Sequence[Stored]) -> list[Stored]:
    """The objects whose bodies go into an answer: whichever still fit, in order. Vectors and sums never go."""
    chosen: list[Stored] = []
    size = 0
    for stored in found:
        if carries(stored.name) is not Carries.VECTOR and size + stored.length <= MAX_INLINE_BYTES:
            chosen.append(stored)
            size += stored.length
    return chosen


def fill(chosen: Sequence[Stored], buffer: memoryview) -> tuple[list[Stored], int]:
    """Read the bodies into `buffer`, one after the other: whose are there, and how many bytes they are together."""
    there: list[Stored] = []
    filled = 0
    for stored in chosen:
        try:
            body = stored.path.read_bytes()
        except FileNotFoundError:  # removed since it was listed
            continue
        buffer[filled : filled + len(body)] = body
        there.append(stored)
        filled += len(body)
    return there, filled


def document(cursor: str, found: Sequence[Stored], there: Sequence[Stored] = ()) -> bytes:
    """The listing in JSON, on one line. The bodies of objects with `"inline": true` follow the line in this order."""
    names = {s.name for s in there}
    objects = [
        {"name": s.name.name, "bytes": s.length, "tree": s.tree.hex()} | ({"inline": True} if s.name in names else {})
        for s in found
    ]
    return json.dumps({"after": cursor, "objects": objects}).encode()
