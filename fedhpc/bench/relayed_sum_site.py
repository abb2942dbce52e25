"""Every rank of one site of `fedhpc bench sum --exchange https` runs this; rank 0 prints the site's figures."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.app.federation import Federation
from fedhpc.app.join import join_with_files
from fedhpc.bench.memory import clear_peak, peak_bytes, resident_bytes
from fedhpc.bench.sum_ranks import SCALE, TILE, draw, integers
from fedhpc.federation.party import SumKind, SumPlan
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Tensor

_STAGES = ("encode", "masks", "wire", "decode", "agree", "ledger", "share")


def measure(case: dict[str, Any]) -> None:
    """Sum `repeat` times without and with masks, in turn, all sites starting together."""
    modes = ("off", "masked")
    joined = {
        mode: join_with_files(
            Path(case["federations"][mode]), sites=None, site=Path(case["site_files"][mode]), run=None
        )
        for mode in modes
    }
    kind = "float32" if case["lane_bits"] == 32 else "float64"
    vector = Vector(joined["off"].session.layout([Tensor("vector", kind, (case["params"],), SCALE)]))
    vector.whole()[:] = 0  # its pages are there before anything is timed
    baseline = resident_bytes() - vector.layout.nbytes
    spans: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    report: dict[str, Any] = {"verified": True, "peak_bytes": 0, "baseline_bytes": baseline}
    settles, stages = [], []
    turns = (0, 0)
    for number in range(case["repeat"]):
        for mode in modes:
            session = joined[mode].session
            seed = f"{number} {mode}".encode()
            values = vector.view("vector")
            draw(values, seed, session.party.number)
            Federation(session).sum(np.array([1]), name=f"start {number}")  # all sites go on together
            clear_peak()
            plan = SumPlan(session.round_ + 1, f"bench {number}", SumKind.STATISTIC, session.state, replicated=True)
            begun = time.time()
            opened = session.open(vector, plan)
            ended = time.time()
            spans[mode].append((begun, ended))
            report["peak_bytes"] = max(report["peak_bytes"], peak_bytes())
            report["verified"] = report["verified"] and _verify(session, values, seed)
            begun = time.perf_counter()
            session.settle(opened, session.tensors_tree)
            settles.append(time.perf_counter() - begun)
            if mode == "masked":
                stages.append({name: getattr(opened.stages, name) for name in _STAGES})
                turns = (opened.round_trips, opened.round_trips_exposed)
                report["bytes_up"] = opened.bytes_up
    for mode in modes:
        joined[mode].session.close()
    report |= {
        "spans": spans,
        "settle_s": statistics.median(settles),
        "stages_s": {name: statistics.median(s[name] for s in stages) for name in _STAGES},
        "round_trips": turns[0],
        "round_trips_exposed": turns[1],
    }
    if joined["off"].first:
        print(json.dumps(report), flush=True)


def _verify(session: Session, values: np.ndarray, seed: bytes) -> bool:
    """Whether every value is 2^-20 times the integer sum of all sites' numbers, drawn again."""
    for tile, start in enumerate(range(0, values.size, TILE)):
        piece = values[start : start + TILE]
        total = np.zeros(piece.size, dtype=np.int64)
        for number in range(1, len(session.sites) + 1):
            total += integers(seed, number, tile, piece.size)
        if not np.array_equal(piece.astype(np.float64) * 2.0**SCALE, total):
            return False
    return True


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    measure(json.loads(sys.argv[1]))
