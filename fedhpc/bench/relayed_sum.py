"""`fedhpc bench sum --exchange https`: a relay and the sites as processes of their own on this machine.

Two federations with the same sites sum the same data, one with masks and one without, in turn; bare TLS sockets move
the same bytes in the same run, before and after, and as many bytes as all vectors have are written and fsynced where
the relay has its objects. A time goes from the first site's start to the last site's end. Each site may have a
long or narrow line to the relay, and the last ones may vanish once they share masks with the others: then every repeat
is a federation of its own, and a time includes the wait for them until `[cohort] upload_s` and the recovery. Bare
sockets have neither, so there is nothing of them then to compare with.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedhpc.bench.disk_rate import store_of, written_bytes_per_s
from fedhpc.bench.given_ranks import require_alone
from fedhpc.bench.memory import peak_bytes
from fedhpc.bench.shaped_line import Line
from fedhpc.bench.start import environment_here
from fedhpc.bench.sum_ranks import versions
from fedhpc.bench.tls_pair import Pair, tls_pair
from fedhpc.config import read_bytes
from fedhpc.enrolment.one_machine import Enrolled, enrol, running_relay
from fedhpc.errors import InternalError
from fedhpc.files import write_whole
from fedhpc.mpi.launch import launcher_command
from fedhpc.mpi.own_ranks import run_ranks

_SECTIONS = """\
[secure]
mode = "{mode}"
lane_bits = {lane_bits}
degree = {degree}
accept_two_sites = true
{secure}{more}"""
_SLOWEST_BYTES_PER_S = 20e6  # of all sites together, that a site which still uploads is never taken for a lost one
PATIENCE_S = 30.0
"""How long sites that are late are waited for besides: a machine that does other things must not lose a live one."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    ranks: Sequence[int]  # of each site
    params: int
    lane_bits: int
    repeat: int
    degree: int
    folder: str | None = None  # where the relay keeps its objects; absent: temporary
    secure: str = ""  # further keys of [secure], lines
    latency_ms: float = 0.0  # round trip between a site and the relay
    mbit_s: float = 0.0  # of each site's line, in each direction; 0: no limit
    lost: int = 0  # sites that vanish
    patience_s: float = PATIENCE_S
    durable: str = "disk"  # as `fedhpc relay admit --durable`: whether vectors are synced

    @property
    def sites(self) -> int:
        """Number of sites."""
        return len(self.ranks)

    @property
    def is_bare(self) -> bool:
        """Whether bare sockets move the same bytes over the same lines."""
        return not (self.latency_ms or self.mbit_s or self.lost)

    @property
    def nbytes(self) -> int:
        """Of one site's vector."""
        return self.params * self.lane_bits // 8

    @property
    def upload_s(self) -> float:
        """How long the others wait for a lost site's vector."""
        line_s = 8 * self.nbytes / (self.mbit_s * 1e6) if self.mbit_s else 0.0
        far_s = 20 * self.latency_ms / 1000
        return round(self.patience_s + self.sites * self.nbytes / _SLOWEST_BYTES_PER_S + 1.5 * line_s + far_s, 1)

    def sections(self, mode: str) -> str:
        """Of federation.toml."""
        more = f"[cohort]\nupload_s = {self.upload_s}\n" if self.lost and mode == "pairwise" else ""
        return _SECTIONS.format(mode=mode, lane_bits=self.lane_bits, degree=self.degree, secure=self.secure, more=more)

    def settings(self) -> dict[str, Any]:
        """Those of them that are not as usual, for the record."""
        found: dict[str, Any] = {"latency_ms": self.latency_ms, "mbit_s": self.mbit_s, "lost": self.lost}
        found = {name: value for name, value in found.items() if value}
        found |= {"durable": self.durable} if self.durable != "disk" else {}
        return found | ({"upload_s": self.upload_s} if self.lost else {})


@dataclass
class Floor:
    """What this machine can do with the same bytes without fedhpc; empty where lines or losses are part of a time."""

    store: str = "disk"
    pairs: list[Pair] = field(default_factory=list)
    disk_bytes_s: list[float] = field(default_factory=list)

    def measure(self, case: Case, folder: Path, times: int) -> None:
        """So many times more."""
        self.store = "memory" if case.durable == "memory" else store_of(folder)
        for _ in range(times if case.is_bare else 0):
            self.pairs.append(tls_pair(case.sites, case.nbytes))
            self.disk_bytes_s.append(written_bytes_per_s(folder, case.sites * case.nbytes))


def measure(case: Case) -> dict[str, Any]:
    """The result for --json."""
    require_alone()
    floor = Floor()
    with tempfile.TemporaryDirectory(prefix="fedhpc-bench-", dir=case.folder) as name, ExitStack() as stack:
        home = Path(name)
        floor.measure(case, home, -(-case.repeat // 2))
        names = {f"site{u}": home for u in range(1, case.sites + 1)}
        quota = 4 * (case.repeat + 2) * (case.sites + 1) * case.nbytes + (1 << 30)
        off = enrol(home, "bench", case.sections("off"), names, unmasked=True, quota_bytes=quota, durable=case.durable)
        relay = stack.enter_context(running_relay(off.relay))
        ports = [stack.enter_context(_line(case, off.port)) for _ in names]
        reports: list[dict[str, Any]] = []
        for number in range(case.repeat if case.lost else 1):
            plain, masked = _federations(case, off, home, number, quota)
            here = replace(case, repeat=1) if case.lost else case
            found = _run_sites(here, plain, masked, relay.pid, ports)
            reports = [_joined(*two) for two in zip(reports, found, strict=True)] if reports else found
        peak = peak_bytes(relay.pid)
        floor.measure(case, home, case.repeat // 2)
    return _result(case, reports, floor, peak)


def _federations(case: Case, off: Enrolled, home: Path, number: int, quota: int) -> tuple[Enrolled, Enrolled]:
    """One without masks and one with; new ones for each repeat where sites vanish and miss the end."""
    mark, text = f"# {number}\n", read_bytes(off.federation).decode()
    secured = mark + text.replace(case.sections("off"), case.sections("pairwise"))
    masked = off.variant(home / f"masked-{number}", secured.encode(), quota)
    if case.lost:
        off = off.variant(home / f"off-{number}", (mark + text).encode(), quota, unmasked=True)
    return off, masked


@contextmanager
def _line(case: Case, port: int) -> Iterator[int]:
    """The port by which a site reaches the relay."""
    if not (case.latency_ms or case.mbit_s):
        yield port
        return
    with Line(port, case.latency_ms / 2000, case.mbit_s * 1e6 / 8) as line:
        yield line.port


def _joined(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a site reported of earlier repeats, and of one more."""
    largest = {name: max(before[name], found[name]) for name in ("peak_bytes", "baseline_bytes")}
    modes = {name: {m: before[name][m] + found[name][m] for m in before[name]} for name in ("spans", "repeats")}
    lists = {name: [*before[name], *found[name]] for name in ("settles", "turns") if name in before}
    return found | largest | modes | lists | {"verified": before["verified"] and found["verified"]}


def _result(case: Case, reports: list[dict[str, Any]], floor: Floor, peak: int) -> dict[str, Any]:
    there = reports[: case.sites - case.lost]
    times = {"off": _spans(reports, "off"), "masked": _spans(there, "masked")}
    masked_s, unmasked_s = statistics.median(times["masked"]), statistics.median(times["off"])
    moved = 2 * case.sites * case.nbytes
    of_sites = [_middle(r) for r in there]
    repeats = _repeats(case, reports, times, peak)
    cpus = [repeat["cpu_s"] for repeat in repeats]
    return {
        "unmasked_s": unmasked_s,
        "masked_s": masked_s,
        "compare_results_s": statistics.median(m["settle_s"] for m in of_sites),
        "masked_speed_over_unmasked": unmasked_s / masked_s,
        "exchange_bytes_per_s": moved / unmasked_s,
        "cpu_all_s": statistics.median(cpus),
        **_over_floor(floor, moved, unmasked_s, masked_s, statistics.median(cpus)),
        "minima": {"unmasked_s": min(times["off"]), "masked_s": min(times["masked"]), "cpu_all_s": min(cpus)},
        "relay_peak_rss_bytes": peak,
        "round_trips": max(m["round_trips"] for m in of_sites),
        "round_trips_exposed": max(m["round_trips_exposed"] for m in of_sites),
        "verified": all(r["verified"] for r in reports),
        "bytes_up_per_site": of_sites[0]["bytes_up"],
        "peak_rss_bytes": max(r["peak_bytes"] for r in there),
        "baseline_rss_bytes": max(r["baseline_bytes"] for r in there),
        "extra_bytes": max(r["peak_bytes"] - r["baseline_bytes"] for r in there) - case.nbytes,
        "stages_s": {n: statistics.fmean(m["stages_s"][n] for m in of_sites) for n in of_sites[0]["stages_s"]},
        "params": case.params,
        "sites": case.sites,
        "ranks": list(case.ranks),
        "lane_bits": case.lane_bits,
        "degree": case.degree,
        **case.settings(),
        "repeat": case.repeat,
        "repeats": repeats,
        "exchange": "https",
        "store": floor.store,
        "versions": versions(),
    }


def _middle(report: dict[str, Any]) -> dict[str, Any]:
    """Medians of a site over its masked sums; of whole numbers, one that was there."""
    turns = report["turns"]
    whole = {n: statistics.median_high(t[n] for t in turns) for n in ("round_trips", "round_trips_exposed", "bytes_up")}
    stages = {name: statistics.median(t["stages_s"][name] for t in turns) for name in turns[0]["stages_s"]}
    return whole | {"settle_s": statistics.median(report["settles"]), "stages_s": stages}


def _over_floor(floor: Floor, moved: int, unmasked_s: float, masked_s: float, cpu_s: float) -> dict[str, float]:
    """What bare sockets take for `moved` bytes, what the sums take over that, and what the disk can write."""
    if not floor.pairs:
        return {}
    rate = statistics.median(pair.bytes_per_s for pair in floor.pairs)
    cpu_tls_s = statistics.median(pair.cpu_s for pair in floor.pairs)
    return {
        "plain_s": moved / rate,
        "masked_over_plain": masked_s / (moved / rate),
        "tls_socket_bytes_per_s": rate,
        "exchange_over_tls_socket": moved / unmasked_s / rate,
        "masked_exchange_over_tls_socket": moved / masked_s / rate,
        "cpu_tls_s": cpu_tls_s,
        "cpu_all_over_tls": cpu_s / cpu_tls_s,
        "disk_bytes_s": statistics.median(floor.disk_bytes_s),
    }


def _run_sites(
    case: Case, off: Enrolled, masked: Enrolled, relay_pid: int, ports: Sequence[int]
) -> list[dict[str, Any]]:
    environment, _ = environment_here()
    commands = []
    for number, (name, count, port) in enumerate(zip(off.sites, case.ranks, ports, strict=True), 1):
        site_case = {
            "federations": {"off": str(off.federation), "masked": str(masked.federation)},
            "site_files": {"off": str(_through(off, name, port)), "masked": str(_through(masked, name, port))},
            "relay_pid": relay_pid,
            "repeat": case.repeat,
            "params": case.params,
            "lane_bits": case.lane_bits,
            "members": case.sites - case.lost,
            "vanishes": number > case.sites - case.lost,
            "upload_s": case.upload_s if case.lost else None,
        }
        words = [sys.executable, "-m", "fedhpc.bench.relayed_sum_site", json.dumps(site_case)]
        if count > 1:
            words = [*launcher_command(count), sys.executable, "-m", "mpi4py", *words[1:]]
        commands.append(words)
    return [_last_object(output) for output in run_ranks(commands, environment, keep_output=True)]


def _through(enrolled: Enrolled, name: str, port: int) -> Path:
    """The site's file with the relay at `port`."""
    path = enrolled.site_file(name)
    if port == enrolled.port:
        return path
    through = path.with_name("through-a-line.toml")
    text = read_bytes(path).decode().replace(f'"{enrolled.url}"', f'"https://127.0.0.1:{port}"')
    write_whole(through, text.encode(), mode=0o600)
    return through


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


def _repeats(
    case: Case, reports: list[dict[str, Any]], spans: dict[str, list[float]], relay_peak: int
) -> list[dict[str, Any]]:
    """Per repeat what all sites and the relay took, the largest the relay had in all of them (bench/record.py).

    What a site that vanished took of the masked sum went with it.
    """
    there = reports[: case.sites - case.lost]
    found = []
    for k, wall_s in enumerate(spans["masked"]):
        masked = [r["repeats"]["masked"][k] for r in there]
        off = [r["repeats"]["off"][k] for r in reports]
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
                "relay_peak_bytes": relay_peak,
            }
        )
        if case.lost:
            found[-1]["beyond_upload_s"] = wall_s - case.upload_s
    return found
