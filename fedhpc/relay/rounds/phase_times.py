"""How long the phases of the last rounds took, as the relay saw them. Kept in memory only: a restart forgets them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedhpc.relay.rounds.one_round import Round
from fedhpc.wire.kinds import PHASES

KEPT = 50  # rounds


@dataclass
class Times:
    """One round. Its size does not grow with its attempts."""

    number: int
    purpose: str
    phase: str  # the present one; "" when the round is done
    since: float
    attempts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # of the phases that have ended, over all attempts
    why: str = ""  # the last attempt that was given up was given up because of this
    u3: tuple[int, ...] = ()  # whose vectors are in the sum; once done

    def as_json(self, now: float) -> dict[str, Any]:
        """As GET /v1/federations/C says it."""
        seconds = dict(self.seconds)
        if self.phase:
            seconds[self.phase] = seconds.get(self.phase, 0.0) + now - self.since
        return {
            "sum": self.number,
            "purpose": self.purpose,
            "attempts": self.attempts,
            "done": not self.phase,
            "ended_s": None if self.phase else round(now - self.since, 3),
            "sites": list(self.u3),
            "seconds": {phase: round(seconds[phase], 3) for phase in PHASES if phase in seconds},
            "why": self.why,
        }


class PhaseTimes:
    """The last rounds of one federation. `tell` hears of each phase that has ended.

    Thread-safe: a federation whose roster entry changed hands it on, and may be in a step still, with another lock.
    """

    def __init__(self, tell: Callable[[str, float], None]) -> None:
        """`tell(phase, seconds)`."""
        self._tell = tell
        self._rounds: dict[int, Times] = {}
        self._lock = threading.Lock()

    def look(self, round_: Round, threshold: int, now: float) -> None:
        """Look which phase a round is in. Called after every change; `now` in seconds of any clock.

        The caller holds the federation's lock, which guards `round_`.
        """
        with self._lock:
            self._look(round_, threshold, now)

    def _look(self, round_: Round, threshold: int, now: float) -> None:
        times = self._rounds.get(round_.number)
        if not (round_.ready or round_.done) or (round_.done and (times is None or not times.phase)):
            return  # not begun, or done when the relay started
        phase = "" if round_.done else round_.look(now, threshold)[0]
        if times is None:
            times = self._begin(round_, phase, now)
        attempts = round_.last
        if (times.phase, times.attempts) != (phase, attempts):
            self._end_phase(times, now)
            times.phase, times.attempts = phase, attempts
        if round_.done:
            times.u3 = next((u3 for m in round_.attempts.values() if (u3 := m.settled()) is not None), ())

    def gave_up(self, number: int, why: str) -> None:
        """An attempt of a round was given up."""
        with self._lock:
            if number in self._rounds:
                self._rounds[number].why = why

    def as_json(self, now: float, most: int = KEPT) -> list[dict[str, Any]]:
        """The last `most` rounds, rising."""
        with self._lock:
            return [self._rounds[number].as_json(now) for number in sorted(self._rounds)[-most:]]

    def _begin(self, round_: Round, phase: str, now: float) -> Times:
        purpose = next(iter(round_.ready.values()))[0].purpose
        times = self._rounds[round_.number] = Times(round_.number, purpose, phase, now, round_.last)
        while len(self._rounds) > KEPT:
            del self._rounds[min(self._rounds)]
        return times

    def _end_phase(self, times: Times, now: float) -> None:
        took = now - times.since
        times.seconds[times.phase] = times.seconds.get(times.phase, 0.0) + took
        times.since = now
        self._tell(times.phase, took)
