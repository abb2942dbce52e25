"""When each site of a federation was heard of last. Threads of requests write it without the federation's lock."""

from __future__ import annotations

import threading
from collections.abc import Mapping

ALIVE_S = 60.0


class Heard:
    """Times in seconds of any clock, by site. Thread-safe."""

    def __init__(self, before: Mapping[int, float] | None = None) -> None:
        self._lock = threading.Lock()
        self._at: dict[int, float] = dict(before or {})

    def note(self, site: int, now: float) -> bool:
        """The site makes a request; whether it had not been heard of for a while."""
        with self._lock:
            before, self._at[site] = self._at.get(site), now
        return before is None or now - before > ALIVE_S

    def times(self) -> dict[int, float]:
        """All of them, as they are now."""
        with self._lock:
            return dict(self._at)

    def alive(self, now: float) -> frozenset[int]:
        """The sites heard of in the last minute."""
        return frozenset(site for site, at in self.times().items() if now - at <= ALIVE_S)
