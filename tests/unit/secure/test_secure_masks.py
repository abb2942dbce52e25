"""The mask streams are AES-256-CTR at any byte, cover every lane, never repeat, and cancel in the sum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fakes import Sites, edges_of, key_of, proposal_of, random_bytes

from fedhpc.secure.masks import SLACK_BYTES, TILE_BYTES, Keystream, Masks
from fedhpc.secure.proposal import one_base

KEY = bytes(range(32))


def ecb_stream(key: bytes, offset: int, count: int) -> bytes:
    """PRG(key) from its definition: byte o is byte o mod 16 of AES(key, block number ⌊o/16⌋, big-endian)."""
    first, last = offset // 16, -(-(offset + count) // 16)
    counters = b"".join(n.to_bytes(16, "big") for n in range(first, last))
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)
    return blocks[offset - 16 * first :][:count]


def read(key: bytes, offset: int, count: int) -> bytes:
    return Keystream(key).read(offset, count, np.empty(count + SLACK_BYTES, dtype=np.uint8)).tobytes()


def test_aes_256_ctr_sp800_38a_f_5_5() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = (
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    counter = int.from_bytes(bytes(range(0xF0, 0x100)), "big")
    assert Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(16, "big"))).encryptor().update(
        bytes.fromhex(plain)
    ) == bytes.fromhex(cipher)
    # The stream of the same key, read where its counter block has that value.
    words = read(key, counter * 16, 64)
    assert bytes(a ^ b for a, b in zip(words, bytes.fromhex(plain), strict=True)).hex() == cipher


@given(
    key=st.binary(min_size=32, max_size=32),
    offset=st.integers(0, 200) | st.integers(2**36 - 40, 2**36 + 40) | st.integers(2**63, 2**66),
    count=st.integers(0, 200),
)
def test_stream_is_aes_of_the_block_number(key: bytes, offset: int, count: int) -> None:
    assert read(key, offset, count) == ecb_stream(key, offset, count)


@pytest.mark.parametrize("offset", [0, 1, 15, 16, 17, TILE_BYTES - 1, 16 * 2**32 - 5, 16 * 2**64 - 3])
@pytest.mark.parametrize("count", [1, 15, TILE_BYTES - 1, TILE_BYTES, TILE_BYTES + 1, 2 * TILE_BYTES + 33])
def test_stream_across_tile_borders(offset: int, count: int) -> None:
    assert read(KEY, offset, count) == ecb_stream(KEY, offset, count)


def test_a_key_of_another_length_is_refused() -> None:
    for length in (0, 16, 24, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            Keystream(bytes(length))


def plain_masks(edges: list[tuple[bytes, int]], bits: int, lanes: int, offset: int) -> list[int]:
    """The signed sum of the streams, lane by lane, in Python's integers."""
    total = [0] * lanes
    for key, sign in edges:
        words = np.frombuffer(ecb_stream(key, offset, lanes * bits // 8), dtype=f"<u{bits // 8}")
        total = [(a + sign * int(w)) % (1 << bits) for a, w in zip(total, words, strict=True)]
    return total


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([8, 16, 32, 64]), st.integers(0, 50), st.integers(0, 5), st.integers(1, 4))
def test_masks_are_added_lane_by_lane(bits: int, lanes: int, start: int, count: int) -> None:
    edges = [(key_of("m", i), 1 if i % 2 else -1) for i in range(count)]
    values = random_bytes(lanes * bits // 8, lanes).view(f"<u{bits // 8}")
    expected = [
        (int(v) + m) % (1 << bits) for v, m in zip(values, plain_masks(edges, bits, lanes, 16 * start), strict=True)
    ]
    Masks(edges).add(values, 16 * start)
    assert values.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    sites=st.integers(2, 8),
    half_degree=st.integers(0, 3),
    bits=st.sampled_from([32, 64]),
    lanes=st.integers(1, 97),
    cuts=st.lists(st.integers(0, 97), max_size=5),
    seed=st.integers(0, 1000),
)
def test_masked_sum_equals_plain_sum(
    sites: int, half_degree: int, bits: int, lanes: int, cuts: list[int], seed: int
) -> None:
    """Any number of sites, complete or circulant graph, any cut into parts."""
    kind = f"<u{bits // 8}"
    plain = [random_bytes(lanes * bits // 8, 10 * seed + u).view(kind) for u in range(sites)]
    total = [sum(int(p[i]) for p in plain) % (1 << bits) for i in range(lanes)]
    borders = sorted({0, lanes, *(c for c in cuts if c < lanes)})
    summed = np.zeros(lanes, dtype=kind)
    for vector, edges in zip(plain, edges_of(sites, 2 * half_degree), strict=True):
        masked = vector.copy()
        masks = Masks(edges)
        for low, high in reversed(list(itertools.pairwise(borders))):
            masks.add(masked[low:high], low * bits // 8)
        whole = vector.copy()
        Masks(edges).add(whole, 0)
        assert (whole == masked).all()
        assert (masked != vector).any()
        summed += masked
    assert summed.tolist() == total


@pytest.mark.parametrize("bits", [32, 64])
def test_parts_across_tiles(bits: int) -> None:
    kind = f"<u{bits // 8}"
    lanes = TILE_BYTES // (bits // 8) * 2 + 5
    summed = np.zeros(lanes, dtype=kind)
    for number, edges in enumerate(edges_of(3)):
        vector = np.zeros(lanes, dtype=kind)
        cut = (number + 1) * 12_344  # each site cuts elsewhere
        Masks(edges).add(vector[:cut], 0)
        Masks(edges).add(vector[cut:], cut * bits // 8)
        assert np.count_nonzero(vector) > lanes - 5
        summed += vector
    assert not summed.any()


@pytest.mark.parametrize("bits", [32, 64])
def test_no_lane_is_left_bare(bits: int) -> None:
    """A zero vector over several tiles and an odd end: a lane that stays zero has chance 2^-32."""
    vector = np.zeros(TILE_BYTES // 4 + 1003, dtype=f"<u{bits // 8}")
    Masks(edges_of(3)[0]).add(vector, 48)
    assert (vector != 0).all()
    assert len(np.unique(vector)) > vector.size - 10  # not one number for all lanes


def blocks(key: bytes, offset: int = 0, count: int = 4096) -> set[bytes]:
    data = read(key, offset, count)
    return {data[i : i + 16] for i in range(0, count, 16)}


def test_no_part_of_a_stream_repeats() -> None:
    streams = [blocks(KEY), blocks(KEY, 4096), blocks(KEY, 2**36), blocks(KEY, 2**20)]
    streams += [blocks(key) for edges in edges_of(4) for key, sign in edges if sign > 0]
    joined = set().union(*streams)
    assert len(joined) == sum(len(s) for s in streams)


def test_streams_differ_between_edges_rounds_attempts_and_everything_else_agreed() -> None:
    """The same X25519 keys throughout: only the transcript separates the streams."""
    changes: list[dict[str, object]] = [
        {},
        {"round_": 4},
        {"attempt": 12},
        {"config": key_of("other config")},
        {"state": key_of("other state")},
        {"cohort": one_base((1, 2, 3, 4), key_of("base"))},
        {"layout": key_of("other layout")},
        {"purpose": "weights"},
        {"tensors": ((64, 5),)},
    ]
    seen: list[set[bytes]] = []
    for change in changes:
        edges = Sites(4).summing(proposal_of(4, **change))
        seen += [blocks(key, 0, 256) for found in edges for key, sign in found if sign > 0]
    assert len(seen) == len(changes) * 6
    assert len(set().union(*seen)) == sum(len(s) for s in seen)


def test_the_largest_word_occurs() -> None:
    """An exclusive upper end would leave 2^32 − 1 out. This place was found by search over the stream of KEY."""
    place = 8_907_617_424
    assert read(KEY, place, 4) == b"\xff\xff\xff\xff"
    lane = np.zeros(4, dtype="<u4")
    Masks([(KEY, 1)]).add(lane, place)
    assert lane[0] == 2**32 - 1
    words = np.frombuffer(read(KEY, 0, 1 << 20), dtype="<u2")
    assert words.min() == 0
    assert words.max() == 2**16 - 1


@pytest.mark.parametrize("bits", [32, 64])
def test_masked_lanes_look_uniform(bits: int) -> None:
    """χ² of the bytes and of neighbouring bits of a masked constant vector; fixed keys, so never flaky."""
    lanes = (1 << 20) // (bits // 8)
    vector = np.full(lanes, 12345, dtype=f"<u{bits // 8}")
    Masks(edges_of(3)[1]).add(vector, 0)
    raw = vector.view(np.uint8)
    for place in range(bits // 8):
        counts = np.bincount(raw[place :: bits // 8], minlength=256)
        expected = counts.sum() / 256
        assert 150 < ((counts - expected) ** 2 / expected).sum() < 390  # 255 degrees of freedom
    ones = np.unpackbits(raw).mean()
    assert abs(ones - 0.5) < 0.002
    wide = vector.astype(np.float64)
    assert abs(np.corrcoef(wide[1:], wide[:-1])[0, 1]) < 0.01


def test_average_of_masked_vectors_shows_nothing_of_the_value() -> None:
    """Over many attempts the mean of what one site sends is that of noise, whatever the site holds."""
    value, rounds = 2**30, 2000
    sent = np.empty(rounds)
    for n in range(rounds):
        lane = np.full(4, value, dtype="<u4")
        Masks(edges_of(3, salt=f"{n}")[0]).add(lane, 0)
        sent[n] = lane[0]
    sigma = 2**32 / np.sqrt(12 * rounds)
    assert abs(sent.mean() - 2**31) < 4 * sigma  # the bare value would be 16 sigma away


def test_no_edges_leave_lanes_as_they_are() -> None:
    lanes = np.arange(5, dtype="<u4")
    Masks(()).add(lanes, 0)
    assert lanes.tolist() == [0, 1, 2, 3, 4]


def test_no_text_of_a_mask_object_holds_the_key() -> None:
    canary = b"canary--mask-key-32-bytes-long.."
    for thing in (Keystream(canary), Masks([(canary, 1), (canary, -1)])):
        shown = f"{thing!r} {thing} {[thing]!r}"
        assert "canary" not in shown
        assert canary.hex() not in shown
