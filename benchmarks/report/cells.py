"""How figures stand in the tables of the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.runs import ENOUGH, Run


def short(command: object) -> str:
    """A command without what all of them have."""
    return str(command).removeprefix("fedhpc ").removesuffix(" --json")


def spread(run: Run, name: str, scale: float = 1.0) -> str:
    """Of the figure `name` of a run."""
    return spread_of([scale * value for value in run.values(name)])


def spread_of(values: Sequence[float]) -> str:
    """Median (smallest to largest); an asterisk where it is of fewer than five."""
    if not values:
        return "–"
    middle = f"{number(statistics.median(values))}{'' if len(values) >= ENOUGH else '*'}"
    return middle if len(values) < 2 else f"{middle} ({number(min(values))} to {number(max(values))})"


def over_without(run: Run) -> str:
    """Secure aggregation's part of a masked round, as percent of the round without: another quotient of the same."""
    return spread_of([100 * share / (1 - share) for share in run.values("secure_share") if share < 1])


def number(value: float) -> str:
    """Three digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def verified(run: Run) -> str:
    """Whether every repeat's result was compared with one that was found another way, and was right."""
    return str(all(record.get("verified") is True for record in run.records))


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table(*heads: str) -> list[str]:
    """The first lines of a table, after an empty one."""
    return ["", row(*heads), "|" + "---|" * len(heads)]
