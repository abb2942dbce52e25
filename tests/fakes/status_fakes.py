"""A relay's snapshot made by hand: no federation, or one with an open round of four sites."""

from __future__ import annotations

import copy
from typing import Any

DAY = 86400
EMPTY: dict[str, Any] = {
    "kind": "fedhpc-relay",
    "version": "1.2",
    "time": "2026-03-04T05:06:07+00:00",
    "started": "2026-03-04T05:00:07+00:00",
    "uptime_s": 360.0,
    "stopping": False,
    "roster_error": "",
    "connections": {"open": 2, "most": 512, "refused": 0, "handshakes_failed": 0},
    "received_bytes": 1_500_000,
    "sent_bytes": 10,
    "memory_bytes": 60_000_000,
    "peak_memory_bytes": 70_000_000,
    "disk": {"free_bytes": 10**12, "reserve_bytes": 1 << 26},
    "certificates": [{"role": "relay", "file": "relay.pem", "ends": "2030-01-01T00:00:00+00:00", "left_s": 900 * DAY}],
    "federations": [],
}
ROUND: dict[str, Any] = {
    "sum": 8,
    "attempt": 1,
    "phase": "masked",
    "ready": [1, 2, 3, 4],
    "cohort": [1, 2, 3, 4],
    "u1": [1, 2, 3, 4],
    "u2": [1, 2, 3, 4],
    "u3": [],
    "late": [2],
    "since_s": 12.5,
    "limit_s": 3600.0,
    "bytes": 123_456,
    "purpose": "train",
}
FEDERATION: dict[str, Any] = {
    "config": "ab" * 32,
    "done": 7,
    "sums": [ROUND],
    "needs": [],
    "bad_vectors": [],
    "times": [
        {
            "sum": 7,
            "purpose": "weights",
            "attempts": 1,
            "done": True,
            "ended_s": 40.0,
            "sites": [1, 2, 3, 4],
            "seconds": {"ready": 3.0, "keys": 1.0},
            "why": "",
        }
    ],
    "sites": 4,
    "threshold": 3,
    "policy": "sync",
    "durable": "disk",
    "revoked": [],
    "members": [
        {"site": u, "seen_s": 0.3, "certificate_left_s": 20 * DAY, "bytes": 10**6, "objects": 5, "uploads": 0}
        for u in (1, 2, 3, 4)
    ],
    "stored": {"bytes": 5 * 10**6, "objects": 22, "uploads": 0},
    "relay_bytes": 10**6,
    "quota": {"bytes": 4 * 10**9, "objects": 4000},
    "share": {"bytes": 10**9, "objects": 1000},
}


def snapshot(**changes: Any) -> dict[str, Any]:
    """A relay with one federation; `changes` are paths into the federation, such as rounds__0__late."""
    found = copy.deepcopy(EMPTY)
    found["federations"] = [copy.deepcopy(FEDERATION)]
    for path, value in changes.items():
        *way, last = [int(word) if word.isdigit() else word for word in path.split("__")]
        place: Any = found["federations"][0]
        for word in way:
            place = place[word]
        place[last] = value
    return found
