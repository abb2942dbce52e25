"""A stretch goes through a compiled kernel as it goes through NumPy: the same bytes, tags, refusals and leftovers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import PATHS, hiding_by
from numpy.typing import NDArray
from secure_fakes import key_of

from fedhpc.errors import DataError, PolicyError
from fedhpc.secure.ledger import FINGERPRINT_BLOCK_BYTES, fingerprint_block
from fedhpc.secure.one_pass import Inspector, Run, workers
from fedhpc.secure.ring import Codec, Layout, Piece, Tensor, lane_bound, scale_for
from fedhpc.secure.tag import Tag

SITES = 3
FACTOR = 0.3
EVERY = pytest.mark.parametrize("path", PATHS)
_OWN_SCALES = "own scales"


@dataclass
class Stretch:
    """The lanes and values of a whole vector, in the same memory or not."""

    tensors: list[Tensor]
    masks: int = 2
    tagged: bool = True
    stochastic: bool = False
    exponents: dict[str, NDArray[np.int32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = Layout(self.tensors)
        self.edges = [(key_of("mask", i), 1 if i % 2 else -1) for i in range(self.masks)]
        self.tag_key = key_of("tag") if self.tagged else None

    def codec(self) -> Codec:
        factors = {tensor.name: FACTOR for tensor in self.tensors}
        return Codec(SITES, "bern", factors, key_of("rounding") if self.stochastic else None, self.exponents)

    def values(self, seed: int) -> NDArray[np.uint8]:
        buffer = np.zeros(self.layout.values.nbytes, np.uint8)
        draw = np.random.default_rng(seed)
        for piece in self.layout.pieces(0, self.layout.nbytes):
            out = piece.values_in(buffer)
            if piece.tensor.kind == "int64":
                bound = lane_bound(piece.tensor.bits, SITES)
                out[:] = draw.integers(-bound, bound, out.size, endpoint=True)
            else:
                out[:] = draw.uniform(-8, 8, out.size)
        return buffer

    def runs(
        self, lanes: NDArray[np.uint8], values: NDArray[np.uint8], cut: tuple[int, int] | None = None
    ) -> list[Run]:
        pieces = self.layout.pieces(*(cut or (0, self.layout.nbytes)))
        return [Run(piece, piece.lanes_in(lanes), piece.values_in(values)) for piece in pieces]

    def memory(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return values if self.layout.in_place else np.zeros(self.layout.nbytes, np.uint8)


def there_and_back(path: str, stretch: Stretch, seed: int) -> list[Any]:
    """All that a path makes of a stretch: masked lanes and their tag, unmasked lanes and their tag, values."""
    found: list[Any] = []
    with hiding_by(path):
        values = stretch.values(seed)
        lanes = stretch.memory(values)
        runs = stretch.runs(lanes, values)
        worker = workers(stretch.codec, stretch.edges, stretch.tag_key)()
        worker.encode(runs)
        found += [worker.cover(runs), lanes.tobytes()]
        back = workers(stretch.codec, [(key, -sign) for key, sign in stretch.edges], stretch.tag_key)()
        found += [back.uncover(runs), lanes.tobytes()]
        again = [run._replace(values=None) for run in runs]  # a second attempt: the lanes are there
        worker.encode(again)
        found += [worker.cover(again), lanes.tobytes()]
        back.uncover(runs)
        back.decode(runs)
        found.append(values.tobytes())
    return found


def tensors_of(data: st.DataObject) -> tuple[list[Tensor], dict[str, NDArray[np.int32]]]:
    kinds = st.sampled_from(["float32", "float64", "int64"])
    drawn = data.draw(
        st.lists(st.tuples(kinds, st.integers(0, 70), st.sampled_from([0, 8, 16, 32, 64])), min_size=1, max_size=5)
    )
    tensors = [
        Tensor(f"t{i}", kind, (count,), 0 if kind == "int64" else scale_for(8.0, bits or 32, SITES), bits)
        for i, (kind, count, bits) in enumerate(drawn)
    ]
    exponents = {}
    if data.draw(st.booleans()):
        tensors.append(Tensor(_OWN_SCALES, "float64", (data.draw(st.integers(1, 40)),), 20))
        exponents[_OWN_SCALES] = np.arange(tensors[-1].lanes, dtype=np.int32) % 5
    return tensors, exponents


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_every_path_makes_the_same_of_a_stretch(
    data: st.DataObject, masks: int, tagged: bool, stochastic: bool, seed: int
) -> None:
    tensors, exponents = tensors_of(data)
    stretch = Stretch(tensors, masks, tagged, stochastic, exponents)
    by_python, *others = (there_and_back(path, stretch, seed) for path in PATHS)
    for found in others:
        assert found == by_python
    assert by_python[0] == by_python[2] == by_python[4]
    assert (by_python[1] != by_python[3]) == bool(masks and stretch.layout.lanes)
    if not tagged:
        assert by_python[0] == Tag()


@pytest.mark.parametrize("bits", [0, 64])
def test_every_path_makes_the_same_of_a_long_stretch(bits: int) -> None:
    """Several tiles of every kind, in the memory of the values and in windows, and stochastic words far in a stream."""
    tensors = [
        Tensor("w", "float32", (300_001,), scale_for(8.0, bits or 32, SITES), bits),
        Tensor("n", "int64", (40_003,)),
        Tensor("loss", "float64", (70_001,), 20),
    ]
    for stochastic in (False, True):
        by_python, *others = (there_and_back(path, Stretch(tensors, stochastic=stochastic), 7) for path in PATHS)
        for found in others:
            assert found == by_python


@EVERY
def test_a_stretch_may_be_cut_anywhere(path: str) -> None:
    stretch = Stretch(
        [Tensor("w", "float32", (1001,), 12), Tensor("n", "int64", (77,)), Tensor("b", "float64", (9,), 3)]
    )
    whole = there_and_back(path, stretch, 1)
    with hiding_by(path):
        values, tag = stretch.values(1), Tag()
        worker = workers(stretch.codec, stretch.edges, stretch.tag_key)()
        cuts = [0, 16, 1040, 4000, 4016, stretch.layout.nbytes]
        for low, high in zip(cuts[1:], cuts, strict=False):
            runs = stretch.runs(values, values, (high, low))
            worker.encode(runs)
            tag = tag + worker.cover(runs)
    assert (tag, values.tobytes()) == (whole[0], whole[1])


@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
def test_a_sum_out_of_range_is_refused_alike_and_leaves_the_same(kind: str) -> None:
    """Far in, so that tiles before it are decoded already."""
    tensor = Tensor("x", kind, (3 * (1 << 15) + 5,), 0 if kind == "int64" else 12)
    stretch = Stretch([tensor])
    limit = lane_bound(tensor.bits, SITES) * SITES
    for bad in (limit + 1, -limit - 1, -(1 << (tensor.bits - 1))):
        left = set()
        for path in PATHS:
            lanes = np.arange(tensor.lanes, dtype=f"<i{tensor.lane_bytes}")
            lanes[-9] = bad
            values = lanes.view(np.uint8)
            with hiding_by(path), pytest.raises(PolicyError, match="the sum of 'x' is beyond what 3 sites can hold"):
                workers(stretch.codec, [], None)().decode(stretch.runs(values, values))
            left.add(values.tobytes())
        assert len(left) == 1
    values = np.full(tensor.lanes, limit, f"<i{tensor.lane_bytes}").view(np.uint8)
    for path in PATHS:
        with hiding_by(path):
            workers(stretch.codec, [], None)().decode(stretch.runs(values.copy(), values.copy()))


def looked_at(path: str, stretch: Stretch, values: NDArray[np.uint8], tagged: int, key: bytes | None) -> bytes:
    with hiding_by(path):
        pieces = stretch.layout.pieces(0, stretch.layout.nbytes)
        return Inspector(stretch.codec(), key).look(values, 0, 5, pieces, tagged)


@EVERY
def test_a_fingerprint_is_that_of_the_bytes_with_their_gaps(path: str) -> None:
    stretch = Stretch(
        [Tensor("a", "float32", (5,), 12), Tensor(_OWN_SCALES, "float64", (3,), 12), Tensor("n", "int64", (3,))],
        exponents={_OWN_SCALES: np.zeros(3, np.int32)},
    )
    values, key = stretch.values(3), key_of("blocks")
    values[20:32] = 9  # the first gap
    for tagged in (0, 1, 15, 16, 17, 33, values.size):
        expected = fingerprint_block(key, 5, values[:tagged]) if tagged else b""
        assert looked_at(path, stretch, values, tagged, key) == expected
    assert looked_at(path, stretch, values, values.size, None) == b""
    long = Stretch([Tensor("n", "int64", (FINGERPRINT_BLOCK_BYTES // 8,))])
    values = long.values(4)
    assert looked_at(path, long, values, values.size, key) == fingerprint_block(key, 5, values)


def put(value: float) -> Callable[[NDArray[Any]], None]:
    def change(values: NDArray[Any]) -> None:
        values[-2] = value

    return change


@EVERY
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "holds NaN"),
        (np.inf, "holds infinity"),
        (-np.inf, "holds infinity"),
        (1e30, "holds a value beyond the bound"),
        (-1e30, "holds a value beyond the bound"),
    ],
)
def test_numbers_without_a_place_in_the_ring_are_refused_in_the_same_words(
    path: str, kind: str, value: float, said: str
) -> None:
    for exponents in ({}, {"x": np.zeros(100_000, np.int32)}):
        stretch = Stretch([Tensor("before", "int64", (3,)), Tensor("x", kind, (100_000,), 12)], exponents=exponents)
        values = stretch.values(2)
        put(value)(stretch.layout.pieces(0, stretch.layout.nbytes)[1].values_in(values))
        before = values.tobytes()
        with pytest.raises(
            DataError, match=f"tensor 'x' of site bern {said}|tensor 'x' of site bern holds a value {said}"
        ):
            looked_at(path, stretch, values, values.size, key_of("blocks"))
        assert values.tobytes() == before


@EVERY
def test_the_bound_itself_is_taken_and_no_more(path: str) -> None:
    bound = lane_bound(64, SITES)
    for number, taken in ((bound, True), (-bound, True), (bound + 1, False), (-bound - 1, False), (-(2**63), False)):
        stretch = Stretch([Tensor("n", "int64", (3,))])
        values = np.array([1, number, 2]).view(np.uint8)
        if taken:
            looked_at(path, stretch, values, values.size, None)
            continue
        with pytest.raises(DataError, match=f"beyond the bound {bound}"):
            looked_at(path, stretch, values, values.size, None)
    half = (lane_bound(32, 1) + 0.5) / 2**12  # rounds half to even, up and beyond
    for number, taken in ((np.nextafter(half, 0), True), (half, False)):
        codec, values = Codec(1, "bern"), np.array([number])
        stretch = Stretch([Tensor("x", "float64", (1,), 12, 32)])
        pieces: list[Piece] = stretch.layout.pieces(0, 4)
        with hiding_by(path):
            inspector = Inspector(codec, None)
            if taken:
                inspector.look(values.view(np.uint8), 0, 0, pieces, 0)
                continue
            with pytest.raises(DataError, match="beyond the bound"):
                inspector.look(values.view(np.uint8), 0, 0, pieces, 0)
