"""Markdown of what was measured beside peers: the target table, all runs, and how to repeat them.

Every ratio is of one case of one call of `python -m benchmarks.peers`: medians of the peer over those of ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.peers.cases import CASES, Aim, case_of
from benchmarks.peers.cases import peers as known_peers
from benchmarks.report.cells import number, row, spread_of, table
from benchmarks.runs import ENOUGH, machine_text
from benchmarks.scaling import count

Record = Mapping[str, Any]
_ENOUGH_FALL = 256 << 20
"""MemAvailable goes up and down by itself; a fall below this is no measure of a program."""


@dataclass(frozen=True)
class Target:
    """A line of the target table, in words."""

    work: str
    against: str
    sizes: str
    ours_s: str
    theirs_s: str
    wall: str  # ratios
    cpu: str
    memory: str
    server_memory: str
    aim: str
    reached: str


_SPANS_SINCE = "2026-12-01T05"
"""From this date on no side's span has drawing or checking in it."""


def sections(records: Iterable[Record]) -> list[str]:
    """All lines, from the records of results/peers.jsonl; a peer without any has a row that says so."""
    runs = _newest(list(records))
    return [
        "",
        "## Side by side with peers",
        "",
        "Ours and the peer ran in turn on this machine, at the sizes of the row, with vectors of that length at all",
        "sites and no training; every result of every round was checked. A time is the median of warm rounds, a ratio",
        "how many times more the peer took, in wall seconds, processor seconds of all processes, and memory: the most",
        "that all processes held at once (shared pages counted in each), and the fall of the machine's available",
        "memory; of the two the one that is better for the peer. Server: the same for the server's processes, or our",
        "relay. No side's time has the drawing of its vectors or the check of its result in it; ours includes the",
        "checks of the protocol, key agreement and the hash of the sum that sites compare. What protects the",
        "vectors differs: see [how it was done](#how-it-was-done). An asterisk: of fewer than five rounds.",
        *_measured_before(runs),
        *table(
            *("work", "against", "sizes", "ours s", "peer s", "wall", "CPU", "memory", "server memory"),
            *("aim", "reached"),
        ),
        *(row(*(getattr(line, f.name) for f in fields(Target))) for line in targets(runs)),
        *_runs_table(runs),
        "",
        "### How it was done",
        "",
        f"{_how_to_repeat()} A command below measures its case",
        "alone, and with the name of a row in place of the case's that row alone. `load` is a minute's mean before the",
        "case, so it mostly tells of the case before. benchmarks/peers/README.md says what each peer's settings are",
        "and why, and what is not compared.",
        "",
        *_commands(runs),
    ]


def targets(runs: Mapping[str, Sequence[Record]]) -> list[Target]:
    """A line for each known peer, and for what else has records. `runs`: row -> those of its peer, and ours beside."""
    rows = dict.fromkeys([*known_peers(), *runs])
    return [_target(name, runs[name]) if name in runs else _unmeasured(name) for name in rows]


def _measured_before(runs: Mapping[str, Sequence[Record]]) -> list[str]:
    """Says of which rows the spans were others; nothing once they are measured anew."""
    names = [name for name, records in runs.items() if min(str(r.get("date")) for r in records) < _SPANS_SINCE]
    if not names:
        return []
    return [
        "",
        "**Measured before that was so**, and before the compiled kernel and the hash suites; the time of some",
        f"peers still holds part of the drawing or the check: {', '.join(names)}. They are to be measured anew.",
        "",
    ]


def _how_to_repeat() -> str:
    longest = " and ".join(peer.row for case in CASES if case.long for peer in case.peers)
    return (
        "`make bench-peers` measures all rows again; `python -m benchmarks.peers --quick` leaves out\n"
        f"{longest}, which takes longest."
    )


def _newest(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Row -> the records of its newest run, ours among them; in the order of the cases."""
    latest: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: str(record.get("date"))):
        if record.get("row"):
            latest[str(record["row"])] = record
    order = [*known_peers(), *sorted(latest)]
    found = {}
    for name in sorted(latest, key=order.index):
        run = latest[name].get("run_id")
        found[name] = [r for r in records if r.get("run_id") == run and r.get("row") in ("", name)]
    return found


def _unmeasured(name: str) -> Target:
    """Of a known peer that has no record."""
    peer, case = known_peers()[name], case_of(name)
    assert case is not None
    return Target(
        work=case.title,
        against=f"{peer.system}: {peer.work}",
        sizes=_sizes({"params": case.params, "sites": case.sites}),
        **dict.fromkeys(("ours_s", "theirs_s", "wall", "cpu", "memory", "server_memory"), "–"),
        aim=_aim(peer.aim),
        reached="not measured",
    )


def _target(name: str, records: Sequence[Record]) -> Target:
    ours, theirs = [r for r in records if not r["row"]], [r for r in records if r["row"]]
    peer, case = known_peers().get(name), case_of(name)
    aim = peer.aim if peer else Aim()
    first = theirs[0]
    ratios = {
        "wall": _ratio(theirs, ours, "wall_s"),
        "cpu": _ratio(theirs, ours, "cpu_s"),
        "memory": _memory_ratio(theirs, ours),
        "server_memory": _ratio(theirs, ours, "server_bytes"),
    }
    wanted = {name: getattr(aim, name) for name in ("wall", "memory", "server_memory") if getattr(aim, name)}
    return Target(
        work=case.title if case else str(ours[0]["work"] if ours else ""),
        against=f"{first['system']} {first['version']}: {first['work']}",
        sizes=_sizes(first),
        ours_s=_median(ours, "wall_s") or _lost(ours),
        theirs_s=_median(theirs, "wall_s") or _lost(theirs),
        wall=_times(ratios["wall"]),
        cpu=_times(ratios["cpu"]),
        memory=_times(ratios["memory"]),
        server_memory=_times(ratios["server_memory"]),
        aim=_aim(aim),
        reached=_reached(wanted, ratios) + _but(ours, theirs) if wanted else "–",
    )


def _aim(aim: Aim) -> str:
    words = {"wall": "faster", "memory": "less memory", "server_memory": "less server memory"}
    return ", ".join(f"≥ {getattr(aim, k):g}× {text}" for k, text in words.items() if getattr(aim, k)) or "–"


def _reached(wanted: Mapping[str, float], ratios: Mapping[str, float | None]) -> str:
    """In words; what was not measured is not reached."""
    if all(ratios[name] is None for name in wanted):
        return "not measured"
    missed = [name.replace("_", " ") for name, aim in wanted.items() if (ratios[name] or 0) < aim]
    return "yes" if not missed else f"no: {', '.join(missed)}"


def _but(ours: Sequence[Record], theirs: Sequence[Record]) -> str:
    """How few rounds a ratio is of, and which turns gave nothing."""
    fewest = min(len(_values(side, "wall_s")) for side in (ours, theirs))
    words = f", of {fewest} only" if 0 < fewest < ENOUGH else ""
    for whose, side in (("ours", ours), ("the peer", theirs)):
        lost = sum("verified" not in record for record in side)
        if lost and len(side) > lost:
            words += f"; {lost} turn{'s' if lost > 1 else ''} of {whose} lost"
    return words


def _runs_table(runs: Mapping[str, Sequence[Record]]) -> list[str]:
    if not runs:
        return []
    return [
        "",
        "All runs; seconds are median (smallest to largest), memory the most of a turn:",
        *table(
            *("row", "system", "work", "sizes", "wall s", "first s", "CPU s", "GiB held", "GiB fallen"),
            *("GiB server", "rounds", "error", "verified"),
        ),
        *(row(*cells) for cells in _all_runs(runs)),
    ]


def _all_runs(runs: Mapping[str, Sequence[Record]]) -> Iterable[list[str]]:
    shown = set()
    for of, records in runs.items():
        ours, theirs = [r for r in records if not r["row"]], [r for r in records if r["row"]]
        for name, side in (("ours", ours), (of, theirs)):
            if not side or (name == "ours" and side[0]["run_id"] in shown):  # once for all peers of a case
                continue
            shown.add(side[0]["run_id"])
            first = side[0]
            cells = [f"ours in {first['case']}" if name == "ours" else of, f"{first['system']} {first['version']}"]
            cells += [str(first["work"]), _sizes(first)]
            whole = [record for record in side if "verified" in record]
            if not whole:
                yield [*cells, _lost(side), *["–"] * 8]
                continue
            yield [
                *cells,
                spread_of(_values(side, "wall_s")),
                _median(side, "first_s") or "–",
                spread_of(_values(side, "cpu_s")),
                _gib(side, "peak_bytes"),
                _gib(side, "fall_bytes"),
                _gib(side, "server_bytes"),
                f"{len(whole)}" + (f"; {_lost(side)}" if len(whole) < len(side) else ""),
                _error(whole),
                str(all(record["verified"] is True for record in whole)),
            ]


def _commands(runs: Mapping[str, Sequence[Record]]) -> list[str]:
    lines = []
    for name in dict.fromkeys([*known_peers(), *runs]):
        if name not in runs:
            lines.append(f"- {name}: `python -m benchmarks.peers {name}`; not measured")
            continue
        records = runs[name]
        theirs = next(r for r in records if r["row"])
        versions = ", ".join(f"{key} {text}" for key, text in sorted(_mapping(theirs, "versions").items()))
        settings = ", ".join(
            f"{key} {_words(value)}"
            for key, value in _mapping(theirs, "settings").items()
            if key not in ("case", "program")
        )
        program = _mapping(theirs, "settings").get("program", "")
        parts = [
            f"`{theirs['command']}` ({program})",
            f"{str(theirs['date'])[:10]}, load {theirs.get('load')}, {machine_text(theirs['machine'])}",
            *([f"settings: {settings}"] if settings else []),
            *([f"versions: {theirs['system']} {theirs['version']}, {versions}"] if versions else []),
        ]
        lines.append(f"- {name}: {'; '.join(parts)}")
    return lines


def _ratio(theirs: Sequence[Record], ours: Sequence[Record], name: str) -> float | None:
    over, under = _values(theirs, name), _values(ours, name)
    if not over or not under or statistics.median(under) <= 0:
        return None
    return statistics.median(over) / statistics.median(under)


def _memory_ratio(theirs: Sequence[Record], ours: Sequence[Record]) -> float | None:
    """The smaller one of what was held and of what was missing, where that says anything."""
    found = [_ratio(theirs, ours, "peak_bytes")]
    falls = _values(theirs, "fall_bytes"), _values(ours, "fall_bytes")
    if all(falls) and all(statistics.median(values) >= _ENOUGH_FALL for values in falls):
        found.append(_ratio(theirs, ours, "fall_bytes"))
    figures = [ratio for ratio in found if ratio is not None]
    return min(figures) if figures else None


def _values(records: Sequence[Record], name: str) -> list[float]:
    found = [r.get(name, _mapping(r, "measured").get(name)) for r in records]
    return [float(value) for value in found if isinstance(value, int | float)]


def _mapping(record: Record, name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _lost(records: Sequence[Record]) -> str:
    """Why there are no figures, in words."""
    for key in ("failed", "skipped"):
        for record in records:
            if key in record:
                return f"{key}: {_words(record[key])}"
    return "not measured"


def _words(value: Any) -> str:
    """Fit for a cell of a table."""
    return " ".join(str(value).replace("|", "/").replace("<", "‹").replace("`", "'").split())


def _sizes(record: Record) -> str:
    sites = record["sites"]
    return f"{count(record['params'])}, {sites} site{'s' if sites != 1 else ''}"


def _median(records: Sequence[Record], name: str) -> str:
    values = _values(records, name)
    return f"{number(statistics.median(values))}{'' if len(values) >= ENOUGH else '*'}" if values else ""


def _gib(records: Sequence[Record], name: str) -> str:
    values = _values(records, name)
    return f"{max(values) / 2**30:.2f}" if values else "–"


def _error(records: Sequence[Record]) -> str:
    errors, allowed = _values(records, "error"), _values(records, "tolerance")
    if not errors:
        return "0"
    return f"{max(errors):.2g}" + (f" of {max(allowed):.2g}" if any(allowed) else "")


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{number(ratio)}×"
