"""Counters of the relay, and their Prometheus text form (version 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Mapping

_HELP = {
    "connections_refused_total": "Connections over a cap",
    "handshakes_failed_total": "TLS handshakes that failed, also for a bad certificate",
    "received_bytes_total": "Body bytes received",
    "sent_bytes_total": "Bytes sent",
    "requests_total": "Requests by method and status",
    "request_seconds_total": "Time spent in requests, long polls included",
    "attempts_total": "Attempts proposed",
    "attempts_given_up_total": "Attempts given up",
    "rounds_done_total": "Rounds that were done",
    "connections": "Open connections",
    "stored_bytes": "Bytes of objects and uploads, as declared",
    "stored_objects": "Objects and uploads",
    "uploads": "Objects that are not whole yet",
    "resident_bytes": "Memory of the relay",
    "peak_resident_bytes": "Largest memory of the relay",
}
_METHODS = {"GET", "HEAD", "PUT"}


class Metrics:
    """Counts events; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], float] = {}

    def count(self, name: str, amount: float = 1.0, labels: str = "") -> None:
        """Add `amount` to a counter; `labels` in Prometheus form."""
        with self._lock:
            self._counts[name, labels] = self._counts.get((name, labels), 0.0) + amount

    def count_request(self, method: str, status: int, seconds: float) -> None:
        """One answered request. Unknown methods share a label, so that peers cannot make labels."""
        method = method if method in _METHODS else "other"
        self.count("requests_total", 1, f'method="{method}",status="{status}"')
        self.count("request_seconds_total", seconds, f'method="{method}"')

    def text(self, gauges: Mapping[tuple[str, str], float]) -> str:
        """Everything as Prometheus text; `gauges`: (name, labels) -> value now."""
        with self._lock:
            values = {**self._counts, **gauges}
        lines = []
        for name, help_text in _HELP.items():
            rows = sorted((labels, value) for (key, labels), value in values.items() if key == name)
            if not rows:
                continue
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP fedhpc_relay_{name} {help_text}", f"# TYPE fedhpc_relay_{name} {kind}"]
            lines += [f"fedhpc_relay_{name}{{{labels}}} {value:.15g}" for labels, value in rows]
        return "\n".join(lines).replace("{}", "") + "\n"
