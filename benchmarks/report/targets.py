"""The aims that fedhpc reaches or misses by itself; those beside other systems are in peer_tables.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.mask_line import AIM, MaskLine
from benchmarks.report.cells import number, over_without, row, spread, table
from benchmarks.runs import ENOUGH, Run
from benchmarks.scaling import count

SHARE = 0.03
SPEED = 0.97
SIZE = 10**6
"""Parameters of the sums whose growth over sites has an aim."""
_SHARE_TEXT = (
    "secure aggregation's part of a digits round's processor time, %: masked less unmasked over masked "
    "(HEREDITARY reports +13 % running time, which is over the round without masks)"
)
_SPEED_TEXT = "training throughput a processor second over a plain PyTorch loop's, {}"
_LINE_TEXT = "{}, {} sites: largest measured over the fitted mask line"
_SPARSE_TEXT = "{}, {} masks a site: its work at {} sites over that at {}"
_MISSING = "–", "not measured"


def own_targets(
    runs: Sequence[Run], lines: Sequence[MaskLine], older_backends: Mapping[str, Any] | None = None
) -> list[str]:
    """A table of every aim, also of those for which nothing was measured.

    `older_backends`: the file of the backends, which counts where it is of a form without records.
    """
    rows = [*_shares(runs), *_speeds(runs, older_backends), *_growth(lines)]
    return ["", "Beside itself:", *table("work", "measured", "aim", "reached"), *rows]


def _shares(runs: Sequence[Run]) -> Iterator[str]:
    aim, found = f"≤ {100 * SHARE:.0f}", False
    for run in runs:
        middle = run.median("secure_share") if run.get("work") == "training round" else None
        if middle is not None:
            measured = f"{spread(run, 'secure_share', 100)}; over the round without: {over_without(run)}"
            yield row(f"{_SHARE_TEXT} (`{_command(run)}`)", measured, aim, _answer(middle <= SHARE, run))
            found = True
    if not found:
        yield row(_SHARE_TEXT, _MISSING[0], aim, _MISSING[1])


def _speeds(runs: Sequence[Run], older: Mapping[str, Any] | None) -> Iterator[str]:
    aim, named = f"≥ {SPEED}", set[str]()
    for run in runs:
        name = str(run.get("work")).partition("training, ")[2]
        middle = run.median("speed_over_plain")
        if name and middle is not None:
            yield row(_SPEED_TEXT.format(name), spread(run, "speed_over_plain"), aim, _answer(middle >= SPEED, run))
            named.add(name)
    for old in (older or {}).get("result", {}).get("backends", []):
        name, speed = old.get("backend"), old.get("speed_over_plain")
        if name not in named and isinstance(speed, int | float):
            reached = f"{'yes' if speed >= SPEED else '**no**'}, of a median without its spread"
            yield row(_SPEED_TEXT.format(name), number(speed), aim, reached)
            named.add(name)
    if "ddp" not in named:  # the one that the aim is about
        yield row(_SPEED_TEXT.format("ddp"), _MISSING[0], aim, _MISSING[1])


def _growth(lines: Sequence[MaskLine]) -> Iterator[str]:
    aim = f"≤ {AIM}"
    for line in lines:
        sites = [point.sites for point in line.complete]
        words = _LINE_TEXT.format(line.name, f"{min(sites)} to {max(sites)}")
        yield row(words, f"{line.worst:.2f}", aim, _word(line.worst))
    if not any(line.params == SIZE for line in lines):
        yield row(_LINE_TEXT.format(f"{count(SIZE)} parameters", "2 to 64"), _MISSING[0], aim, _MISSING[1])
    flat = [found for line in lines for found in _flat(line)]
    yield from (row_ for _, row_ in flat)
    if not any(params == SIZE for params, _ in flat):
        words = f"{count(SIZE)} parameters, as many masks at any number of sites (`--degree`): work of a site"
        yield row(f"{words} at 64 sites over that at 32", _MISSING[0], aim, _MISSING[1])


def _flat(line: MaskLine) -> Iterator[tuple[int, str]]:
    """Of sparse graphs with as many masks at several numbers of sites, with the parameters."""
    for streams in sorted({point.streams for point in line.points if point.sparse}):
        same = [point for point in line.points if point.streams == streams]
        least, most = same[0], same[-1]
        if least.sites < most.sites:
            grown = most.work_s / least.work_s
            words = _SPARSE_TEXT.format(line.name, streams, most.sites, least.sites)
            yield line.params, row(words, f"{grown:.2f}", f"≤ {AIM}", _word(grown))


def _word(ratio: float) -> str:
    return "yes" if ratio <= AIM else "**no**"


def _command(run: Run) -> str:
    return str(run.get("command")).removeprefix("fedhpc ")


def _answer(reached: bool, run: Run) -> str:
    few = "" if len(run.records) >= ENOUGH else f", of {len(run.records)} only"
    return ("yes" if reached else "**no**") + few
