"""A rank's part of a vector, encoded, tagged, masked and opened block by block: against a calculation of its own.

The reference uses whole arrays, raw AES-CTR and Python's integers; nothing of the code under test.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from secure_fakes import edges_of, key_of, random_bytes

from fedhpc.errors import PolicyError
from fedhpc.federation.vector import Vector, parts
from fedhpc.secure.ring import Codec, Layout, Piece, Tensor, lane_bound, scale_for
from fedhpc.secure.tag import Tag
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, tree, tree_root
from fedhpc.sums.over_relay.masked_blocks import HiddenPart, Streams

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
    high = lane_bound(64, SITES)
    return {
        t.name: draw.integers(-high, high, t.shape, endpoint=True)
        if t.kind == "int64"
        else draw.uniform(-8, 8, t.shape).astype(t.kind)
        for t in tensors
    }


def vector_of(site: int, tensors: Sequence[Tensor] = TENSORS) -> Vector:
    vector = Vector(Layout(tensors))
    vector.fill(values_of(site, tensors))
    return vector


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
        total = sum(int(r) * int(x) for r, x in zip(words[lane : lane + tensor.lanes], lanes, strict=True))
        lane += tensor.lanes
        if tensor.bits == 64:
            wide += total
        else:
            narrow += total
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


def hide_all(hidden: HiddenPart, seed: int | None = None) -> None:
    blocks = blocks_of(hidden.part)
    if seed is None:
        for block in blocks:
            hidden.hide(*block)
        return
    random.Random(seed).shuffle(blocks)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda block: hidden.hide(*block), blocks))


@pytest.fixture(scope="module")
def reference() -> tuple[Bytes, Tag]:
    y = hidden_by_hand(1, streams_of(1))
    return y, tag_by_hand(Layout(TENSORS), encoded(1))


@pytest.mark.parametrize(("rails", "seed"), [(1, None), (1, 5), (2, None), (3, 6), (5, 7)])
def test_any_partition_and_order_of_blocks_gives_the_same_bytes_and_tag(
    rails: int, seed: int | None, reference: tuple[Bytes, Tag]
) -> None:
    y, tag = reference
    vector, total = vector_of(1), Tag()
    for part in parts(vector.layout.nbytes, rails):
        hidden = HiddenPart(vector, part, codec)
        hidden.begin_hiding(streams_of(1), TAG_KEY)
        hide_all(hidden, seed)
        total = total + hidden.tag
    assert vector.buffer.tobytes() == y.tobytes()
    assert total == tag
    for low, high in ((2_400_004, 2_400_016), (2_400_040, 2_400_048)):
        assert not vector.buffer[low:high].any()  # gaps are zero under the masks as well


def test_stochastic_rounding_takes_the_words_of_the_lanes() -> None:
    vector = vector_of(2)
    for part in parts(vector.layout.nbytes, 2):
        hidden = HiddenPart(vector, part, lambda: codec(stochastic=True))
        hidden.begin_hiding(streams_of(2), TAG_KEY)
        hide_all(hidden, 3)
    assert vector.buffer.tobytes() == hidden_by_hand(2, streams_of(2), stochastic=True).tobytes()
    assert vector.buffer.tobytes() != hidden_by_hand(2, streams_of(2)).tobytes()


class CountingCodec(Codec):
    """Counts how often each piece is encoded, over all codecs of a test."""

    seen: dict[int, int]

    def encode(self, buffer: Bytes, piece: Piece) -> None:
        self.seen[piece.start] = self.seen.get(piece.start, 0) + 1
        super().encode(buffer, piece)


def test_a_failed_attempt_is_taken_back_exactly_and_nothing_is_encoded_twice() -> None:
    seen: dict[int, int] = {}

    def counting() -> Codec:
        made = CountingCodec(SITES, "bern", FACTORS)
        made.seen = seen
        return made

    vector = vector_of(1)
    hidden = HiddenPart(vector, (0, vector.layout.nbytes), counting)
    blocks = blocks_of(hidden.part)
    hidden.begin_hiding(streams_of(1, "first"), key_of("first tag"))
    for block in blocks[1:3]:  # the attempt ended in the middle of the upload
        hidden.hide(*block)
    hidden.begin_hiding(streams_of(1, "second"), key_of("second tag"))
    hide_all(hidden, 1)
    hidden.begin_hiding(streams_of(1), TAG_KEY)
    hidden.begin_hiding(streams_of(1), TAG_KEY)  # an attempt that ended before its first block
    hide_all(hidden)
    assert vector.buffer.tobytes() == hidden_by_hand(1, streams_of(1)).tobytes()
    assert hidden.tag == tag_by_hand(vector.layout, encoded(1))
    assert set(seen.values()) == {1}
    hidden.begin_hiding((), TAG_KEY)
    assert vector.buffer.tobytes() == encoded(1).tobytes()


def open_all(y: Bytes, tensors: Sequence[Tensor], rails: int, streams: Streams) -> tuple[Vector, Tag, list[bytes]]:
    """The opened sum, its tag and the digests of X, from parts of `rails` ranks that each received their bytes of y."""
    vector, tag, digests = vector_of(1, tensors), Tag(), []
    for part in parts(vector.layout.nbytes, rails):
        hidden = HiddenPart(vector, part, codec)
        hidden.begin_hiding(streams_of(1), TAG_KEY)
        hide_all(hidden)  # what lies in the buffer before the sum comes
        hidden.begin_opening(streams, TAG_KEY)
        blocks = blocks_of(part)
        random.Random(rails).shuffle(blocks)
        for low, high in blocks:
            vector.buffer[low:high] = y[low:high]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda block, hidden=hidden: hidden.open(*block), blocks))  # type: ignore[misc]
        tag = tag + hidden.tag
        digests += hidden.opened_digests()
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


@pytest.mark.parametrize("tensors", [TENSORS, SMALL], ids=["blocks", "small"])
@pytest.mark.parametrize("lost", [(), (2,)])
def test_opening_gives_the_sum_over_who_is_left(tensors: list[Tensor], lost: tuple[int, ...]) -> None:
    layout = Layout(tensors)
    there = [u for u in range(1, SITES + 1) if u not in lost]
    y = np.zeros(layout.nbytes, np.uint8)
    for u in there:
        in_lanes(layout, y, hidden_by_hand(u, streams_of(u), tensors), 1)
    streams = self_masks(there)
    for w, g in itertools.product(there, lost):  # the masks towards who was lost
        key = next(k for k, _ in edges_of(SITES)[w - 1] if k in {k for k, _ in edges_of(SITES)[g - 1]})
        streams.append((key, -1 if g > w else 1))
    covered = np.zeros(layout.nbytes, bool)
    for tensor, at in zip(layout.tensors, layout.offsets, strict=True):
        covered[at : at + tensor.lanes * tensor.lane_bytes] = True
    y[~covered] = 255  # whatever the relay puts into the gaps
    ring, decoded = sum_by_hand(there, tensors)
    for rails in (1, 3):
        vector, tag, digests = open_all(y, tensors, rails, streams)
        for name, expected in decoded.items():
            got = vector.view(name)
            assert got.dtype == expected.dtype
            assert got.tobytes() == expected.tobytes(), name
        assert not vector.buffer[~covered].any()
        assert tag == tag_by_hand(layout, ring)
        assert digests == [hashlib.sha256(ring[low:high]).digest() for low, high in blocks_of((0, layout.nbytes))]


def test_a_sum_beyond_what_the_sites_can_hold_is_refused() -> None:
    vector = vector_of(1, SMALL)
    hidden = HiddenPart(vector, (0, vector.layout.nbytes), codec)
    hidden.begin_opening((), TAG_KEY)
    vector.buffer[:] = 0
    vector.view("w").view("<i4")[2] = lane_bound(32, SITES) * SITES
    hidden.open(0, vector.layout.nbytes)
    assert vector.view("w")[2] == np.float32(lane_bound(32, SITES) * SITES * 2.0**-12)
    vector.view("w").view("<i4")[2] = lane_bound(32, SITES) * SITES + 1
    with pytest.raises(PolicyError, match="'w' is beyond what 3 sites can hold"):
        hidden.open(0, vector.layout.nbytes)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_small_vectors_of_any_layout(data: st.DataObject) -> None:
    kinds = st.sampled_from(["float32", "float64", "int64"])
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    drawn = data.draw(st.lists(st.tuples(kinds, shapes), min_size=1, max_size=5))
    tensors = [Tensor(f"t{i}", k, s, 0 if k == "int64" else 12) for i, (k, s) in enumerate(drawn)]
    layout = Layout(tensors)
    if layout.nbytes == 0:
        return
    attempts = data.draw(st.lists(st.text("ab", max_size=3), min_size=1, max_size=3))
    vector = vector_of(1, tensors)
    hidden = HiddenPart(vector, (0, layout.nbytes), codec)
    for salt in attempts:
        hidden.begin_hiding(streams_of(1, salt), TAG_KEY)
        hidden.hide(0, layout.nbytes)
        assert vector.buffer.tobytes() == hidden_by_hand(1, streams_of(1, salt), tensors).tobytes()
        assert hidden.tag == tag_by_hand(layout, encoded(1, tensors))


def test_the_tree_of_the_parts_is_that_of_the_whole() -> None:
    y = random_bytes(3 * TREE_BLOCK_BYTES + 16, 1)
    layout = Layout([Tensor("n", "int64", (y.size // 8,))])
    joined = []
    for part in parts(y.size, 2):
        vector = Vector(layout)
        vector.buffer[:] = y & 0x0F  # every lane far below the bound of its kind
        hidden = HiddenPart(vector, part, codec)
        hidden.begin_opening((), TAG_KEY)
        for block in reversed(blocks_of(part)):
            hidden.open(*block)
        joined += hidden.opened_digests()
    whole = vector.buffer.tobytes()
    assert tree_root(len(whole), [b"".join(joined)]) == tree(whole)
