"""Where a round's wall-clock time goes."""

from __future__ import annotations

import time

from fedhpc.rounds.local_round import Local


class RoundClock:
    """Runs from when it is made, at the beginning of a round."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def split(self) -> None:
        """The next part begins now."""
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """`part` ends now; it began with the last split or the end of another part."""
        now = time.perf_counter()
        self._laps[part], self._last = now - self._last, now

    def since_beginning(self) -> float:
        """Seconds from the beginning of the round to the end of the newest part."""
        return self._last - self._begun

    def seconds(self, local: Local) -> dict[str, float]:
        """The seconds of a round's record (app/telemetry.py): local work as it took this job, the parts, the total."""
        work = {"train": local.train_s, "evaluate": local.evaluate_s}
        return work | self._laps | {"total": time.perf_counter() - self._begun}
