"""What is wrong with the lines that one measurement left: ReFrame itself passes one whose figures are lost."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIGURES = ("wall_s", "cpu_s", "peak_bytes")


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file of lines; none where it is missing. ValueError for a line that is no JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def faults(records: list[dict[str, Any]], nodes: int | None = None) -> Iterator[str]:
    """In words; `nodes`: on which the ranks were to be, None where nobody knows.

    Each line says how many repeats were asked for, and which one it is of; a command may have several works.
    """
    if not records:
        yield "0 lines"
        return
    asked, found = {record.get("repeats") for record in records}, Counter(record.get("repeat") for record in records)
    repeats = next(iter(asked))
    if len(asked) > 1 or not isinstance(repeats, int):
        yield "the lines do not say how many repeats were asked for"
    elif set(found) != set(range(1, repeats + 1)) or len(set(found.values())) > 1:
        there = ", ".join(str(record.get("repeat")) for record in records)
        yield f"{len(records)} lines, of the repeats {there}, where {repeats} were asked for"
    used = {(record.get("settings") or {}).get("nodes", 1) for record in records}
    if nodes is not None and used != {nodes}:
        yield f"its ranks were on {', '.join(map(str, sorted(used)))} nodes, and were to be on {nodes}"
    for number, record in enumerate(records, 1):
        for name in FIGURES:
            value = record.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                yield f"line {number}: {name} is missing"
            elif not (math.isfinite(value) and value > 0):
                yield f"line {number}: {name} is {value}"
        if record.get("verified") is not True:
            yield f"line {number}: the result is not verified"
