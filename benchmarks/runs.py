"""What benchmarks/results/ holds: one Run for each measurement, with the record of every repeat.

| file             | written by                | content                                                              |
|------------------|---------------------------|----------------------------------------------------------------------|
| *.json           | benchmarks/measure.py     | {command, date, machine, took_s, result}; `result` of --json         |
| *.jsonl          | `fedhpc bench … --lines`  | a record a line (fedhpc/bench/record.py), of one run or of several   |
| peers.jsonl      | benchmarks/peers          | the same of ours and of peers (benchmarks/peers/alternation.py)      |
| partition*.jsonl | benchmarks/partition      | the same of jobs over nodes                                          |
| builds.jsonl     | benchmarks/builds.py      | a --json a line, of two builds in turn: in no table but their own    |

Results of an older form have no record: medians only, and neither processor time nor memory of all processes. They are
shown in the tables that they were made for, and in no ratio.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.bench.record import KEYS, lines_of

PEERS = "peers.jsonl"
BUILDS = "builds.jsonl"
PARTITIONS = "partition"
"""How the names of files with results of partitions begin."""
ENOUGH = 5
"""Repeats of a median that is worth its name."""
_ONLY_IN_RECORDS = ("run_id", "work", "system", "cpu_s", "repeats")  # a result with some of them lost the others


@dataclass(frozen=True)
class Run:
    """One measurement."""

    source: str  # its file
    records: list[dict[str, Any]]  # of each repeat

    def get(self, name: str) -> Any:
        """What all records of the run share; None if it is missing."""
        return self.records[0].get(name)

    def values(self, name: str) -> list[float]:
        """The figure `name` of each repeat, from the record or from what else it measured."""
        found = [record.get(name, _measured(record).get(name)) for record in self.records]
        return [float(value) for value in found if isinstance(value, int | float)]

    def median(self, name: str) -> float | None:
        """None if it was not measured."""
        values = self.values(name)
        return statistics.median(values) if values else None

    @property
    def kernel(self) -> str:
        """What hid the vectors; older records do not say it, since there was Python's path only."""
        return str(self.get("kernel") or "python")

    @property
    def settings(self) -> str:
        """How it was done, to be compared; ranks for each site included where all have as many."""
        ranks = self.get("ranks")
        each = ranks[0] if isinstance(ranks, list) and len(set(ranks)) == 1 else ranks
        settings = dict(self.get("settings") or {})
        for name in ("rails", "threshold"):  # rails: as many as there are ranks; a threshold goes with the sites
            settings.pop(name, None)
        return json.dumps([each, settings], sort_keys=True)


@dataclass
class Stored:
    """All results of a folder."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Whole files of measure.py, by their name without .json."""
    runs: list[Run] = field(default_factory=list)
    builds: list[dict[str, Any]] = field(default_factory=list)
    """Lines of two builds in turn."""
    broken: list[str] = field(default_factory=list)
    """What could not be read, in words."""
    unrecorded: list[str] = field(default_factory=list)
    """Files without a record, and the keys that they lack, in words."""


def read_results(folder: Path) -> Stored:
    """Everything in `folder`, in the order of the files' names."""
    stored = Stored()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        if path.name == BUILDS:
            stored.builds = [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".jsonl":
            _read_lines(path, stored)
        else:
            _read_object(path, stored)
    return stored


def alone(runs: Sequence[Run]) -> list[Run]:
    """Those of fedhpc by itself on one machine: neither beside peers nor on a partition.

    Only they are compared with one another.
    """
    return [run for run in runs if run.source != PEERS and not run.source.startswith(PARTITIONS)]


def machine_text(machine: Any) -> str:
    """A machine in words; an older form has the words already."""
    if not isinstance(machine, Mapping):
        return str(machine)
    words = [machine.get("processor"), f"{machine.get('cores')} cores", f"{machine.get('memory_gib')} GiB"]
    return ", ".join(str(word) for word in [*words, machine.get("kernel")])


def _read_lines(path: Path, stored: Stored) -> None:
    runs: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            assert isinstance(record, dict)
        except (ValueError, AssertionError):
            stored.broken.append(f"{path.name}: line {number} is no JSON object")
            continue
        # Rows of one command are runs of their own.
        key = json.dumps([record.get(name) for name in ("run_id", "work", "sites", "params", "ranks", "system")])
        runs.setdefault(key, []).append(record)
    if not runs:
        stored.broken.append(f"{path.name} holds no record")
    stored.runs += [Run(path.name, records) for records in runs.values()]


def _read_object(path: Path, stored: Stored) -> None:
    try:
        whole = json.loads(path.read_text())
        result = whole["result"]
        rows = [row for row in _rows(result) if isinstance(row, dict)]
    except (ValueError, KeyError, TypeError):
        stored.broken.append(f"{path.name} is no result of benchmarks/measure.py")
        return
    stored.objects[path.stem] = whole
    for row in rows:
        lacks = [name for name in (*KEYS, "repeats") if name not in row]
        if not lacks:
            stored.runs.append(Run(path.name, lines_of(row)))
        elif any(name in row for name in _ONLY_IN_RECORDS):
            stored.broken.append(f"{path.name}: {row.get('work')} lacks {', '.join(lacks)}")
        elif row is rows[0]:
            stored.unrecorded.append(f"{path.name} is of an older form: it lacks {', '.join(lacks)}")


def _rows(result: Mapping[str, Any]) -> Iterable[Any]:
    return next((result[name] for name in ("backends", "masks") if name in result), [result])


def _measured(record: Mapping[str, Any]) -> Mapping[str, Any]:
    measured = record.get("measured")
    return measured if isinstance(measured, Mapping) else {}
