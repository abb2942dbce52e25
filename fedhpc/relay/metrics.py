"""Counters and histograms of the relay, and their Prometheus text form (version 0.0.4).

Names end in their base unit, counters in _total. Labels come from the roster, from tables of the relay, or are numbers:
no peer can make new ones.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Mapping
from itertools import accumulate

PREFIX = "fedhpc_relay_"
_HELP = {
    "build_info": "Version of the relay; always 1",
    "start_time_seconds": "When the relay started, Unix time",
    "connections_refused_total": "Connections over a cap",
    "connections_evicted_total": "Connections without a known key that had to make room",
    "handshakes_failed_total": "TLS handshakes that failed, also for a bad certificate",
    "received_bytes_total": "Bytes of bodies received",
    "sent_bytes_total": "Bytes sent, heads included",
    "requests_total": "Requests by method and status",
    "request_seconds_total": "Time spent in requests, long polls included",
    "attempts_total": "Attempts proposed",
    "attempts_given_up_total": "Attempts given up",
    "sums_done_total": "Masked sums that were done",
    "bad_vectors_total": "Vectors that were not the ones their site had signed",
    "phase_duration_seconds": "How long the finished phases of attempts took",
    "phase_age_seconds": "How long an open round has been in its present phase",
    "last_sum_done": "Number of the last masked sum that is done",
    "late_sites": "Sites whose message an open round waits for",
    "open_catchups": "Sites that wait for the present model",
    "site_last_heard_seconds": "Seconds since a site was heard of",
    "connections": "Open connections",
    "stored_bytes": "Bytes of objects and uploads, as declared",
    "stored_objects": "Objects and uploads",
    "uploads": "Objects that are not whole yet",
    "quota_bytes": "Bytes that a federation may store",
    "disk_free_bytes": "Free bytes on the disk of the store",
    "certificate_end_timestamp_seconds": "When a certificate that the relay uses ends, Unix time",
    "roster_readable": "Whether the roster file could be read the last time: 1, or 0 and an old one is in use",
    "resident_memory_bytes": "Memory of the relay",
    "peak_resident_memory_bytes": "Largest memory of the relay",
}
_METHODS = {"GET", "HEAD", "PUT"}
_OF_A_FEDERATION = ("attempts_total", "attempts_given_up_total", "sums_done_total", "bad_vectors_total")
_ALONE = (
    "connections_refused_total",
    "connections_evicted_total",
    "handshakes_failed_total",
    "received_bytes_total",
    "sent_bytes_total",
)
_PHASE = "phase_duration_seconds"
_EDGES = (0.05, 0.2, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)  # upper, inclusive


class Metrics:
    """Counts events; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], float] = {(name, ""): 0.0 for name in _ALONE}
        self._phases: dict[str, tuple[list[int], list[float]]] = {}  # labels -> counts by bucket, [sum of seconds]

    def count(self, name: str, amount: float = 1.0, labels: str = "") -> None:
        """Add `amount` to a counter; `labels` in Prometheus form."""
        with self._lock:
            self._counts[name, labels] = self._counts.get((name, labels), 0.0) + amount

    def begin_federation(self, labels: str) -> None:
        """Show its counters as 0 from the start: an alert on a rise needs a value before it."""
        for name in _OF_A_FEDERATION:
            self.count(name, 0, labels)

    def count_request(self, method: str, status: int, seconds: float) -> None:
        """One answered request. Unknown methods share a label, so that peers cannot make labels."""
        method = method if method in _METHODS else "other"
        self.count("requests_total", 1, f'method="{method}",status="{status}"')
        self.count("request_seconds_total", seconds, f'method="{method}"')

    def observe_phase(self, labels: str, phase: str, seconds: float) -> None:
        """A phase of an attempt has ended."""
        with self._lock:
            buckets, total = self._phases.setdefault(f'{labels},phase="{phase}"', ([0] * (len(_EDGES) + 1), [0.0]))
            buckets[bisect.bisect_left(_EDGES, seconds)] += 1
            total[0] += seconds

    def value(self, name: str) -> float:
        """A counter without labels."""
        with self._lock:
            return self._counts.get((name, ""), 0.0)

    def text(self, gauges: Mapping[tuple[str, str], float]) -> str:
        """Everything as Prometheus text; `gauges`: (name, labels) -> value now."""
        with self._lock:
            values = {**self._counts, **gauges}
            phases = {labels: (list(buckets), total[0]) for labels, (buckets, total) in self._phases.items()}
        lines = []
        for name, help_text in _HELP.items():
            if name == _PHASE:
                rows, kind = list(_histogram(phases)), "histogram"
            else:
                found = sorted((labels, value) for (key, labels), value in values.items() if key == name)
                rows = [_row(name, labels, value) for labels, value in found]
                kind = "counter" if name.endswith("_total") else "gauge"
            if rows:
                lines += [f"# HELP {PREFIX}{name} {help_text}", f"# TYPE {PREFIX}{name} {kind}", *rows]
        return "\n".join(lines) + "\n"


def _histogram(phases: Mapping[str, tuple[list[int], float]]) -> Iterator[str]:
    for labels, (buckets, total) in sorted(phases.items()):
        for edge, count in zip((*map(_number, _EDGES), "+Inf"), accumulate(buckets), strict=True):
            yield _row(f"{_PHASE}_bucket", f'{labels},le="{edge}"', count)
        yield _row(f"{_PHASE}_sum", labels, total)
        yield _row(f"{_PHASE}_count", labels, sum(buckets))


def _row(name: str, labels: str, value: float) -> str:
    return f"{PREFIX}{name}{{{labels}}} {_number(value)}" if labels else f"{PREFIX}{name} {_number(value)}"


def _number(value: float) -> str:
    return f"{value:.15g}"
