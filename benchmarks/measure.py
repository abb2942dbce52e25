"""Runs the measurements behind docs/benchmarks.md: `make bench`.

    python benchmarks/measure.py [CASE …]   measure, and store benchmarks/results/*.json

Every case is one `fedhpc bench` command, but for one. benchmarks/report.py makes the page of what is stored.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

from fedhpc.bench.hardware import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"

CASES = {
    "sum_1M": ["bench", "sum", "--sites", "4", "--params", "1000000", "--repeat", "9", "--json"],
    "sum_1M_2sites": ["bench", "sum", "--sites", "2", "--params", "1000000", "--repeat", "9", "--json"],
    "sum_1M_8sites": ["bench", "sum", "--sites", "8", "--params", "1000000", "--repeat", "9", "--json"],
    "sum_1M_16sites": ["bench", "sum", "--sites", "16", "--params", "1000000", "--repeat", "9", "--json"],
    "sum_10M": ["bench", "sum", "--sites", "4", "--params", "10000000", "--repeat", "9", "--json"],
    "sum_100M": ["bench", "sum", "--sites", "4", "--params", "100000000", "--repeat", "5", "--json"],
    "sum_10M_3sites": ["bench", "sum", "--sites", "3", "--params", "10000000", "--repeat", "9", "--json"],
    "sum_10M_rails": [
        *["bench", "sum", "--sites", "3", "--ranks-per-site", "2", "--params", "10000000", "--repeat", "9", "--json"],
    ],
    "sum_10M_uneven": ["bench", "sum", "--ranks", "2,3", "--params", "10000000", "--repeat", "9", "--json"],
    "sum_10M_64bit": [
        *["bench", "sum", "--sites", "4", "--params", "10000000", "--lane-bits", "64", "--repeat", "9", "--json"],
    ],
    "relay_10M": [
        *["bench", "sum", "--exchange", "https", "--sites", "4", "--params", "10000000", "--repeat", "7", "--json"],
    ],
    "relay_100M": [
        *["bench", "sum", "--exchange", "https", "--sites", "4", "--params", "100000000", "--repeat", "3", "--json"],
    ],
    "relay_250M": [
        *["bench", "sum", "--exchange", "https", "--sites", "4", "--params", "250000000", "--repeat", "1", "--json"],
    ],
    "latency": ["bench", "latency", "--sites", "4", "--repeat", "500", "--json"],
    "round": ["bench", "round", "--sites", "4", "--json"],
    "masks": ["bench", "masks", "--json"],
    "data": ["bench", "data", "--json"],
    "backends": ["bench", "backends", "--backends", "serial,ddp,fsdp,mpi,horovod", "--json"],
    "startup": ["benchmarks/startup.py"],
}


def measure(names: list[str]) -> None:
    """Run the named cases, or all, and store what they print."""
    RESULTS.mkdir(exist_ok=True)
    for name in names or list(CASES):
        words = CASES[name]
        program, shown = (["-m", "fedhpc"], "fedhpc") if words[0] == "bench" else ([], "python")
        command = f"{shown} {' '.join(words)}"
        print(command, flush=True)
        done = subprocess.run(
            [sys.executable, *program, *words], stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent
        )
        stored = {
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "result": json.loads(done.stdout.splitlines()[-1]),
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    measure(sys.argv[1:])
