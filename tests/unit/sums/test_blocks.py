"""A rank's part of a vector, encoded, tagged, masked and opened in any stretches: against a calculation of its own.

The reference uses whole arrays, raw AES-CTR and Python's integers; nothing of the code under test.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import PATHS, hiding_by
from numpy.typing import NDArray
from secure_fakes import edges_of, key_of, random_bytes

from fedhpc.errors import InternalError, PolicyError
from fedhpc.federation.cores import Cores
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector, parts
from fedhpc.secure.one_pass import Run, Worker, workers
from fedhpc.secure.ring import Codec, Layout, Tensor, lane_bound, scale_for
from fedhpc.secure.suite import SHA256
from fedhpc.secure.tag import Tag
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.sums import blocks
from fedhpc.sums.blocks import BlockEngine, BlockHasher
from fedhpc.sums.streams import Streams

SITES = 3
TAG_KEY = key_of("tag")
ROUNDING = key_of("rounding")
FACTORS = {"w": 0.3, "loss": 0.3}
TENSORS = [
    Tensor("w", "float32", (600_001,), scale_for(8.0, 32, SITES)),  # 2.3 blocks, then a gap of 12 bytes
    Tensor("n", "int64", (3,)),  # a gap of 8
    Tensor("none", "float32", (0,), 12),
    Tensor("loss", "float64", (70_001,), 20),  # a gap of 8
    Tensor("b", "float32", (5,), 12),
]
OTHER_WIDTHS = [
    Tensor("w", "float32", (1_200_001,), scale_for(8.0, 16, SITES), 16),  # 2.3 blocks, then a gap of 14 bytes
    Tensor("n", "int64", (3,), 0, 8),  # a gap of 13
    Tensor("none", "float32", (0,), 12),
    Tensor("loss", "float64", (70_001,), scale_for(8.0, 32, SITES), 32),  # a gap of 12
    Tensor("b", "float32", (5,), 40, 64),
    Tensor("own", "float64", (2,), 12),
]


@pytest.fixture(scope="module", autouse=True, params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything here is true of every way to hide vectors."""
    with hiding_by(request.param):
        yield request.param


ANY = pytest.mark.parametrize("tensors", [TENSORS, OTHER_WIDTHS], ids=["in place", "other widths"])
SMALL = [Tensor("w", "float32", (5,), 12), Tensor("n", "int64", (1,)), Tensor("b", "float32", (), 12)]
Bytes = NDArray[np.uint8]


def prg(key: bytes, count: int) -> Bytes:
    """PRG(key) from byte 0: AES-256-CTR from the zero block."""
    return np.frombuffer(Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(count)), np.uint8)


def in_lanes(layout: Layout, buffer: Bytes, other: Bytes, sign: int) -> None:
    """buffer ± other, lane by lane, gaps left alone."""
    for tensor, at in zip(layout.tensors, layout.offsets, strict=True):
        end = at + tensor.lanes * tensor.lane_bytes
        mine, theirs = (x[at:end].view(f"<u{tensor.lane_bytes}") for x in (buffer, other))
        mine += theirs if sign > 0 else -theirs


def values_of(site: int, tensors: Sequence[Tensor]) -> dict[str, NDArray[np.generic]]:
    draw = np.random.default_rng([site, 7])
    return {
        t.name: draw.integers(-lane_bound(t.bits, SITES), lane_bound(t.bits, SITES), t.shape, endpoint=True)
        if t.kind == "int64"
        else draw.uniform(-8, 8, t.shape).astype(t.kind)
        for t in tensors
    }


def vector_of(site: int, tensors: Sequence[Tensor] = TENSORS) -> Vector:
    vector = Vector(Layout(tensors))
    vector.fill(values_of(site, tensors))
    return vector


def held_of(vector: Vector, part: tuple[int, int]) -> Vector:
    """What a rank has that holds the values of `part` only."""
    held = Vector(vector.layout, part)
    held.buffer[:] = vector.buffer[held.first : held.first + held.buffer.size]
    return held


def encoded(site: int, tensors: Sequence[Tensor] = TENSORS, *, stochastic: bool = False) -> Bytes:
    """x̃ of a site by docs/protocol.md section 3, gaps zero."""
    layout, values = Layout(tensors), values_of(site, tensors)
    buffer = np.zeros(layout.nbytes, np.uint8)
    lane = 0
    for tensor, at in zip(layout.tensors, layout.offsets, strict=True):
        x = np.asarray(values[tensor.name]).reshape(-1)
        if tensor.kind != "int64":
            v = x.astype(np.float64) * (FACTORS.get(tensor.name, 1.0) * 2.0**tensor.scale)
            if stochastic:
                rho = prg(ROUNDING, 4 * (lane + v.size)).view("<u4")[lane:]
                v = np.floor(v) + ((v - np.floor(v)) * 2.0**32 > rho)
            x = np.rint(v).astype(np.int64)
        lanes = x.astype(f"<i{tensor.lane_bytes}")
        assert (lanes == x).all()
        buffer[at : at + lanes.nbytes] = lanes.view(np.uint8)
        lane += tensor.lanes
    return buffer


def hidden_by_hand(site: int, streams: Streams, tensors: Sequence[Tensor] = TENSORS, **how: bool) -> Bytes:
    buffer = encoded(site, tensors, **how)
    for key, sign in streams:
        in_lanes(Layout(tensors), buffer, prg(key, buffer.size), sign)
    return buffer


def tag_by_hand(layout: Layout, ring: Bytes) -> Tag:
    words = prg(TAG_KEY, 4 * layout.lanes).view("<u4")
    narrow = wide = lane = 0
    for tensor, at in zip(layout.tensors, layout.offsets, strict=True):
        lanes = ring[at : at + tensor.lanes * tensor.lane_bytes].view(f"<i{tensor.lane_bytes}")
        r = words[lane : lane + tensor.lanes]
        lane += tensor.lanes
        if tensor.bits == 64:
            wide += sum(int(a) * int(b) for a, b in zip(r, lanes, strict=True))
        else:  # NumPy's products and sums wrap mod 2^64, as φ does
            narrow += int((r.astype("<u8") * lanes.astype("<i8").view("<u8")).sum(dtype="<u8"))
    return Tag(narrow % 2**64, wide % 2**128)


def codec(*, stochastic: bool = False) -> Codec:
    return Codec(SITES, "bern", FACTORS, ROUNDING if stochastic else None)


def blocks_of(part: tuple[int, int]) -> list[tuple[int, int]]:
    return [(at, min(at + TREE_BLOCK_BYTES, part[1])) for at in range(*part, TREE_BLOCK_BYTES)]


def streams_of(site: int, salt: str = "") -> list[tuple[bytes, int]]:
    """The self mask and the edges of site 1..SITES."""
    return [(key_of("self", site, salt), 1), *edges_of(SITES, salt=salt)[site - 1]]


def self_masks(sites: Sequence[int], salt: str = "") -> list[tuple[bytes, int]]:
    return [(key_of("self", u, salt), -1) for u in sites]


@ANY
@pytest.mark.parametrize("stretch_bytes", [TREE_BLOCK_BYTES // 2, 3 * TREE_BLOCK_BYTES + 4080, 1 << 30])
def test_several_cores_make_the_same_of_a_stretch(tensors: list[Tensor], stretch_bytes: int) -> None:
    layout, found = Layout(tensors), []
    for count in (1, 2, 5):
        vector, stages, hidden = vector_of(1, tensors), Stages(), []
        engine = BlockEngine(vector, (0, layout.nbytes), codec, stages, cores=Cores(count))
        engine.begin_hiding(streams_of(1), TAG_KEY)
        cuts = [(at, min(at + stretch_bytes, layout.nbytes)) for at in range(0, layout.nbytes, stretch_bytes)]
        windows = [(cut, engine.hide(*cut)) for cut in cuts]
        hidden = [window.tobytes() for _, window in windows]
        tags = [engine.tag]
        engine.begin_opening([(key, -sign) for key, sign in streams_of(1)], TAG_KEY)
        for cut, window in windows:
            engine.open(*cut, window)
        tags.append(engine.tag)
        found.append((b"".join(hidden), tags, engine.opened_digests(), vector.buffer.tobytes()))
        assert min(stages.masks, stages.digest, stages.decode) > 0
    assert found[0] == found[1] == found[2]
    assert found[0][1][0] == found[0][1][1] == tag_by_hand(layout, encoded(1, tensors))


def hide_all(engine: BlockEngine, seed: int | None = None) -> Bytes:
    """The masked lanes of the part, hidden in order, or in any order by three threads."""
    blocks = blocks_of(engine.part)
    if seed is None:
        windows = [engine.hide(*block) for block in blocks]
    else:
        random.Random(seed).shuffle(blocks)
        with ThreadPoolExecutor(3) as pool:
            windows = list(pool.map(lambda block: engine.hide(*block), blocks))
    by_place = dict(zip(blocks, windows, strict=True))
    return np.concatenate([by_place[block] for block in blocks_of(engine.part)] or [np.zeros(0, np.uint8)])


@pytest.fixture(scope="module", params=[TENSORS, OTHER_WIDTHS], ids=["in place", "other widths"])
def reference(request: pytest.FixtureRequest) -> tuple[list[Tensor], Bytes, Tag]:
    tensors = request.param
    y = hidden_by_hand(1, streams_of(1), tensors)
    return tensors, y, tag_by_hand(Layout(tensors), encoded(1, tensors))


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "part"])
@pytest.mark.parametrize(("rails", "seed"), [(1, None), (1, 5), (2, None), (3, 6), (5, 7)])
def test_any_partition_and_order_of_blocks_gives_the_same_bytes_and_tag(
    rails: int, seed: int | None, partial: bool, reference: tuple[list[Tensor], Bytes, Tag]
) -> None:
    """Also for ranks that hold the values of their own part only."""
    tensors, y, tag = reference
    vector, total, hidden = vector_of(1, tensors), Tag(), []
    for part in parts(vector.layout.nbytes, rails):
        engine = BlockEngine(held_of(vector, part) if partial else vector, part, codec)
        engine.begin_hiding(streams_of(1), TAG_KEY)
        hidden.append(hide_all(engine, seed))
        total = total + engine.tag
    assert np.concatenate(hidden).tobytes() == y.tobytes()
    assert total == tag
    for low, high in vector.layout.geometry.gaps(0, vector.layout.nbytes):
        assert not y[low:high].any()  # gaps are zero under the masks as well


def test_lanes_lie_in_the_memory_of_values_of_their_width_only() -> None:
    vector = vector_of(1)
    engine = BlockEngine(vector, (0, vector.layout.nbytes), codec)
    engine.begin_hiding(streams_of(1), TAG_KEY)
    assert np.shares_memory(engine.hide(0, TREE_BLOCK_BYTES), vector.buffer)
    assert np.shares_memory(engine.memory(), vector.buffer)
    vector = vector_of(1, OTHER_WIDTHS)
    engine = BlockEngine(vector, (0, vector.layout.nbytes), codec)
    engine.begin_hiding(streams_of(1), TAG_KEY)
    window = engine.hide(0, TREE_BLOCK_BYTES)
    assert window.size == TREE_BLOCK_BYTES
    assert not np.shares_memory(window, vector.buffer)
    assert vector.buffer.tobytes() == vector_of(1, OTHER_WIDTHS).buffer.tobytes()
    assert engine.hide(0, TREE_BLOCK_BYTES) is not window  # still in use
    engine.begin_opening(())
    engine.open(0, TREE_BLOCK_BYTES, np.zeros_like(window))
    for call in (engine.memory, lambda: engine.open(0, TREE_BLOCK_BYTES)):
        with pytest.raises(InternalError, match=r"as wide as|of their own"):
            call()


def test_few_windows_are_enough() -> None:
    layout = Layout([Tensor("x", "float64", (5 * TREE_BLOCK_BYTES // 4,), 4, 32)])
    engine = BlockEngine(Vector(layout), (0, layout.nbytes), codec)
    engine.begin_hiding(())
    engine.begin_opening(())
    seen = set()
    for block in blocks_of(engine.part):
        window = engine.hide(*block)
        seen.add(window.ctypes.data)
        engine.open(*block, window)
    assert len(seen) == 1


@ANY
def test_stochastic_rounding_takes_the_words_of_the_lanes(tensors: list[Tensor]) -> None:
    vector = vector_of(2, tensors)
    hidden = []
    for part in parts(vector.layout.nbytes, 2):
        engine = BlockEngine(vector, part, lambda: codec(stochastic=True))
        engine.begin_hiding(streams_of(2), TAG_KEY)
        hidden.append(hide_all(engine, 3))
    found = np.concatenate(hidden).tobytes()
    assert found == hidden_by_hand(2, streams_of(2), tensors, stochastic=True).tobytes()
    assert found != hidden_by_hand(2, streams_of(2), tensors).tobytes()


def test_a_failed_attempt_is_taken_back_exactly_and_nothing_is_encoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, int] = {}

    def counting(*given: Any) -> Callable[[], Worker]:
        """Workers that count how often each piece comes with values."""
        make = workers(*given)

        def new() -> Worker:
            worker = make()
            encode = worker.encode

            def count(runs: Sequence[Run]) -> None:
                for run in runs:
                    seen[run.piece.start] = seen.get(run.piece.start, 0) + (run.values is not None)
                encode(runs)

            worker.encode = count  # type: ignore[method-assign]
            return worker

        return new

    monkeypatch.setattr(blocks, "workers", counting)
    vector = vector_of(1)
    engine = BlockEngine(vector, (0, vector.layout.nbytes), codec)
    blocks_ = blocks_of(engine.part)
    engine.begin_hiding(streams_of(1, "first"), key_of("first tag"))
    for block in blocks_[1:3]:  # the attempt ended in the middle of the upload
        engine.hide(*block)
    engine.begin_hiding(streams_of(1, "second"), key_of("second tag"))
    hide_all(engine, 1)
    engine.begin_hiding(streams_of(1), TAG_KEY)
    engine.begin_hiding(streams_of(1), TAG_KEY)  # an attempt that ended before its first block
    hide_all(engine)
    assert vector.buffer.tobytes() == hidden_by_hand(1, streams_of(1)).tobytes()
    assert engine.tag == tag_by_hand(vector.layout, encoded(1))
    assert set(seen.values()) == {1}
    engine.begin_hiding((), TAG_KEY)
    assert vector.buffer.tobytes() == encoded(1).tobytes()


def test_a_failed_attempt_in_windows_leaves_the_values() -> None:
    vector = vector_of(1, OTHER_WIDTHS)
    engine = BlockEngine(vector, (0, vector.layout.nbytes), codec)
    for salt in ("first", ""):
        engine.begin_hiding(streams_of(1, salt), TAG_KEY)
        found = hide_all(engine, 2)
    assert found.tobytes() == hidden_by_hand(1, streams_of(1), OTHER_WIDTHS).tobytes()
    assert engine.tag == tag_by_hand(vector.layout, encoded(1, OTHER_WIDTHS))


def open_all(
    y: Bytes, tensors: Sequence[Tensor], rails: int, streams: Streams, *, partial: bool
) -> tuple[Vector, Tag, list[bytes]]:
    """The opened sum, its tag and the digests of X, from parts of `rails` ranks that each received their bytes of y."""
    vector, tag, digests = vector_of(1, tensors), Tag(), []
    for part in parts(vector.layout.nbytes, rails):
        mine = held_of(vector, part) if partial else vector
        engine = BlockEngine(mine, part, codec)
        engine.begin_hiding(streams_of(1), TAG_KEY)
        hide_all(engine)  # what lies in the memory before the sum comes
        engine.begin_opening(streams, TAG_KEY)
        blocks = blocks_of(part)
        random.Random(rails).shuffle(blocks)
        windows: list[Bytes | None] = []
        for low, high in blocks:
            shared = mine.shared(low, high)
            windows.append(y[low:high].copy() if shared is None else None)
            if shared is not None:
                shared[:] = y[low:high]
        with ThreadPoolExecutor(3) as pool:
            opened = pool.map(lambda block, window, engine=engine: engine.open(*block, window), blocks, windows)  # type: ignore[misc]
            list(opened)
        tag = tag + engine.tag
        digests += engine.opened_digests()
        if partial:
            vector.buffer[mine.first : mine.first + mine.buffer.size] = mine.buffer
    return vector, tag, digests


def sum_by_hand(sites: Sequence[int], tensors: Sequence[Tensor]) -> tuple[Bytes, dict[str, NDArray[np.generic]]]:
    """(X, decoded) over `sites`: integers added, then scaled back."""
    layout = Layout(tensors)
    ring, decoded = np.zeros(layout.nbytes, np.uint8), {}
    for tensor, at in zip(layout.tensors, layout.offsets, strict=True):
        end = at + tensor.lanes * tensor.lane_bytes
        total = sum(encoded(u, tensors)[at:end].view(f"<i{tensor.lane_bytes}").astype(np.int64) for u in sites)
        total = np.asarray(total, np.int64)
        ring[at:end] = total.astype(f"<i{tensor.lane_bytes}").view(np.uint8)
        back = total if tensor.kind == "int64" else (total.astype(np.float64) * 2.0**-tensor.scale).astype(tensor.kind)
        decoded[tensor.name] = back.reshape(tensor.shape)
    return ring, decoded


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "part"])
@pytest.mark.parametrize("tensors", [TENSORS, OTHER_WIDTHS, SMALL], ids=["blocks", "other widths", "small"])
@pytest.mark.parametrize("lost", [(), (2,)])
def test_opening_gives_the_sum_over_who_is_left(tensors: list[Tensor], lost: tuple[int, ...], partial: bool) -> None:
    layout = Layout(tensors)
    there = [u for u in range(1, SITES + 1) if u not in lost]
    y = np.zeros(layout.nbytes, np.uint8)
    for u in there:
        in_lanes(layout, y, hidden_by_hand(u, streams_of(u), tensors), 1)
    streams = self_masks(there)
    for w, g in itertools.product(there, lost):  # the masks towards who was lost
        key = next(k for k, _ in edges_of(SITES)[w - 1] if k in {k for k, _ in edges_of(SITES)[g - 1]})
        streams.append((key, -1 if g > w else 1))
    for low, high in layout.geometry.gaps(0, layout.nbytes):
        y[low:high] = 255  # whatever the relay puts into the gaps
    ring, decoded = sum_by_hand(there, tensors)
    expected_tag = tag_by_hand(layout, ring)
    for rails in (1, 3):
        vector, tag, digests = open_all(y, tensors, rails, streams, partial=partial)
        for name, expected in decoded.items():
            got = vector.view(name)
            assert got.dtype == expected.dtype
            assert got.tobytes() == expected.tobytes(), name
        for low, high in layout.values.gaps(0, layout.values.nbytes):
            assert not vector.buffer[low:high].any()
        assert tag == expected_tag
        assert digests == [hashlib.sha256(ring[low:high]).digest() for low, high in blocks_of((0, layout.nbytes))]


def test_a_sum_beyond_what_the_sites_can_hold_is_refused() -> None:
    vector = vector_of(1, SMALL)
    engine = BlockEngine(vector, (0, vector.layout.nbytes), codec)
    engine.begin_opening((), TAG_KEY)
    vector.buffer[:] = 0
    vector.view("w").view("<i4")[2] = lane_bound(32, SITES) * SITES
    engine.open(0, vector.layout.nbytes)
    assert vector.view("w")[2] == np.float32(lane_bound(32, SITES) * SITES * 2.0**-12)
    engine.begin_opening((), TAG_KEY)
    vector.view("w").view("<i4")[2] = lane_bound(32, SITES) * SITES + 1
    with pytest.raises(PolicyError, match="'w' is beyond what 3 sites can hold"):
        engine.open(0, vector.layout.nbytes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_small_vectors_of_any_layout(data: st.DataObject) -> None:
    kinds = st.sampled_from(["float32", "float64", "int64"])
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    widths = st.sampled_from([0, 0, 0, 8, 16, 32, 64])
    drawn = data.draw(st.lists(st.tuples(kinds, shapes, widths), min_size=1, max_size=5))
    tensors = [
        Tensor(f"t{i}", k, s, 0 if k == "int64" else scale_for(8.0, b or 32, SITES), b)
        for i, (k, s, b) in enumerate(drawn)
    ]
    layout = Layout(tensors)
    if layout.nbytes == 0:
        return
    attempts = data.draw(st.lists(st.text("ab", max_size=3), min_size=1, max_size=3))
    vector = vector_of(1, tensors)
    engine = BlockEngine(vector, (0, layout.nbytes), codec)
    for salt in attempts:
        engine.begin_hiding(streams_of(1, salt), TAG_KEY)
        window = engine.hide(0, layout.nbytes)
        assert window.tobytes() == hidden_by_hand(1, streams_of(1, salt), tensors).tobytes()
        assert engine.tag == tag_by_hand(layout, encoded(1, tensors))
    engine.begin_opening([(key, -sign) for key, sign in streams_of(1, attempts[-1])], TAG_KEY)
    engine.open(0, layout.nbytes, window)
    ring, decoded = sum_by_hand([1], tensors)
    assert {name: view.tobytes() for name, view in vector.views().items()} == {
        n: v.tobytes() for n, v in decoded.items()
    }
    assert engine.opened_digests() == [hashlib.sha256(ring).digest()]


def test_stretches_may_end_anywhere() -> None:
    """Stretches of any multiple of 16 bytes, as chunks are."""
    layout = Layout(TENSORS)
    ring, decoded = sum_by_hand([1], TENSORS)
    vector, stages = vector_of(1), Stages()
    engine = BlockEngine(vector, (0, layout.nbytes), codec, stages)
    engine.begin_hiding(())
    engine.begin_opening(())
    step = TREE_BLOCK_BYTES // 4 * 5 + 4080
    for low in range(0, layout.nbytes, step):
        high = min(low + step, layout.nbytes)
        engine.open(low, high, engine.hide(low, high))
    assert engine.opened_digests() == [hashlib.sha256(ring[a:b]).digest() for a, b in blocks_of((0, layout.nbytes))]
    assert {n: v.tobytes() for n, v in vector.views().items()} == {n: v.tobytes() for n, v in decoded.items()}
    assert engine.tag == Tag()  # no tags without a key


def test_the_tree_of_the_parts_is_that_of_the_whole() -> None:
    y = random_bytes(3 * TREE_BLOCK_BYTES + 16, 1)
    layout = Layout([Tensor("n", "int64", (y.size // 8,))])
    joined = []
    for part in parts(y.size, 2):
        vector = Vector(layout)
        vector.buffer[:] = y & 0x0F  # every lane far below the bound of its kind
        engine = BlockEngine(vector, part, codec)
        engine.begin_opening((), TAG_KEY)
        for block in reversed(blocks_of(part)):
            engine.open(*block)
        joined += engine.opened_digests()
    whole = vector.buffer.tobytes()
    assert SHA256.root(len(whole), [b"".join(joined)]) == SHA256.tree(whole)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3 * TREE_BLOCK_BYTES),
    st.lists(st.integers(0, 3 * TREE_BLOCK_BYTES), max_size=6),
    st.lists(st.integers(0, 15), max_size=7),
)
def test_block_hasher(size: int, stops: list[int], gaps: list[int]) -> None:
    """Any cuts, with gaps of zeros before them that nobody adds."""
    data = random_bytes(3 * TREE_BLOCK_BYTES, 1)[:size].copy()
    hasher = BlockHasher(SHA256)
    at = 0
    for stop, gap in itertools.zip_longest(sorted(min(s, size) for s in stops), gaps[: len(stops)], fillvalue=0):
        end = max(at, stop - gap, (stop - 1) // TREE_BLOCK_BYTES * TREE_BLOCK_BYTES + 1)  # no block is all gap
        data[end:stop] = 0
        hasher.add(at, data[at:end])
        at = max(at, stop)
    hasher.add(at, data[at:])
    assert SHA256.root(size, hasher.finish(size)) == SHA256.tree(data)
    assert BlockHasher(SHA256).finish(size) == []  # a rail without a part
