"""NEED and what answers it: who is asked, and when it is cleared away (docs/relay-rounds.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fedhpc.relay.store.object_store import Store
from fedhpc.wire import kinds
from fedhpc.wire.object_names import ObjectName

KEPT_S = 86400.0
ANSWER_S = 60.0


@dataclass
class Need:
    """One open NEED."""

    site: int
    attempt: int
    since: float
    asked: int = 0  # 0: nobody yet
    asked_at: float = 0.0
    given: set[int] = field(default_factory=set)  # who sent STATE
    refused: set[int] = field(default_factory=set)  # who was asked and did not

    def as_json(self) -> dict[str, int]:
        """As the status names it."""
        return {"site": self.site, "attempt": self.attempt, "asked": self.asked}


class CatchUps:
    """The open NEEDs of one federation."""

    def __init__(self, store: Store, config: str) -> None:
        self._store, self._config = store, config
        self.needs: dict[int, Need] = {}  # by attempt

    def note(self, name: ObjectName, now: float) -> None:
        """An object of round 0 became whole."""
        if name.kind == kinds.NEED.name and name.owner is not None:
            before = [need for need in self.needs.values() if need.site == name.owner]
            self.caught_up(name.owner)
            did_not_help = {u for need in before for u in (*need.refused, need.asked)}
            self.needs[name.attempt] = Need(name.owner, name.attempt, now, refused=did_not_help)
        elif name.kind == kinds.STATE.name and name.attempt in self.needs and name.owner is not None:
            self.needs[name.attempt].given.add(name.owner)

    def caught_up(self, site: int) -> None:
        """A site asks anew, or goes on: what it was given goes."""
        for attempt in [a for a, need in self.needs.items() if need.site == site]:
            self._remove(attempt)

    def step(self, now: float, roster: Iterable[int], alive: frozenset[int]) -> float | None:
        """Ask somebody else where nobody answers, and remove what is a day old; the next time to look."""
        times = []
        for need in list(self.needs.values()):
            if now >= need.since + KEPT_S:
                self._remove(need.attempt)
                continue
            times.append(need.since + KEPT_S)
            if need.asked in need.given and need.asked in alive:
                continue  # it has begun; how far it is the relay cannot know
            if need.asked == 0 or now >= need.asked_at + ANSWER_S:
                self._ask(need, now, roster, alive)
            times.append(need.asked_at + ANSWER_S)
        return min(times, default=None)

    def _ask(self, need: Need, now: float, roster: Iterable[int], alive: frozenset[int]) -> None:
        need.refused.add(need.asked)
        others = [u for u in roster if u != need.site and u in alive]
        left = [u for u in others if u not in need.refused]
        if not left:
            need.refused.clear()
            left = others
        need.asked, need.asked_at = (min(left) if left else 0), now

    def _remove(self, attempt: int) -> None:
        del self.needs[attempt]
        self._store.drop_attempt((self._config, 0, attempt))
