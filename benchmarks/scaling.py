"""Runs that differ in one size only, sites or parameters, and how they compare with the smallest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.runs import Run, machine_text

Size = Literal["sites", "params"]
SIZES: tuple[Size, ...] = ("sites", "params")
_USUAL = {"nodes": 1, "lane_bits": 32, "degree": 0, "chunk_bytes": 16 << 20, "overlap": False, "epochs": 1}
_WORDS = {
    "nodes": "{} nodes",
    "lane_bits": "{} bits",
    "overlap": "overlap on",
    "latency_ms": "{:g} ms",
    "mbit_s": "{:g} Mbit/s",
    "lost": "{} lost",
    "upload_s": "waits {:g} s",
}


@dataclass(frozen=True)
class Series:
    """Runs of the same work at several sizes, the smallest first."""

    size: Size
    work: str
    system: str
    fixed: int  # what the other size is
    runs: list[Run]

    @property
    def name(self) -> str:
        """In words, with what was not done as usual: no two have the same."""
        whose = "" if self.system == "fedhpc" else f"{self.system}: "
        size = f"{self.fixed} sites" if self.size == "params" else f"{count(self.fixed)} parameters"
        return ", ".join([f"{whose}{self.work}", size, *_unusual(self.runs[0])])

    @property
    def machines(self) -> list[str]:
        """On which they were measured."""
        return sorted({machine_text(run.get("machine")) for run in self.runs})

    def efficiency(self, run: Run) -> float | None:
        """Over parameters: parameters a second, over those of the smallest. Over sites: its seconds over these.

        None where a median is missing, or the machines differ.
        """
        first, here = self.runs[0].median("wall_s"), run.median("wall_s")
        if not first or not here or len(self.machines) > 1:
            return None
        grown = run.get("params") / self.runs[0].get("params") if self.size == "params" else 1
        return float(first * grown / here)


def series(runs: list[Run], size: Size) -> list[Series]:
    """All series over `size` of two runs and more. Of two runs that differ in nothing the newer one counts."""
    other: Size = "params" if size == "sites" else "sites"
    found: dict[tuple[Any, ...], dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: str(run.get("date"))):
        if isinstance(run.get(size), int) and isinstance(run.get(other), int):
            key = (run.get("work"), run.get("system"), run.get(other), tuple(_unusual(run)))
            found.setdefault(key, {})[run.get(size)] = run
    return [
        Series(size, str(work), str(system), fixed, [by_size[key] for key in sorted(by_size)])
        for (work, system, fixed, _), by_size in sorted(found.items(), key=lambda item: (str(item[0][:2]), item[0][2:]))
        if len(by_size) > 1
    ]


def _unusual(run: Run) -> Iterator[str]:
    """Kernel, ranks for each site and settings (of Run.settings) that are not as usual, in words."""
    ranks, settings = json.loads(run.settings)
    if run.kernel != "python":
        yield f"kernel {run.kernel}"
    if ranks not in (1, None):
        yield f"{ranks} ranks a site" if isinstance(ranks, int) else f"{' and '.join(map(str, ranks))} ranks"
    for name, value in settings.items():
        words = _WORDS.get(name, f"{name.replace('_', ' ')} {{}}").format(value)
        if value not in (None, _USUAL.get(name)) and name != "exchange" and words not in str(run.get("work")):
            yield words


def count(number: int) -> str:
    """A count in millions or thousands, as people say it."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if number >= size and number % (size // 10) == 0:
            return f"{number / size:g}{unit}"
    return str(number)
