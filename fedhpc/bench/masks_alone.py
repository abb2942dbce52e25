"""`fedhpc bench masks`: what one site does before it sends, on one core, without other sites or a wire.

A repeat checks and fingerprints the vector (`inspect_s`), and hides it under a stream for each other site; the record's
wall and processor time are of both. `encode_s` is what hiding takes without streams, and `masks_s` what the streams add
to that: a compiled kernel does both in one pass.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedhpc.bench.memory import clear_peak, peak_bytes
from fedhpc.bench.sum_ranks import SCALE, draw, versions
from fedhpc.federation.input_check import inspect_blocks
from fedhpc.federation.vector import Vector
from fedhpc.secure.ledger import LedgerKeys
from fedhpc.secure.masks import TILE_BYTES, Masks
from fedhpc.secure.ring import Codec, Layout, Tensor
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.in_job.pipeline import CHUNK_BYTES

_SEED = b"fedhpc bench masks"
_TIMES = ("inspect_s", "encode_s", "masks_s")


@dataclass(frozen=True)
class Case:
    """What is measured."""

    sites: list[int]  # one row for each
    params: int
    lane_bits: int
    repeat: int


def measure(case: Case) -> None:
    """Run the case and print one JSON object."""
    kind = "float32" if case.lane_bits == 32 else "float64"
    vector = Vector(Layout([Tensor("vector", kind, (case.params,), SCALE)]))
    rows = [_row(case, vector, sites) for sites in case.sites]
    print(json.dumps({"masks": rows, "lane_bits": case.lane_bits, "repeat": case.repeat, "versions": versions()}))


def _row(case: Case, vector: Vector, sites: int) -> dict[str, Any]:
    _repeat(case, vector, sites)  # not counted: its memory is fetched from the kernel
    repeats = [_repeat(case, vector, sites) for _ in range(case.repeat)]
    middle = {name: statistics.median(r[name] for r in repeats) for name in _TIMES}
    nbytes = vector.layout.nbytes
    return {
        **middle,
        "inspect_bytes_per_s": nbytes / middle["inspect_s"],
        "encode_bytes_per_s": nbytes / middle["encode_s"],
        "stream_bytes_per_s": (sites - 1) * nbytes / middle["masks_s"] if middle["masks_s"] > 0 else None,
        "streams": sites - 1,
        "params": case.params,
        "lane_bits": case.lane_bits,
        "sites": sites,
        "ranks": [1],
        "repeats": repeats,
        "versions": versions(),
    }


def _repeat(case: Case, vector: Vector, sites: int) -> dict[str, Any]:
    """Site 1 checks and hides a vector of its own under fresh keys, one for each other site."""
    keys = {(u, v): secrets.token_bytes(32) for v in range(1, sites + 1) for u in range(1, v)}
    streams = _streams(keys, sites, 1)
    cuts = [(low, min(vector.layout.nbytes, low + CHUNK_BYTES)) for low in range(0, vector.layout.nbytes, CHUNK_BYTES)]
    ledger = LedgerKeys(*(secrets.token_bytes(32) for _ in range(3)))

    def codec() -> Codec:
        return Codec(sites, "site1")

    def hidden(streams: list[tuple[bytes, int]]) -> tuple[BlockEngine, float, float]:
        engine = BlockEngine(vector, vector.part, codec)
        engine.begin_hiding(streams)
        wall, cpu = time.perf_counter(), time.process_time()
        for low, high in cuts:
            engine.hide(low, high)
        return engine, time.perf_counter() - wall, time.process_time() - cpu

    draw(vector.view("vector"), _SEED, 1)
    encode_s = hidden([])[1]
    draw(vector.view("vector"), _SEED, 1)
    clear_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    inspect_blocks(vector, vector.part, codec, ledger)
    inspect_s, inspect_cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    engine, hide_s, hide_cpu_s = hidden(streams)
    return {
        "wall_s": inspect_s + hide_s,
        "cpu_s": inspect_cpu_s + hide_cpu_s,
        "peak_bytes": peak_bytes(),
        "verified": _opens(engine, vector, streams, cuts) and _cancel(case, keys, sites),
        "inspect_s": inspect_s,
        "encode_s": encode_s,
        "masks_s": hide_s - encode_s,
    }


def _streams(keys: dict[tuple[int, int], bytes], sites: int, site: int) -> list[tuple[bytes, int]]:
    """(key, sign) of each other site, as the protocol has them."""
    others = [v for v in range(1, sites + 1) if v != site]
    return [(keys[min(site, v), max(site, v)], 1 if v > site else -1) for v in others]


def _opens(engine: BlockEngine, vector: Vector, streams: list[tuple[bytes, int]], cuts: list[tuple[int, int]]) -> bool:
    """Whether what was hidden is something else, and the same values again once its masks are taken off."""
    hidden = vector.buffer[:64].tobytes()
    engine.begin_opening([(key, -sign) for key, sign in streams])
    for low, high in cuts:
        engine.open(low, high)
    found = vector.view("vector")
    expected = np.empty_like(found)
    draw(expected, _SEED, 1)
    return hidden != expected.view(np.uint8)[:64].tobytes() and bool(np.array_equal(found, expected))


def _cancel(case: Case, keys: dict[tuple[int, int], bytes], sites: int) -> bool:
    """Whether the masks of all sites add up to nothing, over the first tile, and those of the first site do not."""
    lanes = np.zeros(TILE_BYTES * 8 // case.lane_bits, np.uint32 if case.lane_bits == 32 else np.uint64)
    Masks(_streams(keys, sites, 1)).add(lanes, 0)
    alone = bool(lanes.any())
    for site in range(2, sites + 1):
        Masks(_streams(keys, sites, site)).add(lanes, 0)
    return alone and not lanes.any()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    measure(Case(**json.loads(sys.argv[1])))
