"""Runs side by side: `fedhpc report A B`. What differs in their settings, and what came of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedhpc.app.telemetry import number, short, table
from fedhpc.report.report import Record, Run, finished_rounds, is_final
from fedhpc.train.evaluate import HALF_WIDTH

_NO_SETTING = ("site",)  # the roster
_VERSION = 1


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """{"version": 1, "runs": [facts of each], "settings": {section.key: [value of each run, null where absent]}}.

    Only settings that differ are in it. `metrics` are of the newest model that was measured over all sites, after
    `measured_round` rounds; seconds are of the slowest site in each round, bytes of one site, on average.
    """
    flat = [dict(_flat(run)) for run in runs]
    keys = sorted({key for one in flat for key in one})
    differing = {key: [one.get(key) for one in flat] for key in keys if len({json.dumps(o.get(key)) for o in flat}) > 1}
    return {"version": _VERSION, "runs": [_facts(run) for run in runs], "settings": differing}


def _flat(run: Run) -> Iterator[tuple[str, Any]]:
    try:
        document = tomllib.loads((run.config or b"").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return
    for section, values in document.items():
        if section not in _NO_SETTING and isinstance(values, Mapping):
            yield from ((f"{section}.{key}", value) for key, value in values.items())


def _facts(run: Run) -> dict[str, Any]:
    newest = run.public[-1]
    measured = next((r for r in reversed(run.public) if r.get("metrics")), None)
    best = next((r for r in reversed(run.public) if "best_round" in r), {})
    rounds = [r for r in run.public if not is_final(r)]
    seconds = sum(max(_seconds(run, r["round"]), default=0.0) for r in rounds)
    sent = [sum(number(r.get("bytes_up")) or 0.0 for r in records) for records in run.sites.values()]
    return {
        "run": str(run.path),
        "name": run.setting("name"),
        "config_sha256": run.config_sha256,
        "round": run.finished,
        "rounds": run.planned,
        "model_sha256": newest.get("model_sha256"),
        "sites": len(newest["sites"]) if isinstance(newest.get("sites"), list) else len(run.sites),
        "metrics": {} if measured is None else dict(measured["metrics"]),
        "test_metrics": table(newest, "test_metrics"),
        "measured_round": None if measured is None else finished_rounds(measured),
        "best_metric": best.get("best_metric"),
        "best_round": best.get("best_round"),
        "best_value": best.get("best_value"),
        "seconds": seconds,
        "bytes_up_per_site": sum(sent) / len(sent),
    }


def _seconds(run: Run, round_: int) -> list[float]:
    """Of a round, at each site that has it."""
    records: list[Record] = [r for records in run.sites.values() for r in records if r["round"] == round_]
    return [
        total for r in records if not is_final(r) and (total := number(table(r, "seconds").get("total"))) is not None
    ]


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """For people: a column for each run."""
    runs = found["runs"]
    rows: list[tuple[str, list[str]]] = [("run", [run["run"] for run in runs])]
    rows.append(("round", [f"{run['round']} of {run['rounds']}" for run in runs]))
    for group, words in (("metrics", ""), ("test_metrics", "test ")):
        names = dict.fromkeys(n for run in runs for n in run[group] if not n.endswith(HALF_WIDTH))
        rows += [(words + name, [short(run[group].get(name)) for run in runs]) for name in names]
    if any(run["best_round"] is not None for run in runs):
        rows.append(("best round", [_best(run) for run in runs]))
    rows.append(("seconds", [f"{run['seconds']:.1f}" for run in runs]))
    rows.append(("MB up a site", [f"{run['bytes_up_per_site'] / 1e6:.2f}" for run in runs]))
    rows.append(("model", [str(run["model_sha256"])[:16] for run in runs]))
    rows += [(key, ["–" if v is None else json.dumps(v) for v in values]) for key, values in found["settings"].items()]
    widths = [max(len(name) for name, _ in rows), *(max(len(row[k]) for _, row in rows) for k in range(len(runs)))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip((name, *row), widths, strict=True)).rstrip() for name, row in rows
    ]


def _best(run: Mapping[str, Any]) -> str:
    if run["best_round"] is None:
        return "–"
    return f"{run['best_round']}: {run['best_metric']} {short(run['best_value'])}"
