"""Every benchmark once, as small as it can be, and a check that no figure was lost: `make bench-smoke`.

    python -m benchmarks.smoke [DIR]    keep the records and the page made of them in DIR

Nobody judges the times. Exit 1 where a command fails, or `python -m benchmarks.report --check` finds something wrong.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.complaints import MEASURED
from benchmarks.report.__main__ import main as report

COMMANDS = (
    "sum --sites 3 --params 1000000 --repeat 1",
    "sum --exchange https --sites 2 --params 1000000 --repeat 1",
    "sum --exchange https --sites 2 --params 1000000 --repeat 1 --durable memory",
    "sum --exchange https --sites 4 --params 10000 --repeat 1 --latency-ms 5 --mbit-s 200 --lost 1",
    "latency --sites 2 --repeat 1",
    "round --sites 2 --rounds 1 --repeat 1",
    "masks --sites 2,4 --params 1000000 --repeat 1",
    "data --rows 10000 --columns 100 --repeat 1",
    "backends --backends serial --params 1000000 --steps 1 --alternations 1",
)


def main(folder: Path) -> int:
    """The exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "smoke.jsonl"
    for command in COMMANDS:
        words = ["-m", "fedhpc", "bench", *command.split(), "--json", "--lines", str(lines)]
        done = subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"error: fedhpc bench {command}: exit code {done.returncode}", file=sys.stderr)
            return 1
    here = ["--results", str(folder)]
    if code := report([*here, "--check", *(f"--expect={work}" for work in MEASURED)]):
        return code
    return report([*here, "--page", str(folder / "benchmarks.md")])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory(prefix="fedhpc-smoke-") as temporary:
        sys.exit(main(Path(temporary)))
