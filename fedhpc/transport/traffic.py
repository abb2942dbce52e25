"""What a client of the relay has moved, for benchmarks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Counters of one client; bytes are those of bodies, without heads and TLS. Thread-safe."""

    requests: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    waited_s: float = 0.0  # for the heads of answers, over all threads
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, requests: int = 0, up: int = 0, down: int = 0, waited_s: float = 0.0) -> None:
        """Add to the counters."""
        with self._lock:
            self.requests += requests
            self.bytes_up += up
            self.bytes_down += down
            self.waited_s += waited_s
