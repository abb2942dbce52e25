"""Runs the measurements behind docs/benchmarks.md: `make bench`.

    python benchmarks/measure.py [CASE …]   measure, and store benchmarks/results/*.json
    python benchmarks/measure.py --all      also the cases that take long
    python benchmarks/measure.py --list     the cases, and a guess of how long each takes

Every case is one `fedhpc bench` command, but for one. A case that would take more than a third of the machine's memory
is left out, and that is said. The package benchmarks/report makes the page of what is stored.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.bench.hardware import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_RANK_BYTES = 90 << 20  # of a rank with an empty vector


@dataclass(frozen=True)
class Case:
    """One command."""

    words: str
    guess_s: float  # for two cores and nothing else running; what it took when it ran is `took_s` of the stored result
    large_bytes: int = 0  # of all processes together; 0: little
    slow: bool = False  # only with --all

    @property
    def command(self) -> str:
        """As it is typed."""
        return f"fedhpc {self.words} --json" if self.words.startswith("bench ") else f"python {self.words}"


def _sum(sites: int, params: int, repeat: int, guess_s: float, more: str = "", *, slow: bool = False) -> Case:
    """Sites of one rank in one job."""
    words = f"bench sum --sites {sites} --params {params} --repeat {repeat} {more}".rstrip()
    return Case(words, guess_s, sites * (4 * params + _RANK_BYTES), slow)


def _relay(sites: int, params: int, repeat: int, guess_s: float, more: str = "", *, slow: bool = False) -> Case:
    """Sites of one rank over a relay, which keeps vectors in files."""
    words = f"bench sum --exchange https --sites {sites} --params {params} --repeat {repeat} {more}".rstrip()
    return Case(words, guess_s, sites * (4 * params + _RANK_BYTES), slow)


M = 1_000_000
FLAT = "--degree 22 --colluders 10 --threshold"  # the least degree that is safe for 32 sites, kept for more
CASES: Mapping[str, Case] = {
    # Over sites, and over parameters.
    "sum_1M_2sites": _sum(2, M, 9, 3),
    "sum_1M": _sum(4, M, 9, 4),
    "sum_1M_8sites": _sum(8, M, 9, 6),
    "sum_1M_16sites": _sum(16, M, 9, 10),
    "sum_1M_32sites": _sum(32, M, 7, 20),
    "sum_1M_64sites": _sum(64, M, 5, 45),
    "sum_1M_32sites_degree": _sum(32, M, 5, 20, f"{FLAT} 22"),
    "sum_1M_48sites_degree": _sum(48, M, 5, 35, f"{FLAT} 38", slow=True),
    "sum_1M_64sites_degree": _sum(64, M, 5, 40, f"{FLAT} 54"),
    "sum_10M_2sites": _sum(2, 10 * M, 9, 5),
    "sum_10M": _sum(4, 10 * M, 9, 8),
    "sum_10M_8sites": _sum(8, 10 * M, 7, 14),
    "sum_10M_16sites": _sum(16, 10 * M, 5, 25),
    "sum_100M": _sum(4, 100 * M, 5, 30),
    "sum_250M": _sum(4, 250 * M, 5, 75, slow=True),
    "sum_1G": _sum(4, 1000 * M, 5, 300, slow=True),
    # In other ways.
    "sum_10M_3sites": _sum(3, 10 * M, 9, 6),
    "sum_10M_64bit": _sum(4, 10 * M, 9, 12, "--lane-bits 64"),
    "sum_10M_rails": Case("bench sum --sites 3 --ranks-per-site 2 --params 10000000 --repeat 9", 7),
    "sum_10M_uneven": Case("bench sum --ranks 2,3 --params 10000000 --repeat 9", 10),
    # Over a relay.
    "relay_1M": _relay(4, M, 5, 8),
    "relay_10M": _relay(4, 10 * M, 5, 20),
    "relay_10M_memory": _relay(4, 10 * M, 5, 20, "--durable memory"),
    "relay_100M": _relay(4, 100 * M, 5, 140),
    "relay_100M_memory": _relay(4, 100 * M, 5, 140, "--durable memory", slow=True),
    "relay_250M": _relay(4, 250 * M, 5, 400, slow=True),
    "relay_1M_20ms": _relay(4, M, 5, 10, "--latency-ms 20"),
    "relay_1M_80ms": _relay(4, M, 5, 15, "--latency-ms 80", slow=True),
    "relay_1M_narrow": _relay(4, M, 5, 12, "--latency-ms 20 --mbit-s 100"),
    "relay_1M_lost": _relay(4, M, 5, 45, "--lost 1 --patience-s 5"),
    "relay_10M_lost": _relay(4, 10 * M, 5, 110, "--lost 1 --patience-s 5", slow=True),
    "relay_1M_7sites_lost": _relay(7, M, 5, 80, "--lost 2 --patience-s 5", slow=True),
    # A site by itself.
    "latency": Case("bench latency --sites 4 --repeat 500", 12),
    "round": Case("bench round --sites 4 --repeat 9 --rounds 10", 30),
    "masks": Case("bench masks", 8),
    "data": Case("bench data", 15),
    "backends": Case("bench backends --backends serial,ddp,fsdp,mpi,horovod", 600, slow=True),
    "startup": Case("benchmarks/startup.py", 15),
}


def too_large(here: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The commands of cases that would take more than a third of the memory of the machine `here`, and how much."""
    limit = here.get("memory_gib", 0) * 2**30 / 3
    return [
        (case.command, f"about {case.large_bytes / 2**30:.0f} GiB of {here.get('memory_gib')}")
        for case in CASES.values()
        if case.large_bytes > limit
    ]


def measure(names: list[str]) -> None:
    """Run the named cases, and store what they print."""
    RESULTS.mkdir(exist_ok=True)
    left_out = dict(too_large(machine()))
    for name in names:
        case = CASES[name]
        if case.command in left_out:
            print(f"left out: {case.command}: {left_out[case.command]}", flush=True)
            continue
        print(f"{case.command}  (perhaps {case.guess_s:.0f} s)", flush=True)
        program, *words = case.command.split()
        program_words = ["-m", "fedhpc"] if program == "fedhpc" else []
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, *program_words, *words], stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent
        )
        took_s = round(time.monotonic() - begun, 1)
        print(f"  {took_s:.0f} s", flush=True)
        stored = {
            "command": case.command,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "took_s": took_s,
            "result": json.loads(done.stdout.splitlines()[-1]),
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
    )
    parser.add_argument("--all", action="store_true", help="also the cases that take long")
    parser.add_argument("--list", action="store_true", help="run nothing")
    given = parser.parse_args()
    names = given.cases or [name for name, case in CASES.items() if given.all or not case.slow]
    if unknown := set(names) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; --list shows them")
    if given.list:
        for name in names:
            print(f"{name:24} {CASES[name].guess_s:4.0f} s  {CASES[name].command}")
        print(f"{'together':24} {sum(CASES[name].guess_s for name in names):4.0f} s")
        return
    measure(names)


if __name__ == "__main__":
    main()
