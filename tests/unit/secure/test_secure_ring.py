"""Numbers become lanes exactly as the protocol says, and what has no place in the ring is refused by name."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from secure_fakes import key_of, random_bytes
from test_secure_masks import ecb_stream

from fedhpc.errors import DataError, FedhpcError, PolicyError
from fedhpc.secure.masks import TILE_BYTES
from fedhpc.secure.ring import (
    MAX_SCALE,
    Codec,
    Layout,
    Tensor,
    lane_bound,
    lanes_of,
    scale_for,
    scale_for_exponent,
)

KINDS = ("float32", "float64", "int64")


def buffer_of(layout: Layout, arrays: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    buffer = np.zeros(layout.nbytes, dtype=np.uint8)
    for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
        data = np.asarray(arrays[tensor.name], dtype=tensor.kind)
        buffer[offset : offset + data.nbytes] = data.reshape(-1).view(np.uint8)
    return buffer


def encode(
    kind: str, values: Any, scale: int = 0, sites: int = 3, weight: float = 1.0, rounding: bytes | None = None
) -> list[int]:
    """Lanes of one tensor after check and encode."""
    values = np.asarray(values, dtype=kind)
    layout = Layout([Tensor("x", kind, values.shape, scale)])
    buffer = buffer_of(layout, {"x": values})
    codec = Codec(sites, "basel", {"x": weight}, rounding)
    for piece in layout.pieces(0, layout.nbytes):
        codec.check(piece.values_in(buffer), piece)
        codec.encode(piece.values_in(buffer), piece.lanes_in(buffer), piece)
    return [int(n) for n in buffer.view("<i4" if kind == "float32" else "<i8")]


def decode(kind: str, lanes: Any, scale: int = 0, sites: int = 3) -> np.ndarray[Any, Any]:
    raw = np.asarray(lanes, dtype="<i4" if kind == "float32" else "<i8").copy()
    layout = Layout([Tensor("x", kind, raw.shape, scale)])
    buffer = raw.view(np.uint8)
    for piece in layout.pieces(0, layout.nbytes):
        Codec(sites, "basel").decode(piece.lanes_in(buffer), piece.values_in(buffer), piece)
    return buffer.view(kind)


def half_even(value: Fraction) -> int:
    """Round half to even, from its definition."""
    floor = math.floor(value)
    rest = value - floor
    return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_round_half_to_even(kind: str) -> None:
    assert encode(kind, [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49, 0.51]) == [0, 2, 2, 0, -2, -2, 0, 1]
    assert encode(kind, [0.125, 0.375, -0.125, 1.0], scale=2) == [0, 2, 0, 4]
    assert encode(kind, [6.0, 10.0, -6.0], scale=-2) == [2, 2, -2]
    assert encode(kind, [1.0, 3.0], weight=0.5) == [0, 2]


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_zeros_denormals_and_tiny_values(kind: str) -> None:
    tiny = [float(np.finfo(kind).smallest_subnormal), float(np.finfo(kind).tiny)]
    values = [0.0, -0.0, *tiny, *[-t for t in tiny]]
    assert encode(kind, values, scale=20) == [0] * 6
    # −0.0 and 0.0 are one lane, and come back as +0.0.
    assert not np.signbit(decode(kind, encode(kind, [-0.0]))).any()


def test_denormals_count_where_the_scale_reaches_them() -> None:
    assert encode("float32", [2.0**-149, -(2.0**-149)], scale=149) == [1, -1]
    assert encode("float32", [2.0**-149, 3 * 2.0**-149], scale=148) == [0, 2]
    assert encode("float64", [2.0**-1000], scale=MAX_SCALE) == [1]


def test_largest_float32_and_float64() -> None:
    largest = float(np.finfo(np.float32).max)
    scale = scale_for(largest, 32, 3)
    lanes = encode("float32", [largest, -largest], scale)
    assert lanes == [
        half_even(Fraction(largest) * Fraction(2) ** scale),
        -half_even(Fraction(largest) * Fraction(2) ** scale),
    ]
    huge = float(np.finfo(np.float64).max)
    assert encode("float64", [huge, -huge], scale_for(huge, 64, 100))[0] > 2**50


@pytest.mark.parametrize("sites", [1, 2, 3, 7, 10, 99, 100])
@pytest.mark.parametrize(("kind", "bits"), [("float64", 64), ("int64", 64), ("float32", 32)])
def test_bounds_are_exact(sites: int, kind: str, bits: int) -> None:
    bound = lane_bound(bits, sites)
    assert bound == (2 ** (bits - 1) - 1) // sites
    assert sites * bound < 2 ** (bits - 1)  # the sum of all cannot wrap
    if kind == "int64":
        fits, beyond = bound, bound + 1
    elif kind == "float64":
        fits = int(math.nextafter(float(bound), 0.0)) if int(float(bound)) > bound else int(float(bound))
        beyond = int(math.nextafter(float(fits), math.inf))
    else:
        fits = (
            int(np.float32(bound))
            if int(np.float32(bound)) <= bound
            else int(np.nextafter(np.float32(bound), np.float32(0)))
        )
        beyond = int(np.nextafter(np.float32(fits), np.float32(np.inf)))
    assert fits <= bound < beyond
    assert encode(kind, [fits, -fits], sites=sites) == [fits, -fits]
    for value in [beyond, -beyond] if beyond < 2**63 or kind != "int64" else [-beyond]:
        with pytest.raises(DataError, match=r"tensor 'x' of site basel holds a value beyond the bound"):
            encode(kind, [0, value], sites=sites)


@pytest.mark.parametrize("sites", range(1, 101))
def test_bound_plus_one_is_refused_where_floats_are_exact(sites: int) -> None:
    """float32 values miss most 32-bit lanes, a factor reaches them all: 1 · w."""
    bound = lane_bound(32, sites)
    assert encode("float32", [1.0, -1.0], weight=float(bound), sites=sites) == [bound, -bound]
    for weight in (bound + 1.0, bound + 0.51):
        with pytest.raises(DataError, match="beyond the bound"):
            encode("float32", [1.0], weight=weight, sites=sites)
        with pytest.raises(DataError, match="beyond the bound"):
            encode("float32", [-1.0], weight=weight, sites=sites)
    assert encode("float32", [1.0], weight=bound + 0.49, sites=sites) == [bound]


def test_int64_extremes_are_refused() -> None:
    for value in (-(2**63), 2**63 - 1):
        with pytest.raises(DataError, match="beyond the bound 4611686018427387903") as refused:
            encode("int64", [0, value], sites=2)
        assert str(abs(value)) not in refused.value.lines()  # how far beyond is the site's own business
    assert encode("int64", [2**63 - 1, -(2**63) + 1], sites=1) == [2**63 - 1, -(2**63) + 1]
    with pytest.raises(DataError):
        encode("int64", [-(2**63)], sites=1)


def test_values_whose_product_overflows_are_refused_by_name() -> None:
    for kind, value in (("float64", 1e308), ("float64", -1e308), ("float32", 3e38)):
        for scale in (1000, 30):
            with pytest.raises(DataError, match="tensor 'x' of site basel holds a value beyond"):
                encode(kind, [value], scale=scale)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("bad", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("place", [0, 1, TILE_BYTES // 8 + 3, -1])
def test_not_finite_is_named(kind: str, bad: float, what: str, place: int) -> None:
    values = np.zeros(TILE_BYTES // 4 + 11, dtype=kind)
    values[place] = bad
    with pytest.raises(DataError, match=f"tensor 'x' of site basel holds {what}") as caught:
        encode(kind, values)
    assert caught.value.exit_code == 65


def test_nan_beside_infinity_is_nan_and_weight_zero_hides_neither() -> None:
    with pytest.raises(DataError, match="NaN"):
        encode("float32", [np.inf, np.nan])
    with pytest.raises(DataError, match="infinity"):
        encode("float32", [np.inf], weight=0.0)
    assert encode("float32", [1e30], weight=0.0) == [0]


def test_a_tensor_is_named_among_others() -> None:
    layout = Layout([Tensor("good", "float32", (3,)), Tensor("bad", "float32", (3,))])
    buffer = buffer_of(layout, {"good": [1, 2, 3], "bad": [1, 2, np.nan]})
    good, bad = layout.pieces(0, layout.nbytes)
    codec = Codec(3, "basel")
    codec.check(good.values_in(buffer), good)
    with pytest.raises(DataError, match="'bad'"):
        codec.check(bad.values_in(buffer), bad)


floats32 = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=7),
    elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=True),
)
floats64 = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=7), elements=st.floats(-(2.0**20), 2.0**20))
weights = st.sampled_from([1.0, 0.5, 0.25, 2.0**-30]) | st.floats(1e-6, 1.0)


@settings(max_examples=150, deadline=None)
@given(values=floats32, weight=weights, scale=st.integers(-30, 8), sites=st.integers(1, 100))
def test_float32_lanes_are_the_rounded_products(values: Any, weight: float, scale: int, sites: int) -> None:
    """The float64 product rounded half to even; on the fast path (powers of two) too."""
    scale = min(scale, scale_for(2.0**20, 32, sites))
    expected = [half_even(Fraction(float(x) * math.ldexp(weight, scale))) for x in values.reshape(-1)]
    assert encode("float32", values, scale, sites, weight) == expected


@settings(max_examples=100, deadline=None)
@given(values=floats64, weight=weights, scale=st.integers(-30, 40), sites=st.integers(1, 100))
def test_float64_lanes_are_the_rounded_products(values: Any, weight: float, scale: int, sites: int) -> None:
    scale = min(scale, scale_for(2.0**20, 64, sites))
    expected = [half_even(Fraction(float(x) * math.ldexp(weight, scale))) for x in values.reshape(-1)]
    assert encode("float64", values, scale, sites, weight) == expected


@settings(max_examples=100, deadline=None)
@given(
    values=hnp.arrays(np.uint32, st.integers(1, 40)),
    power=st.integers(-126, 127),
)
def test_fast_path_gives_the_bits_of_the_float64_path(values: Any, power: int) -> None:
    """Any float32 bit patterns that are in range, any power of two: scale and weight split it in different ways."""
    floats = values.view(np.float32)
    bound = lane_bound(32, 3)
    keep = np.isfinite(floats) & (np.abs(floats.astype(np.float64)) * 2.0**power <= bound)
    floats = floats[keep]
    expected = [half_even(Fraction(float(x)) * Fraction(2) ** power) for x in floats]
    assert encode("float32", floats, scale=power) == expected
    assert encode("float32", floats, scale=power + 10, weight=2.0**-10) == expected


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_tiles_do_not_show(kind: str, weight: float) -> None:
    size = TILE_BYTES // 4 + 4099
    values = (random_bytes(4 * size, 1).view("<i4") / 2.0**31).astype(kind)
    expected = [round(float(x) * math.ldexp(weight, 20)) for x in values]
    assert encode(kind, values, 20, 3, weight) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_in_parts_gives_the_same_bytes(kind: str) -> None:
    layout = Layout([Tensor("a", "float32", (5,), 9), Tensor("x", kind, (5000,), 0 if kind == "int64" else 9)])
    values = (random_bytes(20000, 2).view("<i4") / 2.0**20).astype(kind)
    arrays = {"a": np.arange(5), "x": values}
    for rounding in (None, key_of("r")):
        whole, cut = buffer_of(layout, arrays), buffer_of(layout, arrays)
        codec = Codec(3, "basel", {"x": 0.7}, rounding)
        for piece in layout.pieces(0, layout.nbytes):
            codec.encode(piece.values_in(whole), piece.lanes_in(whole), piece)
        for start in range(0, layout.nbytes, 1040):
            for piece in layout.pieces(start, min(start + 1040, layout.nbytes)):
                codec.encode(piece.values_in(cut), piece.lanes_in(cut), piece)
        assert (whole == cut).all()


@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1), st.integers(-100, 185))
def test_decode_float32(lanes: list[int], scale: int) -> None:
    with np.errstate(over="ignore"):
        expected = (np.array(lanes, dtype=np.float64) * 2.0**-scale).astype(np.float32)
        assert decode("float32", lanes, scale, sites=1).tobytes() == expected.tobytes()


@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1), st.integers(-100, MAX_SCALE))
def test_decode_float64_and_int64(lanes: list[int], scale: int) -> None:
    assert decode("float64", lanes, scale, sites=1).tolist() == [math.ldexp(float(n), -scale) for n in lanes]
    assert decode("int64", lanes, 0, sites=1).tolist() == lanes


@pytest.mark.parametrize(("kind", "bits"), [("float32", 32), ("float64", 64), ("int64", 64)])
@pytest.mark.parametrize("sites", [2, 3, 7, 100])
def test_sums_beyond_n_bounds_are_refused(kind: str, bits: int, sites: int) -> None:
    limit = lane_bound(bits, sites) * sites
    decode(kind, [limit, -limit], sites=sites)
    for lane in (limit + 1, -limit - 1, -(2 ** (bits - 1))):
        if not -(2 ** (bits - 1)) <= lane < 2 ** (bits - 1):
            continue
        with pytest.raises(PolicyError, match="sum of 'x' is beyond what") as caught:
            decode(kind, [0] * 70_000 + [lane], sites=sites)
        assert caught.value.exit_code == 77


# Stochastic rounding, from the text: ⌊v⌋ + 1 if (v − ⌊v⌋)·2^32 > ρ_i, ρ_i = 32-bit word i of PRG(key).
def stochastic(values: Any, factor: float, key: bytes, first: int) -> list[int]:
    found = []
    for i, x in enumerate(values, start=first):
        v = float(x) * factor
        word = int.from_bytes(ecb_stream(key, 4 * i, 4), "little")
        floor = math.floor(v)
        found.append(floor + 1 if (v - floor) * 2.0**32 > word else floor)
    return found


@settings(max_examples=60, deadline=None)
@given(values=hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-1000, 1000, width=32)), weight=weights)
def test_stochastic_rounding(values: Any, weight: float) -> None:
    key = key_of("rounding")
    assert encode("float32", values, 10, 3, weight, key) == stochastic(values, math.ldexp(weight, 10), key, 0)


def test_stochastic_rounding_counts_lanes_of_the_whole_vector_without_gaps() -> None:
    layout = Layout([Tensor("n", "int64", (3,)), Tensor("a", "float32", (5,), 4), Tensor("b", "float64", (70_000,), 4)])
    a, b = np.linspace(-3, 3, 5).astype("f4"), np.linspace(-30, 30, 70_000)
    buffer = buffer_of(layout, {"n": [1, 2, 3], "a": a, "b": b})
    key = key_of("rounding")
    codec = Codec(3, "basel", None, key)
    for piece in reversed(layout.pieces(0, layout.nbytes)):
        codec.check(piece.values_in(buffer), piece)
        codec.encode(piece.values_in(buffer), piece.lanes_in(buffer), piece)
    assert buffer[32:52].view("<i4").tolist() == stochastic(a, 16.0, key, 3)
    lanes = buffer[64:].view("<i8")
    expected = stochastic(b[:100], 16.0, key, 8) + stochastic(b[-100:], 16.0, key, 8 + 69_900)
    assert lanes[:100].tolist() + lanes[-100:].tolist() == expected


def test_stochastic_rounding_is_unbiased_and_leaves_whole_numbers() -> None:
    for value in (0.25, -0.25, 0.9, -7.1):
        lanes = encode("float64", np.full(40_000, value), rounding=key_of(value))
        assert set(lanes) == {math.floor(value), math.floor(value) + 1}
        assert abs(np.mean(lanes) - value) < 4 * 0.5 / 200
    assert encode("float64", [5.0, -5.0, 0.0, -0.0] * 500, rounding=KEY) == [5, -5, 0, 0] * 500


def test_stochastic_rounding_at_the_edge_of_each_word() -> None:
    """A fraction equal to the word stays below; the smallest step above it goes up."""
    key = key_of("edge")
    words = [int.from_bytes(ecb_stream(key, 4 * i, 4), "little") for i in range(200)]
    assert encode("float64", [5 + w * 2.0**-32 for w in words], rounding=key) == [5] * 200
    assert encode("float64", [5 + (w + 2.0**-8) * 2.0**-32 for w in words], rounding=key) == [6] * 200


KEY = key_of("any")


def test_stochastic_rounding_cannot_pass_the_bound() -> None:
    """bound + 0.3 would round to bound + 1 with chance 0.3; the sum could wrap, so it is refused outright."""
    bound = lane_bound(32, 3)
    assert encode("float32", [1.0, -1.0], weight=float(bound), rounding=KEY) == [bound, -bound]
    for value in (1.0, -1.0):
        with pytest.raises(DataError, match="beyond the bound"):
            encode("float32", [value], weight=bound + 0.3, rounding=KEY)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 5), max_size=3)), max_size=7),
    st.integers(0, 10),
    st.integers(0, 10),
)
def test_layout_alignment_gaps_and_pieces(tensors: list[tuple[str, list[int]]], low: int, high: int) -> None:
    layout = Layout([Tensor(f"t{i}", kind, tuple(shape)) for i, (kind, shape) in enumerate(tensors)])
    at = number = 0
    used: set[int] = set()
    for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
        assert offset % 16 == 0
        assert at <= offset < at + 16
        at = offset + tensor.lanes * tensor.bits // 8
        used |= set(range(offset, at))
    assert (layout.nbytes, layout.lanes) == (at, sum(t.lanes for t in layout.tensors))
    # Pieces of any stretch: exactly the lanes in it, numbered without gaps.
    start, stop = min(16 * min(low, high), layout.nbytes), min(16 * max(low, high), layout.nbytes)
    covered: set[int] = set()
    for piece in layout.pieces(start, stop):
        assert start <= piece.start < piece.stop <= stop
        assert not covered & set(range(piece.start, piece.stop))
        covered |= set(range(piece.start, piece.stop))
        index = layout.tensors.index(piece.tensor)
        assert piece.lane == (piece.start - layout.offsets[index]) // piece.tensor.lane_bytes
        assert piece.lane_number == piece.lane + sum(t.lanes for t in layout.tensors[:index])
    assert covered == used & set(range(start, stop))
    number = 0
    for piece in layout.pieces(0, layout.nbytes):
        assert piece.lane_number == number
        number += (piece.stop - piece.start) // piece.tensor.lane_bytes
    for run_start, run_stop, bits in layout.runs(start, stop):
        widths = {p.tensor.bits for p in layout.pieces(run_start, run_stop)}
        assert widths == {bits}
        assert lanes_of(np.zeros(layout.nbytes, dtype=np.uint8), run_start, run_stop, bits).itemsize == bits // 8


def test_layout_json_and_hash() -> None:
    tensors = [Tensor("a", "float32", (2, 3), 7), Tensor("b", "int64", ())]
    layout = Layout(tensors)
    assert layout.as_json() == [
        {"bits": 32, "name": "a", "scale": 7, "shape": [2, 3]},
        {"bits": 64, "name": "b", "scale": 0, "shape": []},
    ]
    assert layout.shapes() == [[32, 6], [64, 1]]
    others = [
        [Tensor("a", "float32", (2, 3), 8), tensors[1]],
        [Tensor("a", "float32", (3, 2), 7), tensors[1]],
        [Tensor("c", "float32", (2, 3), 7), tensors[1]],
        tensors[::-1],
        tensors[:1],
    ]
    assert len({layout.hash, *(Layout(o).hash for o in others)}) == 6
    with pytest.raises(DataError, match="two tensors are called 'a'"):
        Layout([tensors[0], tensors[0]])


@pytest.mark.parametrize(
    ("kind", "scale", "bits"),
    [("float16", 0, 0), ("bfloat16", 0, 0), ("uint64", 0, 0), ("float32", 0, 128), ("float64", 0, 4), ("int64", 1, 0),
     ("float32", 1001, 0), ("float32", -1001, 0), ("float32", 0, 33)],
)  # fmt: skip
def test_tensors_that_are_refused(kind: str, scale: int, bits: int) -> None:
    with pytest.raises(FedhpcError, match="'x'"):
        Tensor("x", kind, (3,), scale, bits)


@given(st.floats(1e-300, 1e300), st.sampled_from([32, 64]), st.integers(1, 100))
def test_scale_for_keeps_the_bound_and_wastes_at_most_two_bits(bound: float, bits: int, sites: int) -> None:
    scale = scale_for(bound, bits, sites)
    room = lane_bound(bits, sites)
    assert Fraction(bound) * Fraction(2) ** scale <= room
    assert scale == MAX_SCALE or Fraction(bound) * Fraction(2) ** (scale + 2) > room
    assert scale == scale_for_exponent(math.frexp(bound)[1], bits, sites)


def test_quantum() -> None:
    assert Tensor("x", "float32", (), 10).quantum == 2.0**-10
    assert Tensor("x", "int64", ()).quantum == 0.0


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    bits=st.sampled_from([8, 16, 32, 64]),
    sites=st.integers(1, 9),
    values=st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=40),
    rounding=st.booleans(),
)
def test_lanes_of_any_width(kind: str, bits: int, sites: int, values: list[float], rounding: bool) -> None:
    """Values and lanes in memory of their own, against integers and fractions; the values stay as they were."""
    scale = 0 if kind == "int64" else scale_for(1.0, bits, sites)
    layout = Layout([Tensor("x", kind, (len(values),), scale, bits)])
    (piece,) = layout.pieces(0, layout.nbytes)
    given_values = (
        np.array(values) * min(lane_bound(bits, sites), 2**40) if kind == "int64" else np.array(values)
    ).astype(kind)
    lanes = np.full(len(values), 77, dtype=f"<u{bits // 8}")
    codec = Codec(sites, "basel", None, KEY if rounding else None)
    codec.check(given_values, piece)
    kept = given_values.copy()
    codec.encode(given_values, lanes, piece)
    assert (given_values == kept).all()
    found = lanes.view(f"<i{bits // 8}").tolist()
    if kind == "int64":
        expected = given_values.tolist()
    elif rounding:
        expected = stochastic(given_values, 2.0**scale, KEY, 0)
    else:
        expected = [half_even(Fraction(float(x)) * Fraction(2) ** scale) for x in given_values]
    assert found == expected
    total = (np.array(found, dtype=object) * sites).astype(f"<i{bits // 8}").view(lanes.dtype)
    before = total.copy()
    codec.decode(total, given_values, piece)
    assert (total == before).all()
    if kind == "int64":
        assert given_values.tolist() == [n * sites for n in found]
    else:
        once = np.array([float(n * sites) * 2.0**-scale for n in found]).astype(kind)
        assert given_values.tobytes() == once.tobytes()


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_that_of_the_lanes(kind: str, bits: int) -> None:
    bound = lane_bound(bits, 3)
    layout = Layout([Tensor("x", kind, (1,), 0, bits)])
    (piece,) = layout.pieces(0, layout.nbytes)
    wide = 2.0 ** (bits - 24) if kind == "float32" and bits == 32 else 1  # the next float32
    codec = Codec(3, "basel")
    codec.check(np.array([bound - wide], dtype=kind), piece)
    with pytest.raises(DataError, match="tensor 'x' of site basel holds a value beyond"):
        codec.check(np.array([bound + wide], dtype=kind), piece)
    if kind != "float32" or bits < 32:
        codec.decode(np.array([3 * bound], dtype=f"<u{bits // 8}"), np.zeros(1, dtype=kind), piece)
    if 3 * bound + 1 < 2 ** (bits - 1):
        with pytest.raises(PolicyError, match="beyond what 3 sites can hold"):
            codec.decode(np.array([3 * bound + 1], dtype=f"<u{bits // 8}"), np.zeros(1, dtype=kind), piece)


@settings(max_examples=60, deadline=None)
@given(
    sites=st.integers(1, 9),
    size=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_sum_of_lanes_is_the_exact_sum(sites: int, size: int, kind: str, seed: int) -> None:
    """Encode at each site, add mod 2^k, decode: the integers' exact sum, without masks in the way."""
    bits = 32 if kind == "float32" else 64
    scale = 0 if kind == "int64" else 10
    total = np.zeros(size, dtype=f"<u{bits // 8}")
    exact = [0] * size
    for u in range(sites):
        raw = random_bytes(4 * size, 100 * seed + u).view("<i4")
        values = raw.astype(np.int64) if kind == "int64" else (raw / 2.0**16).astype(kind)
        lanes = encode(kind, values, scale, 9)
        exact = [a + b for a, b in zip(exact, lanes, strict=True)]
        total += np.array(lanes, dtype=f"<i{bits // 8}").view(total.dtype)
    assert total.view(f"<i{bits // 8}").tolist() == exact
    found = decode(kind, total.view(f"<i{bits // 8}"), scale, 9)
    assert found.tolist() == np.array([e * 2.0**-scale if scale else e for e in exact], dtype=kind).tolist()
