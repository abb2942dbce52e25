"""Plain MPI: one float32 allreduce in place with mpi4py, in one call or in chunks. No protection: what the wire can do.

    python mpi_allreduce.py --params P --sites N --rounds R --work DIR [--chunk-bytes B]

It starts its own ranks with the mpirun beside its Python. Only the allreduce is timed. The sum is exact in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def launch(sites: int) -> None:
    """Become the mpirun of this script; more ranks than cores are allowed."""
    mpirun = Path(sys.executable).parent / "mpirun"
    words = [str(mpirun), "-n", str(sites), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    words += [sys.executable, "-m", "mpi4py", *sys.argv, "--rank"]
    os.execve(mpirun, words, {**os.environ, **root})  # noqa: S606  # so that a signal is for mpirun


def rank(params: int, rounds: int, chunk_bytes: int) -> None:
    """One rank; rank 0 prints the result."""
    import numpy as np
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    me, sites = comm.Get_rank(), comm.Get_size()
    values = np.empty(params, dtype=np.float32)
    step = chunk_bytes // 4 or params
    spans, error = [], 0.0
    for number in range(rounds):
        # Multiples of 2^-10 below 2^13: their sum needs no rounding.
        fill(np, values, me + number)
        comm.Barrier()
        start = time.monotonic()
        for first in range(0, params, step):
            comm.Allreduce(MPI.IN_PLACE, values[first : first + step], op=MPI.SUM)
        end = time.monotonic()
        ends = comm.allgather((start, end))
        spans.append([min(s for s, _ in ends), max(e for _, e in ends)])  # nobody checks while another rank still sums
        error = max(error, worst(np, values, sites, number))
    error = max(comm.allgather(error))
    if me == 0:
        said = {
            "system": "mpi4py",
            "version": version("mpi4py"),
            "work": "plain allreduce",
            "first": spans[0],
            "rounds": spans[1:],
            "verified": error == 0,
            "error": error,
            "tolerance": 0.0,
            "settings": {"calls": -(-params // step), "ranks": sites},
            "versions": {
                "mpi": MPI.Get_library_version().split(",")[0],
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        print(json.dumps(said), flush=True)
        if error:
            sys.exit(f"the sum is off by {error}")


TILE = 1 << 20  # numbers at a time, so that checking takes no memory


def fill(np: Any, values: Any, base: int) -> None:
    """value[i] = (i mod 1024) / 1024 + base."""
    pattern = (np.arange(TILE, dtype=np.float32) % 1024) / 1024 + np.float32(base)
    for first in range(0, values.size, TILE):
        values[first : first + TILE] = pattern[: values.size - first]


def worst(np: Any, values: Any, sites: int, number: int) -> float:
    """The largest error of the sum; infinite if a number is none, or there is none."""
    pattern = (np.arange(TILE, dtype=np.float32) % 1024) / 1024 * sites + sum(k + number for k in range(sites))
    found = []
    for first in range(0, values.size, TILE):
        piece = values[first : first + TILE]
        found.append(float(np.abs(piece - pattern[: piece.size]).max()))
    return max(found) if found and all(map(math.isfinite, found)) else math.inf


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, required=True)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True, help="the first one is the cold one")
    parser.add_argument("--work", required=True)
    parser.add_argument("--chunk-bytes", type=int, default=0, help="0: one call for all")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(given.params, given.rounds, given.chunk_bytes)
    else:
        launch(given.sites)
