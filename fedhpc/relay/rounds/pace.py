"""How often a site may write what makes others work: READY, LEAVE and NEED.

A READY is read and compared with all others, a LEAVE clears the lobby, a NEED has another site send its model. Honest
sites write one READY in a round, or a few where jobs end and go on; who writes more is asked to wait (429), which sites
do by themselves. A round that is done gives everybody the whole allowance again: fast rounds are never slowed.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhpc.wire import kinds

LARGE_BYTES = 32 << 10  # so much of an object costs as much as another object


@dataclass(frozen=True)
class Allowance:
    """`burst` at once, then `per_s` a second."""

    burst: float
    per_s: float


ALLOWANCES = {kinds.READY.purse: Allowance(16.0, 0.25), kinds.NEED.purse: Allowance(8.0, 1 / 60)}
"""By purse; LEAVE is paid out of that of READY."""


class Paces:
    """Of all sites of a federation. `now` in seconds of any clock."""

    def __init__(self) -> None:
        self._left: dict[tuple[int, str], tuple[float, float]] = {}  # site and purse -> what was left, and when

    def take(self, site: int, purse: str, length: int, now: float) -> bool:
        """Whether the site may write an object of `length` bytes now; then its `purse` (of wire/kinds.py) pays."""
        if not purse:
            return True
        allowance = ALLOWANCES[purse]
        left, at = self._left.get((site, purse), (allowance.burst, now))
        left = min(allowance.burst, left + allowance.per_s * (now - at))
        cost = 1.0 + length // LARGE_BYTES
        enough = left >= cost
        self._left[site, purse] = (left - cost if enough else left), now
        return enough

    def round_done(self) -> None:
        """The sites go on: what they wrote for the round is forgotten, but not how often they asked for a model."""
        self._left = {key: value for key, value in self._left.items() if key[1] == kinds.NEED.purse}
