"""What the machinery of jobs costs, from the files of jobs that have run: `python benchmarks/queue_turns.py RUN/SITE`.

A turn is from the beginning of a job to the beginning of the next one of its chain. Times are those of the files that
fedhpc and the batch scripts leave in RUN/SITE/jobs. Rounds of a tiny federation cost next to nothing themselves.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from fedhpc.slurm.records import Record, Records


def main(site: Path) -> None:
    """Print the medians of one site's chains, in seconds."""
    records = Records(site / "jobs")
    first = records.all()[0]
    born = subprocess.run(["stat", "--format=%.W", site / "metrics.jsonl"], capture_output=True, text=True, check=True)
    submitted = datetime.fromisoformat(first.time).timestamp()
    print(f"first submission to data read and sites met   {float(born.stdout) - submitted:7.2f}")
    rows: dict[str, list[float]] = {}
    for record in records.all():
        begun, left = mtime(records, record, "job"), mtime(records, record, "exit")
        after = next((r for r in records.chain(record.chain) if r.link == record.link + 1), None)
        following = mtime(records, after, "job") if after else None
        if begun is None or left is None or following is None or after is None:
            continue
        named = datetime.fromisoformat(after.time).timestamp()
        if named > begun:
            row(rows, record, "begins to next link rendered", named - begun)
        row(rows, record, "begins to ranks leave", left - begun)
        row(rows, record, "ranks leave to next link begins", following - left)
        row(rows, record, "whole turn", following - begun)
    for name, values in rows.items():
        many = f"median of {len(values)}, {min(values):.2f} to {max(values):.2f}"
        print(f"{name:45} {statistics.median(values):7.2f}  ({many})")


def mtime(records: Records, record: Record, kind: str) -> float | None:
    """When the batch script of a link wrote its file NAME.kind; None if it did not."""
    path = records.folder / f"{record.name}.{kind}"
    return path.stat().st_mtime if path.exists() else None


def row(rows: dict[str, list[float]], record: Record, what: str, seconds: float) -> None:
    """One more value of a row."""
    rows.setdefault(f"{record.stage}: {what}", []).append(seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
