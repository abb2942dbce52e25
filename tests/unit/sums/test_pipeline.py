"""A part of a masked sum, chunk by chunk: the same bits for every chunk size, rail count and overlap."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from secure_fakes import edges_of, random_bytes

from fedhpc.errors import PolicyError
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Codec, Layout, Tensor
from fedhpc.secure.suite import SHA256
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.in_job.pipeline import Pipeline
from fedhpc.sums.in_job.segments import Segment, carried

WEIGHTS = {"w": 0.3, "b": 0.3}

MIXED = [
    Tensor("w", "float32", (600_001,), 12),  # 2.3 blocks, a gap of 12 bytes
    Tensor("n", "int64", (3,)),
    Tensor("loss", "float64", (70_000,), 20),
    Tensor("b", "float32", (5,), 12),
]
OTHER_WIDTHS = [  # a meeting of their own memory: lanes narrower and wider than their values
    Tensor("w", "float32", (600_001,), 4, 16),
    Tensor("n", "int64", (3,)),
    Tensor("loss", "float64", (70_000,), 15, 32),
    Tensor("b", "float32", (5,), 12),
]
SMALL = [Tensor("w", "float32", (5,), 12), Tensor("n", "int64", (1,)), Tensor("b", "float32", (3,), 12)]


class Meeting:
    """Adds lanes of sites that run in threads."""

    def __init__(self, sites: int) -> None:
        self.barrier = threading.Barrier(sites, timeout=60)
        self.lanes: list[Any] = [None] * sites
        self.calls: list[list[tuple[str, int]]] = [[] for _ in range(sites)]


class ThreadExchange:
    """The sum over the sites of a Meeting, as seen from one of them."""

    name = "threads"

    def __init__(self, meeting: Meeting, place: int) -> None:
        self._meeting, self._place = meeting, place
        self.sites = len(meeting.lanes)

    def gather(self, message: bytes) -> list[bytes]:
        raise AssertionError("the pipeline sends no messages")

    def add(self, lanes: Any, owners: tuple[int, ...]) -> None:
        assert lanes.dtype.kind == "u"
        self._meeting.calls[self._place].append((lanes.dtype.name, lanes.size))
        self._meeting.lanes[self._place] = lanes
        self._meeting.barrier.wait()
        total = np.add.reduce(self._meeting.lanes, dtype=lanes.dtype)
        self._meeting.barrier.wait()
        lanes[:] = total


def values_of(layout: Layout, site: int) -> dict[str, Any]:
    values = {}
    for i, tensor in enumerate(layout.tensors):
        raw = random_bytes(4 * tensor.lanes, 10 * site + i).view("<i4")
        values[tensor.name] = raw.astype(np.int64) if tensor.kind == "int64" else (raw / 2.0**20).astype(tensor.kind)
    return values


def whole(layout: Layout) -> list[Segment]:
    return [Segment(0, layout.nbytes, (0,), 0)]


def vector_of(layout: Layout, site: int) -> Vector:
    vector = Vector(layout)
    vector.fill({n: v.reshape(vector.view(n).shape) for n, v in values_of(layout, site).items()})
    return vector


def expected(layout: Layout, sites: int) -> tuple[bytes, bytes]:
    """X with its gaps, and the decoded vector, by plain integers for each lane: no pipeline, no masks."""
    summed, decoded = np.zeros(layout.nbytes, np.uint8), np.zeros(layout.values.nbytes, np.uint8)
    for tensor, offset, values_at in zip(layout.tensors, layout.offsets, layout.values.offsets, strict=True):
        total = np.zeros(tensor.lanes, dtype=np.int64)
        for site in range(sites):
            x = values_of(layout, site)[tensor.name]
            if tensor.kind == "int64":
                total += x
            else:
                total += np.rint(x.astype(np.float64) * (WEIGHTS.get(tensor.name, 1.0) * 2.0**tensor.scale)).astype(
                    np.int64
                )
        stop = offset + tensor.lanes * tensor.lane_bytes
        summed[offset:stop] = total.astype(f"<i{tensor.lane_bytes}").view(np.uint8)
        out = total if tensor.kind == "int64" else (total * 2.0**-tensor.scale).astype(tensor.kind)
        decoded[values_at : values_at + out.nbytes] = out.view(np.uint8)
    return summed.tobytes(), decoded.tobytes()


def run_sites(
    tensors: list[Tensor],
    sites: int,
    *,
    chunk_bytes: int,
    overlap: bool,
    rails: int = 1,
    masked: bool = True,
    partial: bool = False,
) -> tuple[list[bytes], list[bytes], Meeting]:
    """Every site in a thread; gives each site's decoded vector and its Tree(X), and the calls of the exchange."""
    layout = Layout(tensors)
    meeting = Meeting(sites)
    edges = edges_of(sites)

    def site(place: int) -> tuple[bytes, bytes]:
        vector = vector_of(layout, place)
        pipeline = Pipeline(ThreadExchange(meeting, place), chunk_bytes=chunk_bytes, overlap=overlap)
        digests: list[bytes] = []
        for rail in range(rails):
            own = carried(layout.nbytes, [rails] * sites, place, rail)
            streams = edges[place] if masked else ()
            mine = vector
            if partial:
                mine = Vector(layout, (own[0].start, own[-1].stop) if own else (0, 0))
                held = vector.buffer[mine.first : mine.first + mine.buffer.size]
                mine.buffer[:] = held
            digests += pipeline.run(mine, own, lambda: Codec(sites, f"site-{place}", WEIGHTS), streams, Stages())
            if partial:
                held[:] = mine.buffer
        return vector.buffer.tobytes(), SHA256.root(layout.nbytes, digests)

    with ThreadPoolExecutor(sites) as pool:
        results = list(pool.map(site, range(sites)))
    return [r[0] for r in results], [r[1] for r in results], meeting


@pytest.mark.parametrize("tensors", [MIXED, OTHER_WIDTHS], ids=["in place", "other widths"])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk_bytes", [4096, 1 << 18, 1_000_000 // 16 * 16, 1 << 22])
def test_chunk_size_and_overlap_do_not_show(chunk_bytes: int, overlap: bool, tensors: list[Tensor]) -> None:
    summed, decoded = expected(Layout(tensors), 3)
    found, trees, _ = run_sites(tensors, 3, chunk_bytes=chunk_bytes, overlap=overlap)
    assert set(found) == {decoded}
    assert set(trees) == {SHA256.tree(summed)}


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "part"])
@pytest.mark.parametrize("tensors", [MIXED, OTHER_WIDTHS, SMALL], ids=["blocks", "other widths", "less than a block"])
@pytest.mark.parametrize("rails", [1, 2, 3, 4, 5, 9])
def test_rails_do_not_show(tensors: list[Tensor], rails: int, partial: bool) -> None:
    """More rails than blocks leave some without a part; Tree(X) stays what it is. A rail may hold its part only."""
    summed, decoded = expected(Layout(tensors), 2)
    found, trees, _ = run_sites(tensors, 2, chunk_bytes=1 << 18, overlap=False, rails=rails, partial=partial)
    assert set(found) == {decoded}
    assert set(trees) == {SHA256.tree(summed)}


class Ranks:
    """Ranks of sites of any sizes, as threads: each set of owners meets at a place of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meetings: dict[tuple[int, ...], Meeting] = {}

    def exchange(self, site: int) -> Any:
        ranks = self

        class Seat(ThreadExchange):
            def __init__(self) -> None:
                """It has a meeting for each set of owners."""

            def add(self, lanes: Any, owners: tuple[int, ...]) -> None:
                with ranks._lock:
                    meeting = ranks._meetings.setdefault(owners, Meeting(len(owners)))
                ThreadExchange(meeting, site).add(lanes, owners)

        return Seat()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("tensors", [MIXED, OTHER_WIDTHS, SMALL], ids=["blocks", "other widths", "less than a block"])
@pytest.mark.parametrize("sizes", [(2, 3), (1, 4), (3, 1, 2)], ids=str)
def test_sites_of_different_sizes_get_the_same_bits(
    sizes: tuple[int, ...], tensors: list[Tensor], overlap: bool
) -> None:
    """Every rank is a thread that holds its own part only."""
    layout, ranks, edges = Layout(tensors), Ranks(), edges_of(len(sizes))

    def rank(site: int, number: int) -> tuple[int, bytes, list[bytes]]:
        own = carried(layout.nbytes, sizes, site, number)
        mine = Vector(layout, (own[0].start, own[-1].stop) if own else (0, 0))
        mine.buffer[:] = vector_of(layout, site).buffer[mine.first : mine.first + mine.buffer.size]
        pipeline = Pipeline(ranks.exchange(site), chunk_bytes=1 << 18, overlap=overlap)
        digests = pipeline.run(mine, own, lambda: Codec(len(sizes), f"site-{site}", WEIGHTS), edges[site], Stages())
        return site, mine.buffer.tobytes(), digests

    summed, decoded = expected(layout, len(sizes))
    places = [(site, number) for site, count in enumerate(sizes) for number in range(count)]
    with ThreadPoolExecutor(len(places)) as pool:
        found = list(pool.map(lambda place: rank(*place), places))
    for site in range(len(sizes)):
        assert b"".join(values for of, values, _ in found if of == site) == decoded
        assert SHA256.root(
            layout.nbytes, [d for of, _, digests in found if of == site for d in digests]
        ) == SHA256.tree(summed)


@pytest.mark.parametrize("sites", [1, 2, 5])
def test_masks_do_not_show(sites: int) -> None:
    summed, decoded = expected(Layout(SMALL), sites)
    for masked in (True, False):
        found, trees, _ = run_sites(SMALL, sites, chunk_bytes=4096, overlap=False, masked=masked)
        assert set(found) == {decoded}
        assert set(trees) == {SHA256.tree(summed)}


def test_what_the_exchange_carries_is_masked_and_gaps_are_zero() -> None:
    layout = Layout(SMALL)
    seen: list[Any] = []

    class Recorder(ThreadExchange):
        def add(self, lanes: Any, owners: tuple[int, ...]) -> None:
            seen.append(lanes.copy())
            lanes[:] = 0

    vector = vector_of(layout, 0)
    plain = vector_of(layout, 0)
    for piece in layout.pieces(0, layout.nbytes):
        Codec(3, "a", WEIGHTS).encode(piece.values_in(plain.buffer), piece.lanes_in(plain.buffer), piece)
    pipeline = Pipeline(Recorder(Meeting(1), 0), chunk_bytes=4096)
    pipeline.run(vector, whole(layout), lambda: Codec(3, "a", WEIGHTS), edges_of(3)[0], Stages())
    sent = b"".join(s.tobytes() for s in seen)
    assert [s.dtype.itemsize for s in seen] == [4, 8, 4]
    bare = plain.buffer[:20].tobytes() + plain.buffer[32:40].tobytes() + plain.buffer[48:].tobytes()
    assert len(sent) == len(bare) == 5 * 4 + 8 + 3 * 4
    for i in range(0, len(sent), 4):
        assert sent[i : i + 4] != bare[i : i + 4]
    same_width = Layout([Tensor("w", "float32", (5,), 12), Tensor("b", "float32", (3,), 12)])
    seen.clear()
    pipeline.run(vector_of(same_width, 0), whole(same_width), lambda: Codec(3, "a", WEIGHTS), edges_of(3)[0], Stages())
    (run,) = seen  # one message with the gap of 12 bytes inside
    assert run[5:8].tolist() == [0, 0, 0]
    assert np.count_nonzero(run) == 8


def test_a_sum_out_of_range_is_refused() -> None:
    layout = Layout([Tensor("n", "int64", (1000,))])

    class Noise(ThreadExchange):
        def add(self, lanes: Any, owners: tuple[int, ...]) -> None:
            lanes[-1] = 2**63  # −2^63

    for overlap in (False, True):
        pipeline = Pipeline(Noise(Meeting(1), 0), chunk_bytes=4096, overlap=overlap)
        with pytest.raises(PolicyError, match="sum of 'n'"):
            pipeline.run(Vector(layout), whole(layout), lambda: Codec(3, "a"), (), Stages())


def test_an_error_while_hiding_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout([Tensor("n", "int64", (5000,))])
    hide = BlockEngine.hide

    def broken(engine: BlockEngine, low: int, high: int) -> Any:
        if low >= 8192:
            raise MemoryError("no room")
        return hide(engine, low, high)

    monkeypatch.setattr(BlockEngine, "hide", broken)
    for overlap in (False, True):
        meeting = Meeting(1)
        pipeline = Pipeline(ThreadExchange(meeting, 0), chunk_bytes=4096, overlap=overlap)
        with pytest.raises(MemoryError, match="no room"):
            pipeline.run(Vector(layout), whole(layout), lambda: Codec(3, "a"), (), Stages())
        assert len(meeting.calls[0]) <= 2  # nothing unmasked was sent
