"""`fedhpc bench sum --exchange https`: a relay and the sites as processes of their own on this machine.

Two federations with the same sites sum the same data, one with masks and one without, in turn; bare TLS sockets move
the same bytes in the same run. A time goes from the first site's start to the last site's end.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhpc.bench.given_ranks import require_alone
from fedhpc.bench.memory import peak_bytes
from fedhpc.bench.start import environment_here
from fedhpc.bench.sum_ranks import versions
from fedhpc.bench.tls_pair import tls_pair_bytes_per_s
from fedhpc.config import read_bytes
from fedhpc.enrolment.one_machine import Enrolled, enrol, running_relay
from fedhpc.errors import InternalError
from fedhpc.mpi.launch import launcher_command
from fedhpc.mpi.own_ranks import run_ranks

_SECTIONS = """\
[secure]
mode = "{mode}"
lane_bits = {lane_bits}
degree = {degree}
accept_two_sites = true
"""


def measure(
    *, ranks: Sequence[int], params: int, lane_bits: int, repeat: int, degree: int, folder: str | None
) -> dict[str, Any]:
    """The result for --json. `ranks` of each site. `folder`: where the relay keeps its objects; absent: temporary."""
    require_alone()
    sites = len(ranks)
    with tempfile.TemporaryDirectory(prefix="fedhpc-bench-", dir=folder) as name:
        home = Path(name)
        nbytes = params * lane_bits // 8
        names = {f"site{u}": home for u in range(1, sites + 1)}
        plain = _SECTIONS.format(mode="off", lane_bits=lane_bits, degree=degree)
        quota = 4 * (repeat + 2) * (sites + 1) * nbytes + (1 << 30)
        off = enrol(home, "bench", plain, names, unmasked=True, quota_bytes=quota)
        masked = off.variant(home / "masked", read_bytes(off.federation).replace(b'"off"', b'"pairwise"'), quota)
        pairs = [tls_pair_bytes_per_s(sites, nbytes) for _ in range(repeat)]
        with running_relay(off.relay) as relay:
            reports = _run_sites(off, masked, relay.pid, repeat, params, lane_bits, ranks)
            peak = peak_bytes(relay.pid)
    socket_rate = statistics.median(pairs)
    times = {mode: _spans(reports, mode) for mode in ("off", "masked")}
    masked_s, unmasked_s = statistics.median(times["masked"]), statistics.median(times["off"])
    moved = 2 * sites * nbytes
    first = reports[0]
    return {
        "plain_s": moved / socket_rate,
        "unmasked_s": unmasked_s,
        "masked_s": masked_s,
        "compare_results_s": statistics.median(r["settle_s"] for r in reports),
        "masked_over_plain": masked_s / (moved / socket_rate),
        "masked_speed_over_unmasked": unmasked_s / masked_s,
        "tls_socket_bytes_per_s": socket_rate,
        "exchange_bytes_per_s": moved / unmasked_s,
        "exchange_over_tls_socket": moved / unmasked_s / socket_rate,
        "masked_exchange_over_tls_socket": moved / masked_s / socket_rate,
        "relay_peak_rss_bytes": peak,
        "round_trips": max(r["round_trips"] for r in reports),
        "round_trips_exposed": max(r["round_trips_exposed"] for r in reports),
        "verified": all(r["verified"] for r in reports),
        "bytes_up_per_site": first["bytes_up"],
        "peak_rss_bytes": max(r["peak_bytes"] for r in reports),
        "baseline_rss_bytes": max(r["baseline_bytes"] for r in reports),
        "extra_bytes": max(r["peak_bytes"] - r["baseline_bytes"] for r in reports) - nbytes,
        "stages_s": {n: statistics.fmean(r["stages_s"][n] for r in reports) for n in first["stages_s"]},
        "params": params,
        "sites": sites,
        "ranks": list(ranks),
        "lane_bits": lane_bits,
        "degree": degree,
        "repeat": repeat,
        "repeats": _repeats(reports, times, peak),
        "exchange": "https",
        "versions": versions(),
    }


def _run_sites(
    off: Enrolled, masked: Enrolled, relay_pid: int, repeat: int, params: int, lane_bits: int, ranks: Sequence[int]
) -> list[dict[str, Any]]:
    environment, _ = environment_here()
    commands = []
    for name, count in zip(off.sites, ranks, strict=True):
        case = {
            "federations": {"off": str(off.federation), "masked": str(masked.federation)},
            "site_files": {"off": str(off.site_file(name)), "masked": str(masked.site_file(name))},
            "relay_pid": relay_pid,
            "repeat": repeat,
            "params": params,
            "lane_bits": lane_bits,
        }
        words = [sys.executable, "-m", "fedhpc.bench.relayed_sum_site", json.dumps(case)]
        if count > 1:
            words = [*launcher_command(count), sys.executable, "-m", "mpi4py", *words[1:]]
        commands.append(words)
    return [_last_object(output) for output in run_ranks(commands, environment, keep_output=True)]


def _last_object(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise InternalError("a site printed no result")


def _spans(reports: list[dict[str, Any]], mode: str) -> list[float]:
    """Per repeat: from the first site's start to the last one's end."""
    spans = [r["spans"][mode] for r in reports]
    return [max(s[k][1] for s in spans) - min(s[k][0] for s in spans) for k in range(len(spans[0]))]


def _repeats(reports: list[dict[str, Any]], spans: dict[str, list[float]], relay_peak: int) -> list[dict[str, Any]]:
    """Per repeat what all sites and the relay took, the largest the relay had in all of them (bench/record.py)."""
    found = []
    for k, wall_s in enumerate(spans["masked"]):
        masked, off = ([r["repeats"][mode][k] for r in reports] for mode in ("masked", "off"))
        relay_cpu_s = masked[0]["relay_cpu_s"]
        found.append(
            {
                "wall_s": wall_s,
                "cpu_s": sum(site["cpu_s"] for site in masked) + relay_cpu_s,
                "peak_bytes": sum(site["peak_bytes"] for site in masked) + relay_peak,
                "verified": all(site["verified"] for site in [*masked, *off]),
                "unmasked_s": spans["off"][k],
                "unmasked_cpu_s": sum(site["cpu_s"] for site in off) + off[0]["relay_cpu_s"],
                "relay_cpu_s": relay_cpu_s,
            }
        )
    return found
