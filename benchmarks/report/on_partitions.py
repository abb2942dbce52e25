"""Results of the suite on partitions, apart from those of this machine."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.cells import row, short, spread, table, verified
from benchmarks.runs import Run, machine_text


def partitions(runs: Sequence[Run]) -> list[str]:
    """One table for all of them."""
    lines = [
        "",
        "## On partitions",
        "",
        "Runs of the suite (benchmarks/partition) in batch jobs, with the job's own launcher over its nodes. Where the",
        "machine is the test Slurm clusters', the nodes are namespaces of one machine and share its cores: these runs",
        "show that every metric arrives from a job, not how fast a cluster is.",
        *table(
            *("work", "command", "sites", "ranks", "nodes", "parameters", "wall s", "cpu s", "load"),
            *("verified", "machine"),
        ),
    ]
    for run in runs:
        ranks = run.get("ranks")
        total = sum(ranks) if isinstance(ranks, list) else ranks
        cells = [run.get("work"), f"`{short(run.get('command'))}`", run.get("sites"), total]
        cells += [(run.get("settings") or {}).get("nodes", 1), run.get("params")]
        cells += [spread(run, "wall_s"), spread(run, "cpu_s"), run.get("load"), verified(run)]
        cells += [machine_text(run.get("machine"))]
        lines.append(row(*cells))
    return lines if runs else []
