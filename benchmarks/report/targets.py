"""The aims that fedhpc reaches or misses by itself; those beside other systems are in peer_tables.py."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.mask_line import AIM, MaskLine
from benchmarks.report.cells import row, spread, table
from benchmarks.runs import ENOUGH, Run
from benchmarks.scaling import count

SHARE = 0.03
SPEED = 0.97


def own_targets(runs: Sequence[Run], lines: Sequence[MaskLine]) -> list[str]:
    """A table; empty if nothing of it was measured."""
    rows = [
        *(
            _share(run)
            for run in runs
            if run.get("work") == "training round" and run.median("secure_share") is not None
        ),
        *(_speed(run) for run in runs if str(run.get("work")).startswith("training, ")),
        *(row_ for line in lines for row_ in _growth(line)),
    ]
    if not rows:
        return []
    return ["", "Beside itself:", *table("work", "measured", "aim", "reached"), *rows]


def _share(run: Run) -> str:
    middle = run.median("secure_share") or 0.0
    words = f"secure aggregation's part of a digits round's processor time, % (`{_command(run)}`)"
    return row(words, spread(run, "secure_share", 100), f"≤ {100 * SHARE:.0f}", _answer(middle <= SHARE, run))


def _speed(run: Run) -> str:
    backend = str(run.get("work")).partition(", ")[2]
    middle = run.median("speed_over_plain") or 0.0
    words = f"training throughput a processor second over a plain PyTorch loop's, {backend}"
    return row(words, spread(run, "speed_over_plain"), f"≥ {SPEED}", _answer(middle >= SPEED, run))


def _growth(line: MaskLine) -> list[str]:
    most = max(line.complete, key=lambda point: point.sites)
    words = f"{count(line.params)} parameters, 2 to {most.sites} sites: largest measured over the fitted mask line"
    found = [row(words, f"{line.worst:.2f}", f"≤ {AIM}", _word(line.worst))]
    for streams in sorted({point.streams for point in line.points if point.sparse}):
        same = [point for point in line.points if point.streams == streams]
        least, most = same[0], same[-1]
        if least.sites < most.sites:
            grown = most.work_s / least.work_s
            words = f"{count(line.params)} parameters, {streams} masks a site: its work at {most.sites} sites"
            found.append(row(f"{words} over that at {least.sites}", f"{grown:.2f}", f"≤ {AIM}", _word(grown)))
    return found


def _word(ratio: float) -> str:
    return "yes" if ratio <= AIM else "**no**"


def _command(run: Run) -> str:
    return str(run.get("command")).removeprefix("fedhpc ")


def _answer(reached: bool, run: Run) -> str:
    few = "" if len(run.records) >= ENOUGH else f", of {len(run.records)} only"
    return ("yes" if reached else "**no**") + few
