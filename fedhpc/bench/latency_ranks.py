"""Every rank of `fedhpc bench latency` runs this: one small `fed.sum`, with the ledger in memory and on disk."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedhpc.app.federation import Federation
from fedhpc.bench.rehearsal import set_stage
from fedhpc.bench.sum_ranks import versions

_WARM_UP = 10


def measure(sites: int, repeat: int) -> None:
    """Time `repeat` sums of one integer, and of one float without a bound (two masked sums); rank 0 prints JSON."""
    stage = set_stage([1] * sites)
    result: dict[str, object] = {"sites": sites, "repeat": repeat, "ranks_per_site": stage.place.site.size}
    with tempfile.TemporaryDirectory() as folder:
        for where in ("memory", "disk"):
            home = Path(folder) / str(stage.place.number) if where == "disk" else None
            party = stage.party("pairwise", home=home)
            with Federation(stage.session(party)) as federation:
                suffix = "" if where == "memory" else "_with_fsync"
                result[f"sum_int_s{suffix}"] = _median(federation, np.array([1]), repeat)
                if where == "memory":
                    result["sum_float_unbounded_s"] = _median(federation, np.array([1.0]), repeat)
                    spent = federation.session.take_spent().stages
                    count = 2 * (repeat + _WARM_UP) + repeat + _WARM_UP
                    result["stages_s"] = {n: s / count for n, s in vars(spent).items()}
    result["versions"] = versions()
    if stage.world.group.rank == 0:
        print(json.dumps(result))


def _median(federation: Federation, value: object, repeat: int) -> float:
    times = []
    for _ in range(_WARM_UP + repeat):
        begun = time.perf_counter()
        federation.sum(value)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[_WARM_UP:])


if __name__ == "__main__":
    measure(**json.loads(sys.argv[1]))
