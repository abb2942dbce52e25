"""Every rank of one site of `fedhpc bench sum --exchange https` runs this; rank 0 prints the site's figures."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.app.federation import Federation
from fedhpc.app.join import join_with_files
from fedhpc.bench.memory import clear_peak, peak_bytes, processor_seconds, resident_bytes
from fedhpc.bench.sum_ranks import SCALE, TILE, draw, is_sum
from fedhpc.errors import PeersError
from fedhpc.federation.party import RoundOverError, SumKind, SumPlan
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Tensor
from fedhpc.transport.https.client import RelayClient
from fedhpc.wire.object_names import ObjectName

_STAGES = ("encode", "masks", "wire", "decode", "agree", "ledger", "share")


def measure(case: dict[str, Any]) -> None:
    """Sum `repeat` times without and with masks, in turn, all sites starting together.

    Every second repeat goes the other way round: what runs after what must not decide.
    """
    modes = ("off", "masked")
    joined = {
        mode: join_with_files(
            Path(case["federations"][mode]), sites=None, site=Path(case["site_files"][mode]), run=None
        )
        for mode in modes
    }
    # The same at all sites, and new in each run: the file has the public keys that were made for it.
    fresh = hashlib.sha256(Path(case["federations"]["off"]).read_bytes()).digest()
    kind = "float32" if case["lane_bits"] == 32 else "float64"
    vector = Vector(joined["off"].session.layout([Tensor("vector", kind, (case["params"],), SCALE)]))
    vector.whole()[:] = 0  # its pages are there before anything is timed
    baseline = resident_bytes() - vector.layout.nbytes
    spans: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    report: dict[str, Any] = {"verified": True, "peak_bytes": 0, "baseline_bytes": baseline}
    repeats: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    settles, turns = list[float](), list[dict[str, Any]]()
    for number in range(case["repeat"]):
        for mode in modes if number % 2 == 0 else modes[::-1]:
            session = joined[mode].session
            seed = fresh + f"{number} {mode}".encode()
            values = vector.view("vector")
            draw(values, seed, session.party.number)
            Federation(session).sum(np.array([1]), name=f"start {number}")  # all sites go on together
            if mode == "masked" and case["vanishes"]:
                _vanish_with_the_vector(report | {"spans": spans, "repeats": repeats})
            members = tuple(range(1, (len(session.sites) if mode == "off" else case["members"]) + 1))
            clear_peak()
            plan = SumPlan(session.round_ + 1, f"bench {number}", SumKind.STATISTIC, session.state, replicated=True)
            relay_spent, spent = processor_seconds(case["relay_pid"]), time.process_time()
            begun = time.time()
            with _saying_late(f"site{session.party.number}", case["upload_s"]):
                opened = session.open(vector, plan)
            ended = time.time()
            spent, peak = time.process_time() - spent, peak_bytes()
            spans[mode].append((begun, ended))
            report["peak_bytes"] = max(report["peak_bytes"], peak)
            right = opened.members == members and _verify(members, values, seed)
            report["verified"] = report["verified"] and right
            begun = time.perf_counter()
            session.settle(opened, session.tensors_tree)
            settles.append(time.perf_counter() - begun)
            # Of the relay until all sites have compared their sums: no site still waits for its answer then.
            relay_spent = processor_seconds(case["relay_pid"]) - relay_spent
            repeats[mode].append(_over_ranks(session, spent, peak, right) | {"relay_cpu_s": relay_spent})
            if mode == "masked":
                stages = {name: getattr(opened.stages, name) for name in _STAGES}
                turn = {name: getattr(opened, name) for name in ("round_trips", "round_trips_exposed", "bytes_up")}
                turns.append(turn | {"stages_s": stages})
    for mode in modes:
        joined[mode].session.close()
    report |= {"spans": spans, "repeats": repeats, "settles": settles, "turns": turns}
    if joined["off"].first:
        print(json.dumps(report), flush=True)


class LateSiteError(PeersError):
    """A site that did not vanish was taken for one that did."""


@contextmanager
def _saying_late(site: str, upload_s: float | None) -> Iterator[None]:
    """Where others are lost, a sum without this site is one that had no time for it: its figures are of nothing."""
    try:
        yield
    except RoundOverError as over:
        if upload_s is None:
            raise
        raise LateSiteError(
            f"{site} is there, and its vector came later than upload_s = {upload_s}: {over.what}",
            "--patience-s: more than this machine needs at its busiest",
        ) from None


def _over_ranks(session: Session, cpu_s: float, peak: int, right: bool) -> dict[str, Any]:
    """Processor time and memory of all ranks of this site, and whether all are right."""
    site = session.party.site
    ranks = [json.loads(b) for b in site.gather_bytes(json.dumps([cpu_s, peak, right]).encode())]
    cpus, peaks, rights = zip(*ranks, strict=True)
    return {"cpu_s": sum(cpus), "peak_bytes": sum(peaks), "verified": all(rights)}


def _vanish_with_the_vector(report: dict[str, Any]) -> None:
    """Once this site shares masks with the others and would send its vector, it is as if its node lost its power.

    Its `report` is given before.
    """
    print(json.dumps(report), flush=True)
    for way in ("put", "upload"):  # a small vector goes in one piece
        setattr(RelayClient, way, _unless_the_vector(getattr(RelayClient, way)))


def _unless_the_vector(real: Callable[..., Any]) -> Callable[..., Any]:
    def send(client: RelayClient, name: ObjectName, *rest: Any, **more: Any) -> Any:
        if name.kind == "M3v":
            os._exit(0)
        return real(client, name, *rest, **more)

    return send


def _verify(members: Sequence[int], values: np.ndarray, seed: bytes) -> bool:
    """Whether every value is 2^-20 times the integer sum of these sites' numbers, drawn again."""
    tiles = enumerate(range(0, values.size, TILE))
    return all(is_sum(values[start : start + TILE], seed, members, tile) for tile, start in tiles)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        measure(json.loads(sys.argv[1]))
    except LateSiteError as late:
        print(late.lines(), file=sys.stderr)
        sys.exit(late.exit_code)
