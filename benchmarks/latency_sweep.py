"""Seconds of a small sum through the relay at several round-trip times, and the round trips that this comes to.

    python benchmarks/latency_sweep.py [--rtt-ms 0 20 80] [--sites 3] [--sums 12] [--numbers 2] [--json]

Real sites and a real relay on this machine; a proxy between them delays every byte (fedhpc/bench/shaped_line.py). Of
several sums the fastest counts, because other work on the machine only adds. The slope of seconds over round-trip time
is how many round trips a sum waits for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "relay"))

from sum_site import run_sums, sum_federation

from fedhpc.bench.shaped_line import Line
from fedhpc.enrolment.one_machine import running_relay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=[0.0, 20.0, 80.0])
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument(
        "--sums", type=int, default=12, help="at each round-trip time; the first connects, and is left out"
    )
    parser.add_argument("--numbers", type=int, default=2, help="64-bit integers in a sum")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seconds: list[float] = []
    turns = 0
    with tempfile.TemporaryDirectory() as temporary:
        enrolled = sum_federation(Path(temporary), given.sites)
        with running_relay(enrolled.relay):
            for rtt_ms in given.rtt_ms:
                with Line(enrolled.port, rtt_ms / 2000) as line:
                    costs = run_sums(enrolled, line.port, given.sums, given.numbers)[0][1:]
                seconds.append(min(c["seconds"] for c in costs))
                turns = min(c["turns"] for c in costs)
                if not given.json:
                    print(f"{rtt_ms:6.0f} ms round trip: {seconds[-1]:7.3f} s per sum", flush=True)
    slope, base = (
        np.polyfit(np.array(given.rtt_ms) / 1000, seconds, 1) if len(seconds) > 1 else (float("nan"), seconds[0])
    )
    if given.json:
        rows = [{"rtt_ms": r, "seconds": round(s, 4)} for r, s in zip(given.rtt_ms, seconds, strict=True)]
        print(json.dumps({"sweep": rows, "round_trips": round(float(slope), 2), "turns": turns}))
    else:
        print(f"fitted: {base:.3f} s + {slope:.1f} round trips; counted: {turns} requests one after the other")


if __name__ == "__main__":
    main()
