"""An older build beside this one: the ratios that benchmarks/builds.py measured, with their aims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.report.cells import row, spread_of, table

Line = Mapping[str, Any]


@dataclass(frozen=True)
class _Ratio:
    """A row of the table."""

    compared: str
    way: str
    words: str
    of: Callable[[Line, Line], float]  # of a turn's older line and newer one
    aim: float
    least: bool = False  # whether the aim is a least value, and not a largest one


_RATIOS = (
    _Ratio(
        "large", "as it is", "processor seconds of a real round over a plain allreduce's",
        lambda old, new: new["cpu_real_round_s"] / new["cpu_plain_s"], 1.7,
    ),
    _Ratio(
        "large", "AES-NI and AVX2", "the same without VAES",
        lambda old, new: new["cpu_real_round_s"] / new["cpu_plain_s"], 2.2,
    ),
    _Ratio(
        "large", "as it is", "wall seconds without the hash of the sum over a plain allreduce's",
        lambda old, new: new["masked_over_plain"], 1.4,
    ),
    _Ratio(
        "large", "as it is", "processor seconds of a real round over those of a plain allreduce in chunks",
        lambda old, new: new["cpu_real_round_s"] / new["cpu_plain_chunked_s"], 3,
    ),
    _Ratio("large", "as it is", "processor seconds, new over old", lambda old, new: new["cpu_s"] / old["cpu_s"], 0),
    _Ratio(
        "many sites", "as it is", "processor seconds, new over old",
        lambda old, new: new["cpu_s"] / old["cpu_s"], 0.4,
    ),
    _Ratio(
        "one number", "as it is", "wall seconds of a sum, new over old",
        lambda old, new: new["sum_int_s"] / old["sum_int_s"], 0.45,
    ),
    _Ratio(
        "relay", "memory", "processor seconds of all over those of bare TLS, vectors in the page cache",
        lambda old, new: new["cpu_all_over_tls"], 2.4,
    ),
    _Ratio(
        "relay", "memory", "rate over bare TLS, vectors in the page cache",
        lambda old, new: new["masked_exchange_over_tls_socket"], 0.42, least=True,
    ),
    _Ratio(
        "relay", "disk", "processor seconds of all over those of bare TLS, vectors on disk",
        lambda old, new: new["cpu_all_over_tls"], 0,
    ),
    _Ratio(
        "relay", "disk", "rate over bare TLS, vectors on disk",
        lambda old, new: new["masked_exchange_over_tls_socket"], 0, least=True,
    ),
    _Ratio("relay", "disk", "wall seconds, new over old", lambda old, new: new["masked_s"] / old["masked_s"], 0),
)  # fmt: skip


def two_builds(lines: Sequence[Line]) -> list[str]:
    """A chapter; empty without results."""
    rows = list(_rows(lines))
    if not rows:
        return []
    old, new = (_commits(lines, build) for build in ("old", "new"))
    load = median(line["load"] for line in lines if isinstance(line.get("load"), int | float))
    return [
        "",
        "## An older build beside this one",
        "",
        f"Both ran in turn ({old}, before the compiled kernel, the relay that adds as it receives and one key",
        f"agreement for a job, and {new}): `python -m benchmarks.builds OLD_PYTHON {old}`, with OLD_PYTHON in an",
        f"environment of that commit. {lines[0]['date'][:10]}, load {load:.1f} at the start of a command (the ranks of",
        "the one before are in it). A ratio is of one turn; median (smallest to largest) of the turns.",
        *table("command", "ratio", "measured", "aim", "reached"),
        *rows,
    ]


def _rows(lines: Sequence[Line]) -> Iterator[str]:
    for ratio in _RATIOS:
        values, command = [], ""
        for turn in sorted({line["turn"] for line in lines}):
            of_turn = [line for line in lines if line["turn"] == turn and line["compared"] == ratio.compared]
            old = next((line for line in of_turn if line["build"] == "old"), None)
            new = next((line for line in of_turn if line["build"] == "new" and line["way"] == ratio.way), None)
            if old is not None and new is not None:
                values.append(ratio.of(old, new))
                command = str(new["command"]).removeprefix("fedhpc ")
        if values:
            yield row(f"`{command}`", ratio.words, spread_of(values), *_aim(ratio, median(values)))


def _aim(ratio: _Ratio, measured: float) -> tuple[str, str]:
    if not ratio.aim:
        return "–", "–"
    reached = measured >= ratio.aim if ratio.least else measured <= ratio.aim
    return f"{'≥' if ratio.least else '≤'} {ratio.aim}", "yes" if reached else "**no**"


def _commits(lines: Sequence[Line], build: str) -> str:
    return ", ".join(sorted({str(line["commit"]) for line in lines if line["build"] == build}))
