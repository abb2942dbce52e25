"""The record of a measurement, the same for every benchmark and every system that is measured.

| key          | meaning                                                                                             |
|--------------|-----------------------------------------------------------------------------------------------------|
| `work`       | what was done, such as "masked sum"                                                                 |
| `params`     | numbers in the vector or the model; for `data`, in the store's features                             |
| `sites`      |                                                                                                     |
| `ranks`      | of each site, a list                                                                                |
| `system`     | what did it, with its `version`                                                                     |
| `wall_s`     | until the slowest process was done                                                                  |
| `cpu_s`      | processor time, user and system, of all processes of the work, without the launcher                 |
| `peak_bytes` | each process's largest resident size (VmHWM), added up: the work never held more                    |
| `verified`   | whether the result was compared with one that was found another way, and was right                  |
| `repeat`     | in JSON lines, which one of `repeats`; in the object of `--json`, how many                          |
| `run_id`     | the same for all repeats of one command                                                             |
| `machine`    | processor, cores, memory_gib and kernel                                                             |
| `date`       | UTC, when it ended                                                                                  |
| `command`    | what repeats it                                                                                     |
| `kernel`     | what hid and opened the vector: `python`, or the compiled kernel by its instructions (`kernel/`)    |
| `cpu_flags`  | those instructions of the processor that a kernel could use                                         |

In the object of `--json`, `wall_s` and `cpu_s` are medians, `peak_bytes` is the largest, and `repeats` lists what each
repeat took. A line has `settings`, `versions` of libraries, `load` (processes that ran or waited to, a minute's mean,
when the command began), and in `measured` the other figures of its repeat. Older records have no `kernel`: there was
none.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc import __version__
from fedhpc.bench.hardware import cpu_flags, machine
from fedhpc.errors import StorageError
from fedhpc.kernel.choice import running

METRICS = ("wall_s", "cpu_s", "peak_bytes", "verified")
"""What every repeat has."""
KEYS = (
    *("work", "params", "sites", "ranks", "system", "version"),
    *METRICS,
    *("repeat", "run_id", "machine", "date", "command"),
)
SETTINGS = (
    *("nodes", "exchange", "lane_bits", "degree", "colluders", "threshold", "rails", "chunk_bytes", "overlap"),
    *("durable", "latency_ms", "mbit_s", "lost", "upload_s"),
    *("epochs", "rounds", "rows", "row_bytes", "batch", "memory_mib", "alternations"),
)
"""What a result may say of how it was done."""
ALSO_SHARED = ("load", "versions", "kernel", "cpu_flags", "suite", "store", "old_commit")
"""What repeats have in common beside KEYS, where it is known."""
Result = dict[str, Any]


def kernel_here() -> Result:
    """`kernel` and `cpu_flags` of a record, as every process of this machine and environment has them."""
    return {"kernel": running().name, "cpu_flags": cpu_flags()}


@dataclass(frozen=True)
class Origin:
    """Where the figures of one command come from."""

    command: str
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))
    kernel: Result = field(default_factory=lambda: kernel_here())  # refuses a wrong FEDHPC_KERNEL at the beginning

    def complete(self, result: Mapping[str, Any], work: str, **more: Any) -> Result:
        """`result`, whose `repeats` [n] have METRICS each, with the keys of a record; what it has already stays.

        `more`: keys of the record that it lacks.
        """
        repeats = result["repeats"]
        middle = {name: statistics.median(r[name] for r in repeats) for name in ("wall_s", "cpu_s")}
        return {
            "work": work,
            "system": "fedhpc",
            "version": __version__,
            **middle,
            "peak_bytes": max(r["peak_bytes"] for r in repeats),
            "verified": all(r["verified"] for r in repeats),
            "repeat": len(repeats),
            "run_id": self.run_id,
            "machine": machine(),
            **self.kernel,
            "load": self.load,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": self.command,
            **more,
            **result,
        }


def origin() -> Origin:
    """Of the command that this process is."""
    return Origin(shlex.join(["fedhpc", *_repeatable(sys.argv[1:])]))


def _repeatable(words: Sequence[str]) -> list[str]:
    """Without what says only where the figures go."""
    kept, skip = list[str](), False
    for word in words:
        if not skip and word != "--json" and word != "--lines" and not word.startswith("--lines="):
            kept.append(word)
        skip = word == "--lines" and not skip
    return kept


def lines_of(result: Mapping[str, Any]) -> list[Result]:
    """A record for each repeat of a complete `result`."""
    shared = {name: result[name] for name in KEYS if name not in (*METRICS, "repeat")}
    if isinstance(shared["ranks"], int):  # of the one site
        shared["ranks"] = [shared["ranks"]]
    shared |= {name: result[name] for name in ALSO_SHARED if name in result}
    found = []
    for number, repeat in enumerate(result["repeats"], 1):
        record = {name: shared[name] for name in KEYS if name in shared}
        record |= {name: repeat[name] for name in METRICS}
        record["settings"] = {name: result[name] for name in SETTINGS if name in result}
        record |= {"repeat": number, "repeats": len(result["repeats"])} | shared
        found.append(record | {"measured": {k: v for k, v in repeat.items() if k not in METRICS}})
    return found


def append_lines(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """A line of JSON at the end of `path` for each repeat of each complete result. Raises StorageError."""
    text = "".join(json.dumps(record) + "\n" for result in results for record in lines_of(result))
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", "the figures are on standard output") from None
