"""Every rank of `fedhpc bench latency` runs this: one small `fed.sum`, with the ledger in memory and on disk."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.app.federation import Federation
from fedhpc.bench.memory import clear_peak, peak_bytes
from fedhpc.bench.rehearsal import Stage, set_stage
from fedhpc.bench.sum_ranks import over_job, versions

_WARM_UP = 10
_STRETCHES = 5  # the sums of a whole number in so many; each is a repeat of the record (bench/record.py)


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
                if where == "disk":
                    result[f"sum_int_s{suffix}"] = _median(federation, np.array([1]), repeat)
                else:
                    clear_peak()
                    times = _timed(federation, np.array([1]), repeat)
                    result["repeats"] = _stretches(stage, times, peak_bytes())
                    result["sum_int_s"] = statistics.median(wall for wall, _, _ in times)
                    result["sum_float_unbounded_s"] = _median(federation, np.array([1.0]), repeat)
                    spent = federation.session.take_spent().stages
                    count = 2 * (repeat + _WARM_UP) + repeat + _WARM_UP
                    result["stages_s"] = {n: s / count for n, s in vars(spent).items()}
    result["versions"] = versions()
    if stage.world.group.rank == 0:
        print(json.dumps(result))


def _median(federation: Federation, value: object, repeat: int) -> float:
    return statistics.median(wall for wall, _, _ in _timed(federation, value, repeat))


def _timed(federation: Federation, value: object, repeat: int) -> list[tuple[float, float, bool]]:
    """(seconds, processor seconds of this rank, whether it was the number of sites times `value`) of each sum."""
    times = []
    for _ in range(_WARM_UP + repeat):
        begun, spent = time.perf_counter(), time.process_time()
        found = federation.sum(value)
        times.append((time.perf_counter() - begun, time.process_time() - spent, _is_sum(federation, value, found)))
    return times[_WARM_UP:]


def _is_sum(federation: Federation, value: object, found: object) -> bool:
    return bool(np.array_equal(np.asarray(found), len(federation.session.sites) * np.asarray(value)))


def _stretches(stage: Stage, times: list[tuple[float, float, bool]], peak: int) -> list[dict[str, Any]]:
    """For each stretch: the median sum at the slowest rank, the processor time of a sum at all ranks."""
    cuts = np.array_split(np.arange(len(times)), min(_STRETCHES, len(times)))
    mine = []
    for cut in cuts:
        walls, cpus, right = zip(*(times[i] for i in cut), strict=True)
        mine.append([statistics.median(walls), statistics.fmean(cpus), all(right)])
    ranks, peaks = over_job(stage, mine), over_job(stage, peak)
    return [
        {
            "wall_s": max(rank[k][0] for rank in ranks),
            "cpu_s": sum(rank[k][1] for rank in ranks),
            "peak_bytes": sum(peaks),
            "verified": all(rank[k][2] for rank in ranks),
        }
        for k in range(len(cuts))
    ]


if __name__ == "__main__":
    measure(**json.loads(sys.argv[1]))
