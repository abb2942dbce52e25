"""All runs in one table, and what they were measured with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.report.cells import row, short, spread, table, verified
from benchmarks.runs import Run, machine_text


def records(runs: Sequence[Run]) -> list[str]:
    """A row for each run."""
    lines = [
        "",
        "## Records",
        "",
        "`wall`: until the slowest process was done. `cpu`: processor seconds of all processes of the work. `peak`:",
        "the largest resident sizes of all processes, added up. Medians (smallest to largest), and * where there are",
        "fewer than five repeats. `load`: processes that ran or waited to when the command began; above the number of",
        "cores, something else was running. `kernel`: what hid the vectors (– where the record is older than kernels).",
        *table(
            *(
                "work",
                "command",
                "sites",
                "parameters",
                "kernel",
                "wall s",
                "cpu s",
                "peak MiB",
                "repeats",
                "load",
                "verified",
            )
        ),
    ]
    for run in runs:
        cells = [run.get("work"), f"`{short(run.get('command'))}`", run.get("sites"), run.get("params")]
        cells.append(run.get("kernel") or "–")
        peak = f"{max(run.values('peak_bytes'), default=0) / 2**20:.0f}"
        cells += [spread(run, "wall_s"), spread(run, "cpu_s"), peak, len(run.records), run.get("load"), verified(run)]
        lines.append(row(*cells))
    return lines if runs else []


def versions(entries: Iterable[dict[str, Any]], runs: Iterable[Run]) -> list[str]:
    """Each machine with its software, once."""
    made = {_provenance(entry) for entry in entries if "versions" in entry["result"]}
    made |= {_provenance({"result": run.records[0], **run.records[0]}) for run in runs}
    return ["", "## Machines and versions", "", *(f"- {text}" for text in sorted(made))]


def _provenance(entry: dict[str, Any]) -> str:
    known = ", ".join(f"{k} {v}" for k, v in entry["result"].get("versions", {}).items() if v and k != "machine")
    return f"{str(entry['date'])[:10]}, {machine_text(entry['machine'])}; {known}"
