"""What is wrong with the lines that one measurement left: ReFrame itself passes one whose figures are lost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIGURES = ("wall_s", "cpu_s", "peak_bytes")


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file of lines; none where it is missing. ValueError for a line that is no JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def faults(records: list[dict[str, Any]], repeat: int) -> Iterator[str]:
    """In words; `repeat`: how many lines were asked for, of each work."""
    if not records or len(records) % repeat:
        yield f"{len(records)} lines, where {repeat} repeats were asked for"
    for number, record in enumerate(records, 1):
        for name in FIGURES:
            value = record.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                yield f"line {number}: {name} is missing"
            elif not (math.isfinite(value) and value > 0):
                yield f"line {number}: {name} is {value}"
        if record.get("verified") is not True:
            yield f"line {number}: the result is not verified"
