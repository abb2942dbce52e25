"""All that the relay shows its operator, as plain data: what /status.json says, and what page and metrics are made of.

Site numbers, hashes, sizes and times; names of sites are not known to the relay.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.relay.http.server import RelayServer
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.phase_times import KEPT
from fedhpc.relay.settings import HostedFederation, Limits, RelaySettings
from fedhpc.relay.status.notices import notices
from fedhpc.wire.pins import read_certificate

KIND = "fedhpc-relay"
_NOTHING = {"bytes": 0, "objects": 0, "uploads": 0}


@dataclass(frozen=True)
class Since:
    """What is as it was when the relay started."""

    started: datetime.datetime
    version: str
    limits: Limits
    certificates: tuple[tuple[str, str, datetime.datetime], ...]  # role, file name, end

    @classmethod
    def now(cls, settings: RelaySettings, limits: Limits, version: str) -> Since:
        """The certificates are those in use: a file that is renewed counts from the next start on."""
        files = [("relay", settings.certificate), *(("client authority", path) for path in settings.client_authorities)]
        ends = tuple((role, path.name, read_certificate(path).not_valid_after_utc) for role, path in files)
        return cls(datetime.datetime.now(datetime.UTC), version, limits, ends)


def snapshot(server: RelayServer, since: Since) -> dict[str, Any]:
    """The present state; each federation is seen at a moment of its own."""
    now = datetime.datetime.now(datetime.UTC)
    totals = server.store.totals()
    free, reserve = server.store.disk()
    found: dict[str, Any] = {
        "kind": KIND,
        "version": since.version,
        "time": now.isoformat(timespec="seconds"),
        "started": since.started.isoformat(timespec="seconds"),
        "uptime_s": round((now - since.started).total_seconds(), 1),
        "stopping": server.routes.stopping.is_set(),
        "roster_error": server.roster_error,
        "connections": {
            "open": server.connections,
            "most": since.limits.connections,
            "refused": int(server.metrics.value("connections_refused_total")),
            "handshakes_failed": int(server.metrics.value("handshakes_failed_total")),
        },
        "received_bytes": int(server.metrics.value("received_bytes_total")),
        "sent_bytes": int(server.metrics.value("sent_bytes_total")),
        "memory_bytes": memory("VmRSS"),
        "peak_memory_bytes": memory("VmHWM"),
        "disk": {"free_bytes": free, "reserve_bytes": reserve},
        "certificates": [
            {"role": role, "file": name, "ends": end.isoformat(timespec="seconds"), "left_s": _left(end, now)}
            for role, name, end in since.certificates
        ],
        "federations": [
            _federation(server, federation, totals.get(config, {}), now)
            for config, federation in sorted(server.roster.federations.items())
        ],
    }
    found["notices"] = [notice.as_json() for notice in notices(found)]
    return found


def _federation(
    server: RelayServer, federation: HostedFederation, used: dict[int | None, dict[str, int]], now: datetime.datetime
) -> dict[str, Any]:
    standing: dict[str, Any] = {"done": 0, "sums": [], "seen_s": {}, "needs": [], "bad_vectors": [], "times": []}
    with contextlib.suppress(Problem):  # admitted a moment ago, or just dropped
        standing |= server.rounds.standing(federation.config, KEPT)
    quota = federation.quota
    share_bytes, share_objects = quota.share(1)
    seen, ends = standing.pop("seen_s"), server.certificate_ends()
    return standing | {
        "config": federation.config,
        "sites": len(federation.pins),
        "threshold": federation.threshold,
        "revoked": list(federation.revoked),
        "policy": federation.cohort.policy,
        "durable": federation.durable,
        "members": [
            {
                "site": u,
                "seen_s": seen.get(str(u)),
                "certificate_left_s": _left(ends[pin], now) if pin in ends else None,
                **used.get(u, _NOTHING),
            }
            for u, pin in sorted(federation.pins.items())
        ],
        "stored": {name: _sum(used.values(), name) for name in _NOTHING},
        "relay_bytes": used.get(None, _NOTHING)["bytes"],
        "quota": {"bytes": quota.bytes, "objects": quota.objects},
        "share": {"bytes": share_bytes, "objects": share_objects},
    }


def gauges(found: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The snapshot's numbers as Prometheus gauges: (name, labels) -> value."""
    values: dict[tuple[str, str], float] = {
        ("build_info", f'version="{found["version"]}"'): 1,
        ("start_time_seconds", ""): datetime.datetime.fromisoformat(found["started"]).timestamp(),
        ("connections", ""): found["connections"]["open"],
        ("disk_free_bytes", ""): found["disk"]["free_bytes"],
        ("roster_readable", ""): 0 if found["roster_error"] else 1,
        ("resident_memory_bytes", ""): found["memory_bytes"],
        ("peak_resident_memory_bytes", ""): found["peak_memory_bytes"],
    }
    for number, certificate in enumerate(found["certificates"]):
        labels = f'role="{certificate["role"]}",number="{number}"'
        end = datetime.datetime.fromisoformat(certificate["ends"])
        values["certificate_end_timestamp_seconds", labels] = end.timestamp()
    for federation in found["federations"]:
        values |= _gauges_of(federation)
    return values


def _gauges_of(federation: dict[str, Any]) -> dict[tuple[str, str], float]:
    label = f'federation="{federation["config"][:16]}"'
    values: dict[tuple[str, str], float] = {
        ("quota_bytes", label): federation["quota"]["bytes"],
        ("last_sum_done", label): federation["done"],
        ("open_catchups", label): len(federation["needs"]),
        ("late_sites", label): len({u for open_round in federation["sums"] for u in open_round["late"]}),
    }
    for open_round in federation["sums"]:
        where = "phase_age_seconds", f'{label},phase="{open_round["phase"]}"'
        values[where] = max(values.get(where, 0.0), open_round["since_s"])
    owners = [(str(member["site"]), member) for member in federation["members"]]
    owners.append(
        ("relay", {name: federation["stored"][name] - _sum(federation["members"], name) for name in _NOTHING})
    )
    for owner, stored in owners:
        owned = f'{label},owner="{owner}"'
        values["stored_bytes", owned] = stored["bytes"]
        values["stored_objects", owned] = stored["objects"]
        values["uploads", owned] = stored["uploads"]
        if stored.get("seen_s") is not None:
            values["site_last_heard_seconds", f'{label},site="{owner}"'] = stored["seen_s"]
    return values


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; 0 where /proc has none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(field + ":")), 0)


def _left(end: datetime.datetime, now: datetime.datetime) -> int:
    return int((end - now).total_seconds())


def _sum(rows: Iterable[dict[str, int]], name: str) -> int:
    return sum(row[name] for row in rows)
