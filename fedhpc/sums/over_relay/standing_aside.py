"""A site that catches up keeps nobody waiting in the rounds that are open.

An earlier job may have begun one of them, whose run directory is lost or which this site cannot repeat: LEAVE ends the
others' wait. Where the policy wants all sites (`sync`), a round begins only once this site is ready too, and it cannot
be: of a training round it may lack the scales. So it is ready with values that match no other's, and leaves at once.
"""

from __future__ import annotations

import contextlib
import time

from fedhpc.errors import PolicyError
from fedhpc.federation.party import Party
from fedhpc.secure.thresholds import Thresholds
from fedhpc.secure.transcript import canon
from fedhpc.sums.over_relay.exchange import RelayExchange, TooLateError, objects_of

_FIRST_S = 10.0  # before that a site that gives its model may do so, and this one takes part in the round after all
_MOST = 2  # times in one round: one that needs all sites is given up each time
_NOBODYS = canon(
    {
        "base": bytes(32).hex(),
        "everyone": 0,
        "layout": bytes(32).hex(),
        "purpose": "absent",
        "state": bytes(32).hex(),
        "tensors": [[64, 1]],
    }
)


class StandingAside:
    """One site while it catches up. `look` now and then."""

    def __init__(self, party: Party, exchange: RelayExchange, thresholds: Thresholds) -> None:
        self._exchange = exchange
        self._waits = party.agreement.cohort.policy == "sync" and thresholds.threshold < thresholds.sites
        self._begun = time.monotonic()
        self._told: dict[int, int] = {}  # round -> how often it was ready there for nothing
        self._left: set[tuple[int, int, bool]] = set()  # round, attempt, whether that had begun

    def look(self) -> bool:
        """Leave rounds that wait for this site; where it must be ready first, be so. The relay's words are hints.

        Whether it was ready somewhere: the relay forgets the NEED of a site that is, so it must ask again.
        """
        me, told = self._exchange.me, False
        for entry in objects_of(self._exchange.standing(), "sums"):
            number, attempt, phase = entry.get("sum"), entry.get("attempt"), entry.get("phase")
            ready, cohort, late = (_list(entry.get(key)) for key in ("ready", "cohort", "late"))
            if type(number) is not int or type(attempt) is not int:
                continue
            begun = phase != "ready"
            if (number, attempt, begun) not in self._left and me in (cohort if begun else ready):
                self._left.add((number, attempt, begun))
                if begun or number not in self._told:
                    self._exchange.leave(number)
            elif self._waits and phase == "ready" and late == [me] and self._may_tell(number):
                self._told[number] = self._told.get(number, 0) + 1
                self._begun = time.monotonic()
                with contextlib.suppress(PolicyError, TooLateError):  # the round has ended: the next look tells
                    self._exchange.put(number, 0, "READY", _NOBODYS)
                    told = True
        return told

    def _may_tell(self, number: int) -> bool:
        return time.monotonic() - self._begun >= _FIRST_S and self._told.get(number, 0) < _MOST


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
