"""Every rank of `fedhpc bench sum` runs this; rank 0 prints the result.

Data are drawn per repeat from seeds of the operating system, so every rank can draw every site's data again and check
the sum without having been told it. Values are small enough that their integer sum is exact in the decoded float.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
from cryptography.hazmat.backends.openssl import backend
from numpy.typing import NDArray

from fedhpc.app.join import overlap_over
from fedhpc.bench.memory import clear_peak, peak_bytes, resident_bytes
from fedhpc.bench.rehearsal import Stage, set_stage
from fedhpc.federation.party import Opened, SumKind, SumPlan
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector, parts
from fedhpc.mpi import world as mpi_world
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.suite import Suite
from fedhpc.sums.blocks import BlockHasher
from fedhpc.sums.in_job.segments import Segment, carried

TILE = 1 << 18  # values drawn at a time
_VALUE_BITS = 17  # |x̃| ≤ 2^17, so the sum of up to 128 sites is exact in float32
SCALE = 20
_STAGES = ("encode", "masks", "wire", "digest", "decode", "agree", "ledger", "share")


@dataclass(frozen=True)
class Case:
    """What is measured."""

    ranks: list[int]  # of each site
    params: int
    lane_bits: int
    repeat: int
    degree: int
    chunk_bytes: int
    overlap: str
    rails: int | str
    secure: str = ""  # further keys of [secure], lines


def measure(case: Case) -> None:
    """Run the case; rank 0 prints one JSON object."""
    stage = set_stage(case.ranks, case.rails)
    assert stage.place.rails is not None
    uneven = len(set(case.ranks)) > 1
    even = _even_stage(case, stage) if uneven else None
    baseline = resident_bytes()
    vector = _vector(case, stage)
    of_even = None if even is None else _vector(case, even)
    overlap, _ = overlap_over(stage.cores, case.overlap)
    repeats, evenly = [], []
    for number in range(1, case.repeat + 1):
        repeats.append(_repeat(case, stage, vector, number))
        if even is not None and of_even is not None:
            evenly.append(_repeat(case, even, of_even, number))
        if uneven:
            stage.world.group.await_bytes(b"done")  # ranks that have no part in it sleep
    baseline = max(over_job(stage, baseline))
    if stage.world.group.rank:
        return
    middle = {name: statistics.median(getattr(r, name) for r in repeats) for name in _Repeat.times}
    peak = max(r.peak_bytes for r in repeats)
    result = {
        **middle,
        **_ratios(middle),
        "minima": {name: min(getattr(r, name) for r in repeats) for name in _Repeat.times},
        **_over_even(middle["masked_s"], evenly),
        "verified": all(r.verified for r in [*repeats, *evenly]),
        "bytes_up_per_site": repeats[0].bytes_up,
        "peak_rss_bytes": peak,
        "baseline_rss_bytes": baseline,
        "extra_bytes": peak - baseline - vector.buffer.nbytes,
        "stages_s": {name: statistics.median(r.stages[name] for r in repeats) for name in _STAGES},
        "params": case.params,
        "sites": len(case.ranks),
        "ranks": case.ranks,
        "rails": stage.place.rails.counts,
        "lane_bits": case.lane_bits,
        "degree": case.degree,
        "chunk_bytes": case.chunk_bytes,
        "overlap": overlap,
        "threads": stage.cores.count,
        "repeat": case.repeat,
        "repeats": [r.recorded() for r in repeats],
        "exchange": "mpi",
        "versions": versions(),
    }
    print(json.dumps(result))


def _ratios(middle: Mapping[str, float]) -> dict[str, float]:
    """Over one plain allreduce, and over one in chunks as a masked sum has them; processor time of all ranks."""
    return {
        "masked_over_plain": middle["masked_s"] / middle["plain_s"],
        "masked_over_plain_chunked": middle["masked_s"] / middle["plain_chunked_s"],
        "cpu_masked_over_plain": middle["cpu_masked_s"] / middle["cpu_plain_s"],
        "cpu_real_round_over_plain": middle["cpu_real_round_s"] / middle["cpu_plain_s"],
        "cpu_real_round_over_plain_chunked": middle["cpu_real_round_s"] / middle["cpu_plain_chunked_s"],
    }


def _vector(case: Case, stage: Stage) -> Vector:
    """What this rank holds: its part, as of a model's update."""
    kind = "float32" if case.lane_bits == 32 else "float64"
    layout = Layout([Tensor("vector", kind, (case.params,), SCALE)], salted=stage.sites > 1)
    place = stage.place
    assert place.rails is not None
    bounds = parts(layout.nbytes, place.rails.counts[place.number - 1])
    return Vector(layout, bounds[place.site.rank] if place.site.rank < len(bounds) else (0, 0))


def _even_stage(case: Case, stage: Stage) -> Stage | None:
    """The same sites with as many ranks each as the smallest has; None on ranks that are left over."""
    fewest = min(case.ranks)
    world = mpi_world.some_ranks(stage.world, joins=stage.place.site.rank < fewest)
    return None if world is None else set_stage([fewest] * len(case.ranks), case.rails, world)


def _over_even(masked_s: float, evenly: Sequence[_Repeat]) -> dict[str, float]:
    """What sites of different rank counts cost; empty where all have the same."""
    if not evenly:
        return {}
    even_s = statistics.median(r.masked_s for r in evenly)
    return {"even_masked_s": even_s, "sum_uneven_over_even": masked_s / even_s}


@dataclass(frozen=True)
class _Sum:
    """One ring sum, with masks or without."""

    session: Session
    opened: Opened
    wall_s: float  # of the slowest rank
    without_hash_s: float  # the same without the hash of the sum
    cpu_s: float  # of all ranks
    hash_cpu_s: float  # of all ranks, what the hash of the sum takes of it; 0 where it was not measured
    peaks: tuple[int, ...]  # bytes, of each rank
    right: bool


@dataclass(frozen=True)
class _Repeat:
    """Two plain sums, one unmasked and one masked of fresh data with fresh keys.

    Seconds (`…_s`) are of the slowest rank, processor seconds (`cpu_…_s`) of all ranks.
    """

    times: ClassVar[tuple[str, ...]] = (
        *("plain_s", "plain_chunked_s", "unmasked_s", "masked_s", "compare_results_s"),
        *("cpu_plain_s", "cpu_plain_chunked_s", "cpu_masked_s", "cpu_real_round_s"),
    )

    plain_s: float  # one allreduce
    plain_chunked_s: float  # in chunks as a masked sum has them: 16 MiB unless another size is asked for
    unmasked_s: float
    masked_s: float
    compare_results_s: float  # M6
    cpu_plain_s: float
    cpu_plain_chunked_s: float
    cpu_masked_s: float  # without the hash of the sum, as masked_s
    cpu_real_round_s: float  # with it: what a round takes
    verified: bool
    bytes_up: int
    peak_bytes: int  # of the masked sum, at the rank with the most
    stages: dict[str, float]  # of the masked sum, mean over the ranks
    whole: dict[str, float]  # the masked sum with the hash of its result, over all ranks; bench/record.py

    def recorded(self) -> dict[str, Any]:
        """As a record has it."""
        times = {name: getattr(self, name) for name in self.times}
        return {**self.whole, "verified": self.verified, **times, "stages_s": self.stages}


def _repeat(case: Case, stage: Stage, vector: Vector, number: int) -> _Repeat:
    """Every second repeat goes the other way round: what runs after what must not decide."""
    group = stage.world.group
    seed = group.broadcast_bytes(os.urandom(8) if group.rank == 0 else None)
    values = vector.held()["vector"]
    first = vector.first // values.itemsize
    draw(values, seed, stage.place.number, first)

    def ring_sum(mode: str) -> _Sum:
        draw(values, seed, stage.place.number, first)
        party = stage.party(mode, lane_bits=case.lane_bits, degree=case.degree, secure=case.secure)
        session = stage.session(party, chunk_bytes=case.chunk_bytes, overlap=case.overlap)
        plan = SumPlan(number, f"bench {number}", SumKind.STATISTIC, bytes(32), by_range=True)
        clear_peak()
        stage.world.group.barrier()
        begun, spent = time.perf_counter(), time.process_time()
        opened = session.open(vector, plan)
        wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - spent
        peak = peak_bytes()
        suite = party.suite_of(plan)
        hash_cpu_s = _hash_cpu_s(stage, vector, suite) if mode == "pairwise" and suite is not None else 0.0
        # The hash of the sum is for M6, not for the sum, and a plain allreduce has none: it stands beside, in `digest`.
        ranks = over_job(stage, [wall_s, wall_s - opened.stages.digest, cpu_s, hash_cpu_s, peak])
        walls, without_hash, cpus, hashing, peaks = zip(*ranks, strict=True)
        right = _verify(stage, values, seed, first)
        return _Sum(session, opened, max(walls), max(without_hash), sum(cpus), sum(hashing), peaks, right)

    def plain(chunk_bytes: int | None) -> _Cost:
        return _cost(stage, lambda: _plain(stage, vector, chunk_bytes))

    if number % 2:
        one, chunked, unmasked = plain(None), plain(case.chunk_bytes), ring_sum("off")
        masked = ring_sum("pairwise")
    else:
        masked, unmasked = ring_sum("pairwise"), ring_sum("off")
        chunked, one = plain(case.chunk_bytes), plain(None)
    return _figures(stage, one, chunked, unmasked, masked)


def _figures(stage: Stage, plain: _Cost, chunked: _Cost, unmasked: _Sum, masked: _Sum) -> _Repeat:
    """Of one repeat. Collective: sites compare the masked sum here."""
    opened = masked.opened
    settled = _cost(stage, lambda: masked.session.settle(opened, masked.session.tensors_tree))
    return _Repeat(
        plain_s=plain.wall_s,
        plain_chunked_s=chunked.wall_s,
        unmasked_s=unmasked.without_hash_s,
        masked_s=masked.without_hash_s,
        compare_results_s=settled.wall_s,
        cpu_plain_s=plain.cpu_s,
        cpu_plain_chunked_s=chunked.cpu_s,
        cpu_masked_s=masked.cpu_s - masked.hash_cpu_s,
        cpu_real_round_s=masked.cpu_s,
        verified=unmasked.right and masked.right,
        bytes_up=opened.bytes_up,
        peak_bytes=max(masked.peaks),
        stages={name: statistics.fmean(over_job(stage, getattr(opened.stages, name))) for name in _STAGES},
        whole={
            "wall_s": masked.wall_s,
            "cpu_s": masked.cpu_s,
            "peak_bytes": sum(masked.peaks),
            "unmasked_cpu_s": unmasked.cpu_s,
        },
    )


def draw(out: NDArray[Any], seed: bytes, number: int, first: int = 0) -> None:
    """Fill `out` [n] with site `number`'s values from value `first` on: multiples of 2^-20 in [-1/8, 1/8)."""
    for tile, start, stop in _tiles(first, out.size):
        piece = out[start:stop]
        drawn = integers(seed, number, tile, TILE)[first + start - tile * TILE :][: piece.size]
        np.multiply(drawn, out.dtype.type(2.0**-SCALE), out=piece)


def _tiles(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(tile, start, stop): which tile has values first + start .. first + stop."""
    start = 0
    while start < count:
        tile = (first + start) // TILE
        stop = min(count, (tile + 1) * TILE - first)
        yield tile, start, stop
        start = stop


def integers(seed: bytes, number: int, tile: int, count: int) -> NDArray[np.int32]:
    """The whole numbers behind one tile [count], -2^17 ≤ x < 2^17."""
    generator = np.random.Generator(np.random.SFC64([int.from_bytes(seed, "little"), number, tile]))
    # Whole words of the generator, two numbers in each: any other range would be drawn number by number.
    drawn = generator.integers(0, (1 << 64) - 1, -(-count // 2), dtype=np.uint64, endpoint=True).view(np.int32)
    drawn >>= 31 - _VALUE_BITS  # with its sign
    return drawn[:count]


def is_sum(found: NDArray[Any], seed: bytes, numbers: Iterable[int], tile: int, skip: int = 0) -> bool:
    """Whether `found` [n] is 2^-20 times the sum of these sites' numbers in one tile, from its number `skip` on."""
    total = np.zeros(found.size, dtype=np.int32)
    for number in numbers:
        total += integers(seed, number, tile, skip + found.size)[skip:]
    # Both factors and the product are exact in float32 for as many sites as _VALUE_BITS allows; a NaN equals nothing.
    return bool(np.array_equal(found, np.multiply(total, 2.0**-SCALE, dtype=found.dtype)))


def _plain(stage: Stage, vector: Vector, chunk_bytes: int | None) -> None:
    """An in-place allreduce of the floats over the sites, each rank its part; whole, or in chunks of so many bytes."""
    kind = vector.layout.tensors[0].kind
    place = stage.place
    assert place.rails is not None
    for segment in sorted(_carried(stage, vector), key=lambda segment: (segment.turn, segment.start)):
        step = chunk_bytes or segment.stop - segment.start
        for start in range(segment.start, segment.stop, step):
            held = vector.buffer[start - vector.first : min(start + step, segment.stop) - vector.first]
            place.rails.group(segment.owners).sum(held.view(kind))


def _carried(stage: Stage, vector: Vector) -> Sequence[Segment]:
    """The segments that this rank adds with the other sites."""
    place = stage.place
    assert place.rails is not None
    return carried(vector.layout.nbytes, place.rails.counts, place.number - 1, place.site.rank)


def _hash_cpu_s(stage: Stage, vector: Vector, suite: Suite) -> float:
    """Processor seconds of the hash of this rank's blocks of a sum, done once more: inside a sum it is not apart."""
    spent, hasher = time.process_time(), BlockHasher(suite)
    for segment in _carried(stage, vector):
        hasher.add(segment.start, vector.buffer[segment.start - vector.first : segment.stop - vector.first])
    return time.process_time() - spent


def _verify(stage: Stage, values: NDArray[Any], seed: bytes, first: int) -> bool:
    """Whether every value is 2^-20 times the integer sum of all sites' numbers, drawn again, at every rank.

    Ranks that hold the same range of the sum must have the same bytes, and share the drawing.
    """
    me = stage.world.group.rank
    held = over_job(stage, [first, values.size, hashlib.sha256(values.view(np.uint8).data).hexdigest()])
    alike = [rank for rank, (*place, _) in enumerate(held) if place == held[me][:2]]
    good = all(held[rank] == held[me] for rank in alike)
    for tile, start, stop in _tiles(first, values.size):
        if good and tile % len(alike) == alike.index(me):
            good = is_sum(values[start:stop], seed, range(1, stage.sites + 1), tile, first + start - tile * TILE)
    return all(over_job(stage, good))


@dataclass(frozen=True)
class _Cost:
    """What something took."""

    wall_s: float  # of the slowest rank
    cpu_s: float  # of all ranks


def _cost(stage: Stage, action: Callable[[], None]) -> _Cost:
    """Until the slowest rank is done, all having started together. Collective."""
    stage.world.group.barrier()
    begun, spent = time.perf_counter(), time.process_time()
    action()
    mine = [time.perf_counter() - begun, time.process_time() - spent]
    walls, cpus = zip(*over_job(stage, mine), strict=True)
    return _Cost(max(walls), sum(cpus))


def over_job(stage: Stage, value: Any) -> list[Any]:
    """This value as every rank has it."""
    return [json.loads(b) for b in stage.world.group.gather_bytes(json.dumps(value).encode())]


def versions() -> dict[str, str]:
    """What was measured with."""
    return {
        "fedhpc": version("fedhpc"),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "cryptography": version("cryptography"),
        "openssl": backend.openssl_version_text(),
        "mpi4py": version("mpi4py"),
        "mpi": mpi_world.library_version(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }


if __name__ == "__main__":
    measure(Case(**json.loads(sys.argv[1])))
