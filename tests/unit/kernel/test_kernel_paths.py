"""Every compiled path gives what the Python path gives, bit for bit, and refuses at the same lane."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from conftest import BUILT, HERE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhpc.errors import FedhpcError
from fedhpc.kernel.calls import DECODE_TILE, KINDS, Kernel, Keys, Place, Span
from fedhpc.secure.ledger import fingerprint_block
from fedhpc.secure.masks import SLACK_BYTES, Keystream, Masks
from fedhpc.secure.ring import Codec, Layout, Piece, Tensor, lane_bound
from fedhpc.secure.tag import Tag, Tagger

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.one_of(st.integers(0, 40), st.integers(450, 1100))
KEY = st.binary(min_size=32, max_size=32)


@dataclass(frozen=True)
class Case:
    """One tensor behind another one, from a lane on: numbers, a piece, and what encodes, masks and tags it."""

    sites: int
    piece: Piece
    values: np.ndarray[Any, Any]
    factor: float
    codec: Codec
    edges: list[tuple[bytes, int]]
    tag_key: bytes
    rounding: bytes | None
    in_place: bool
    shift: int  # bytes by which memory is not aligned

    def room(self, count: int, kind: str) -> np.ndarray[Any, Any]:
        """`count` zeros, C-contiguous, at an odd address where `shift` is odd."""
        raw = np.zeros(count * np.dtype(kind).itemsize + self.shift, dtype=np.uint8)
        return raw[self.shift :].view(kind)

    def keys(self, kernel: Kernel, sign: int = 1) -> Keys:
        return Keys(
            kernel.streams([(key, sign * s) for key, s in self.edges]) if self.edges else None,
            kernel.streams([(self.tag_key, 1)]),
            None if self.rounding is None else kernel.streams([(self.rounding, 1)]),
        )

    @property
    def place(self) -> Place:
        return Place(self.piece.start, self.piece.lane_number)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind, bits = draw(st.sampled_from(KINDS)), draw(st.sampled_from([8, 16, 32, 64]))
    whole = kind == "int64"
    scale = 0 if whole else draw(st.sampled_from([0, bits - 5, -3, 130, -140]))
    weight = 1.0 if whole else draw(st.sampled_from([1.0, 1.0, 0.5, 0.3, 2.0**-30]))
    before, count, sites = draw(st.integers(0, 30)), draw(SIZES), draw(st.integers(1, 5))
    layout = Layout([Tensor("before", "float32", (before,)), Tensor("x", kind, (count,), scale, bits)])
    first = layout.offsets[1] + 16 * draw(st.integers(0, 3))
    found = [p for p in layout.pieces(min(first, layout.nbytes), layout.nbytes) if p.tensor.name == "x"]
    piece = found[0] if found else Piece(layout.tensors[1], 0, 0, 0, before, 0, 0)
    count = (piece.stop - piece.start) // (bits // 8)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rounding = draw(st.none() | KEY)
    factor = math.ldexp(weight, scale)
    bound = lane_bound(bits, sites)
    wide = draw(st.booleans())  # most of the room, or halves and small numbers
    if whole:
        values = rng.integers(-bound if wide else -9, (bound if wide else 9) + 1, count)
    else:
        lanes = rng.uniform(-1, 1, count) * bound * 0.98 if wide else rng.integers(-9, 9, count) / 2
        most = float(np.finfo(kind).max) / 2
        values = np.clip(lanes / factor, -most, most).astype(kind)
    edges = draw(st.lists(st.tuples(KEY, st.sampled_from([1, -1])), max_size=4))
    in_place = draw(st.booleans()) and values.itemsize * 8 == bits
    codec = Codec(sites, "site", {"x": weight}, rounding)
    shift = draw(st.integers(0, 7))
    return Case(sites, piece, values, factor, codec, edges, draw(KEY), rounding, in_place, shift)


def plain_of(case: Case) -> tuple[np.ndarray[Any, Any], Tag]:
    """The lanes and their tag, by the Python path."""
    tensor = case.piece.tensor
    lanes = np.zeros(case.values.size, f"<u{tensor.lane_bytes}")
    case.codec.encode(case.values, lanes, case.piece)
    window = np.zeros(case.piece.stop - case.piece.start, np.uint8)
    window[:] = lanes.view(np.uint8)
    return lanes, Tagger(case.tag_key).of(window, [case.piece] if lanes.size else [], case.piece.start)


@MANY
@given(case=cases())
def test_lanes_and_tags_are_those_of_the_python_path(kernel: Kernel, case: Case) -> None:
    plain, tag = plain_of(case)
    masked = plain.copy()
    Masks(case.edges).add(masked, case.piece.start)
    lanes = case.room(plain.size, plain.dtype.str)
    values = case.room(plain.size, case.values.dtype.str)
    if case.in_place:
        values = lanes.view(values.dtype)
    values[:] = case.values
    assert Tag(*kernel.hide(values, lanes, case.factor, case.place, case.keys(kernel))) == tag
    assert np.array_equal(lanes, masked)
    assert Tag(*kernel.open(lanes, case.place, case.keys(kernel, sign=-1))) == tag
    assert np.array_equal(lanes, plain)
    assert kernel.hide(None, lanes, 1.0, case.place, Keys(case.keys(kernel).masks)) == (0, 0)  # a second attempt
    assert np.array_equal(lanes, masked)


@MANY
@given(case=cases(), end=st.sampled_from(["within", "low", "high"]), where=st.floats(0, 1))
def test_sums_are_decoded_or_refused_as_by_the_python_path(kernel: Kernel, case: Case, end: str, where: float) -> None:
    plain, _ = plain_of(case)
    tensor, limit = case.piece.tensor, lane_bound(case.piece.tensor.bits, case.sites) * case.sites
    signed = plain.view(f"<i{tensor.lane_bytes}")
    if signed.size and end != "within":
        signed[int(where * (signed.size - 1))] = -limit - 1 if end == "low" else limit
    expected, values = np.full(plain.size, 7, tensor.kind), case.room(plain.size, tensor.kind)
    lanes = case.room(plain.size, plain.dtype.str)
    values[:], refused = 7, False
    if case.in_place:
        expected, lanes = plain.view(tensor.kind), values.view(plain.dtype)
    lanes[:] = plain
    try:
        case.codec.decode(plain, expected, case.piece)
    except FedhpcError:
        refused = True
    quantum = math.ldexp(1.0, -tensor.scale)
    assert kernel.decode(lanes, values, quantum, limit) == (0 if refused else plain.size)
    assert values.tobytes() == expected.tobytes()


def test_a_sum_is_refused_at_the_tile_at_which_the_python_path_refuses_it(kernel: Kernel) -> None:
    layout = Layout([Tensor("x", "float32", (2 * DECODE_TILE + 100,), 3)])
    (piece,) = layout.pieces(0, layout.nbytes)
    lanes = np.arange(layout.tensors[0].lanes, dtype="<i4")
    lanes[-1] = -(2**31)
    for pair in (lanes.copy(), lanes.copy()), (lanes.copy(), np.zeros(lanes.size, "<i4")):
        theirs, ours = pair[0].copy().view("<u4"), pair[1].copy().view("<f4")
        if not pair[1].any():  # apart
            done = kernel.decode(theirs, ours, 0.125, 2**31 - 1)
            expected = np.zeros(lanes.size, "<f4")
            source = theirs
        else:
            done = kernel.decode(ours.view("<u4"), ours, 0.125, 2**31 - 1)
            expected = theirs.view("<f4")
            source = theirs
        with pytest.raises(FedhpcError, match="beyond what 1 sites can hold"):
            Codec(1, "site").decode(source, expected, piece)
        assert done == 2 * DECODE_TILE
        assert ours.tobytes() == expected.tobytes()


@MANY
@given(sizes=st.lists(st.tuples(st.sampled_from(KINDS), SIZES), max_size=4), seed=st.integers(0, 99), data=st.data())
def test_a_block_is_looked_at_as_by_the_python_path(
    kernel: Kernel, sizes: list[tuple[str, int]], seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    layout = Layout([Tensor(f"t{i}", kind, (count,)) for i, (kind, count) in enumerate(sizes)])
    block, largest, spans = np.zeros(layout.nbytes, np.uint8), [], []
    for piece in layout.pieces(0, layout.nbytes):
        values = piece.values_in(block)
        values[:] = rng.integers(-99, 99, values.size) * rng.choice([0, 1, 2**50])
        if data.draw(st.booleans()):
            values[rng.integers(values.size)] = -(2**63) if values.dtype.kind == "i" else rng.choice([-np.inf, np.nan])
        largest.append(max(int(values.max()), -int(values.min())) if values.dtype.kind == "i" else np.abs(values).max())
        spans.append(Span(piece.values_start, piece.values_stop, piece.tensor.kind))
    tagged = data.draw(st.integers(0, block.size))
    key, number = rng.bytes(32), data.draw(st.integers(0, 2**64 - 1))
    found = kernel.inspect(block, spans, kernel.gmac_key(key), number, tagged)
    assert found.tag == fingerprint_block(key, number, block[:tagged])
    for x, y in zip(found.largest, largest, strict=True):
        assert x == y or (not math.isfinite(x) and not np.isfinite(y))
    assert kernel.inspect(block, spans) == (b"", found.largest) or any(x != x for x in found.largest)


@pytest.mark.parametrize("size", [8191, 8192, 8193, 1 << 20])
def test_large_blocks_have_the_python_paths_tag(kernel: Kernel, size: int) -> None:
    block = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert kernel.inspect(block, [], kernel.gmac_key(b"k" * 32), 9).tag == fingerprint_block(b"k" * 32, 9, block)


def test_a_counter_goes_on_beyond_32_bits(kernel: Kernel) -> None:
    offset, scratch = (2**32 - 3) * 16, np.empty(4096 + SLACK_BYTES, np.uint8)
    expected = Keystream(b"k" * 32).read(offset, 4096, scratch)
    assert np.array_equal(kernel.keystream(kernel.streams([(b"k" * 32, 1)]), offset, 4096), expected)


@pytest.mark.parametrize("name", HERE)
def test_threads_share_keys_and_parts_add_up(name: str) -> None:
    assert BUILT is not None
    kernel, count = Kernel(BUILT, name), 200_000
    values = np.random.default_rng(3).uniform(-1, 1, count)
    keys = Keys(kernel.streams([(b"a" * 32, 1), (b"b" * 32, -1)]), kernel.streams([(b"t" * 32, 1)]))
    whole, parts = np.empty(count, "<u8"), np.empty(count, "<u8")
    tag = Tag(*kernel.hide(values, whole, 2.0**50, Place(32, 7), keys))

    def hide(start: int) -> Tag:
        stop = min(start + 1026, count)
        place = Place(32 + 8 * start, 7 + start)
        return Tag(*kernel.hide(values[start:stop], parts[start:stop], 2.0**50, place, keys))

    with ThreadPoolExecutor(4) as pool:
        assert reduce(add, pool.map(hide, range(0, count, 1026))) == tag
    assert np.array_equal(parts, whole)


@pytest.mark.parametrize("name", HERE)
def test_what_does_not_fit_is_refused_before_memory_is_touched(name: str) -> None:
    assert BUILT is not None
    kernel = Kernel(BUILT, name)
    values, lanes, keys = np.ones(10), np.zeros(10, "<u8"), Keys()
    with pytest.raises(ValueError, match="a run's arguments"):
        kernel.hide(values[:9], lanes, 1.0, Place(0, 0), keys)
    with pytest.raises(ValueError, match="a run's arguments"):
        kernel.hide(values, lanes, 1.0, Place(8, 0), keys)
    with pytest.raises(ValueError, match="a run's arguments"):  # which of two streams is the tag's?
        kernel.hide(values, lanes, 1.0, Place(0, 0), Keys(tag=kernel.streams([(b"a" * 32, 1), (b"b" * 32, 1)])))
    with pytest.raises(ValueError, match="a run's arguments"):
        BUILT.run(0, None, -1, np.zeros(9, np.uint8), 3, 1.0, 0, 0, None, None, None, False)
    with pytest.raises(ValueError, match="contiguous"):
        kernel.hide(values[::2], lanes[:5], 1.0, Place(0, 0), keys)
    with pytest.raises(ValueError, match="a sum's arguments"):
        kernel.decode(lanes, values[:9], 1.0, 5)
    with pytest.raises(ValueError, match="keys have 32 bytes"):
        kernel.streams([(b"short", 1)])
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        kernel.gmac_key(b"short")
    for span in Span(0, 999, "float32"), Span(8, 16, "float32"), Span(0, 6, "float32"), Span(16, 0, "int64"):
        with pytest.raises(ValueError, match="a block's arguments"):
            kernel.inspect(values.view(np.uint8), [span])
    with pytest.raises(ValueError, match="a block's arguments"):
        kernel.inspect(values.view(np.uint8), [], tagged=81)
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        BUILT.inspect(0, b"short", 0, values.view(np.uint8), 0, np.empty((0, 4), np.int64))
    with pytest.raises(ValueError, match="PyCapsule"):  # a key is no stream
        BUILT.run(0, None, -1, lanes, 8, 1.0, 0, 0, None, bytes(32), None, False)
    assert not lanes.any()
