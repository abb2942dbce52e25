"""torch.distributed: one float32 all_reduce in place over gloo. No protection: what the wire can do.

    python torch_allreduce.py --params P --sites N --rounds R --work DIR

It starts its own ranks, which meet at a file in DIR. Only the all_reduce is timed. The sum is exact in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from ending import none_left


def launch(sites: int) -> int:
    """Run this script once for each rank; the exit code."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, *sys.argv, "--rank"]
    with none_left():
        ranks = [subprocess.Popen([*words, str(k)], env=environment) for k in range(sites)]
        while any(process.poll() is None for process in ranks):
            if failed := [process.returncode for process in ranks if process.poll()]:
                return int(abs(failed[0]))  # the others would wait for it
            time.sleep(0.05)
    return 0


def rank(me: int, sites: int, params: int, rounds: int, work: Path) -> None:
    """One rank; rank 0 prints the result."""
    import torch
    import torch.distributed as dist

    meet = (work / "meet").absolute().as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=me, world_size=sites, timeout=timedelta(minutes=5))
    values = torch.empty(params, dtype=torch.float32)
    spans, error = [], 0.0
    for number in range(rounds):
        fill(torch, values, me + number)  # multiples of 2^-10 below 2^13: their sum needs no rounding
        dist.barrier()
        start = time.monotonic()
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        end = time.monotonic()
        ends = of_all(dist, sites, (start, end))  # nobody checks while another rank still sums
        spans.append([min(s for s, _ in ends), max(e for _, e in ends)])
        error = max(error, worst(torch, values, sites, number))
    error = max(of_all(dist, sites, error))
    dist.destroy_process_group()
    if me == 0:
        said = {
            "system": "torch.distributed",
            "version": torch.__version__,
            "work": "plain allreduce, gloo",
            "first": spans[0],
            "rounds": spans[1:],
            "verified": error == 0,
            "error": error,
            "tolerance": 0.0,
            "settings": {"backend": "gloo", "ranks": sites},
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }
        print(json.dumps(said), flush=True)
        if error:
            sys.exit(f"the sum is off by {error}")


def of_all(dist: Any, sites: int, value: Any) -> list[Any]:
    """What every rank has given."""
    found: list[Any] = [None] * sites
    dist.all_gather_object(found, value)
    return found


TILE = 1 << 20  # numbers at a time, so that checking takes no memory


def fill(torch: Any, values: Any, base: int) -> None:
    """value[i] = (i mod 1024) / 1024 + base."""
    pattern = (torch.arange(TILE) % 1024).float() / 1024 + base
    for piece in values.split(TILE):
        piece.copy_(pattern[: piece.numel()])


def worst(torch: Any, values: Any, sites: int, number: int) -> float:
    """The largest error of the sum; infinite if a number is none, or there is none."""
    pattern = (torch.arange(TILE) % 1024).float() / 1024 * sites + sum(k + number for k in range(sites))
    found = [float((piece - pattern[: piece.numel()]).abs().max()) for piece in values.split(TILE) if piece.numel()]
    return max(found) if found and all(map(math.isfinite, found)) else math.inf


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, required=True)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True, help="the first one is the cold one")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is None:
        sys.exit(launch(given.sites))
    rank(given.rank, given.sites, given.params, given.rounds, given.work)
