"""The small parts of the protocol: shares, boxes, the tag, the attempt file, the relay's sum."""

from __future__ import annotations

import itertools
import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_fakes import LAYOUT, Memory, World, lanes_at_random
from secure_fakes import key_of

from fedhpc.errors import PolicyError
from fedhpc.relay.rounds.accumulator import Accumulator
from fedhpc.relay.rounds.block_memory import BlockMemory
from fedhpc.relay.rounds.summing import tree_of, tree_of_sum
from fedhpc.secure.attempt_file import from_private, sealed, unsealed
from fedhpc.secure.geometry import Geometry
from fedhpc.secure.masks import Keystream
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.sealing import seal, unseal
from fedhpc.secure.shares import PRIME, draw_scalar, reconstruct, share
from fedhpc.secure.suite import SHA256
from fedhpc.secure.tag import Tag, Tagger, tag_from_bytes, tag_masks
from fedhpc.secure.transcript import canon, parse_canon

# --- shares ---


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 8), st.data())
def test_any_threshold_of_the_shares_gives_the_secret(threshold: int, more: int, data: st.DataObject) -> None:
    secret = draw_scalar()
    places = data.draw(st.permutations(range(1, threshold + more + 1)))
    shares = dict(zip(places, share(secret, threshold, places), strict=True))
    chosen = data.draw(st.permutations(places))[:threshold]
    assert reconstruct({v: shares[v] for v in chosen}, threshold) == secret


def test_shares_of_the_largest_and_smallest_secret() -> None:
    for number in (0, 1, PRIME - 1):
        secret = number.to_bytes(32, "little")
        shares = dict(zip((1, 5, 100), share(secret, 3, (1, 5, 100)), strict=True))
        assert reconstruct(shares, 3) == secret


def test_one_share_short_every_secret_is_possible() -> None:
    """A toy of the same polynomial: over p = 251, every τ − 1 shares fit every secret equally often."""
    p, tau = 13, 3
    seen: dict[tuple[int, ...], list[int]] = {}
    for coefficients in itertools.product(range(p), repeat=tau):
        two = tuple(sum(c * v**i for i, c in enumerate(coefficients)) % p for v in (1, 2))
        seen.setdefault(two, []).append(coefficients[0])
    assert all(sorted(found) == list(range(p)) for found in seen.values())
    assert len(seen) == p * p


@pytest.mark.parametrize("places", [(0, 1, 2), (1, 1, 2), (1, 2, 1 << 16), (-1, 1, 2)])
def test_bad_places_are_refused(places: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="place"):
        share(bytes(32), 2, places)
    with pytest.raises(PolicyError, match=r"bad share|are needed"):
        reconstruct(dict.fromkeys(places, bytes(32)), 3)


def test_bad_shares_are_refused() -> None:
    good = dict(zip((1, 2, 3), share(bytes(32), 3, (1, 2, 3)), strict=True))
    for bad in (good[1][:-1], good[1] + b"\0", b"", b"\xff" * 32, PRIME.to_bytes(32, "little")):
        with pytest.raises(PolicyError, match="bad share"):
            reconstruct(good | {1: bad}, 3)
    with pytest.raises(PolicyError, match="2 shares, and 3"):
        reconstruct({v: good[v] for v in (1, 2)}, 3)
    with pytest.raises(PolicyError, match="4 shares, and 3"):
        reconstruct(good | {4: bytes(32)}, 3)
    with pytest.raises(ValueError, match="outside the field"):
        share(b"\xff" * 32, 2, (1, 2))
    with pytest.raises(ValueError, match="31 bytes"):
        share(bytes(31), 2, (1, 2))
    with pytest.raises(ValueError, match="threshold"):
        share(bytes(32), 3, (1, 2))


def test_values_outside_the_field_are_redrawn() -> None:
    drawn = iter([b"\xff" * 32, PRIME.to_bytes(32, "little"), (PRIME - 1).to_bytes(32, "little")])
    assert draw_scalar(lambda n: next(drawn)) == (PRIME - 1).to_bytes(32, "little")
    with pytest.raises(ValueError, match="randomness"):
        draw_scalar(lambda n: b"short")


# --- boxes ---


def test_a_box_opens_only_as_it_was_sealed() -> None:
    key, t = key_of("k"), key_of("t")
    box = seal(key, 2, t, b"secret")
    assert unseal(key, 2, t, box, 6, "a") == b"secret"
    for other in [
        (key_of("other"), 2, t, box),
        (key, 5, t, box),
        (key, 2, key_of("other"), box),
        (key, 2, t, box[:-1] + bytes([box[-1] ^ 1])),
        (key, 2, t, bytes([box[0] ^ 1]) + box[1:]),
    ]:
        with pytest.raises(PolicyError, match="site a sealed for this site does not open"):
            unseal(*other, 6, "a")
    for wrong in (b"", box[:-1], box + b"\0"):
        with pytest.raises(PolicyError, match="bytes where 6 belong"):
            unseal(key, 2, t, wrong, 6, "a")


# --- tag ---


def slow_tag(key: bytes, layout: Layout, buffer: np.ndarray) -> Tag:
    words = Keystream(key).read(0, 4 * layout.lanes, np.empty(4 * layout.lanes + 15, np.uint8)).view("<u4").tolist()
    narrow = wide = 0
    for piece in layout.pieces(0, layout.nbytes):
        lanes = buffer[piece.start : piece.stop].view(f"<i{piece.tensor.lane_bytes}").tolist()
        part = sum(r * x for r, x in zip(words[piece.lane_number :], lanes, strict=False))
        if piece.tensor.bits == 64:
            wide += part
        else:
            narrow += part
    return Tag(narrow % 2**64, wide % 2**128)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 70_000), st.integers(0, 40_000), st.integers(0, 2**32), st.booleans())
def test_the_tag_is_the_plain_integer_sum(narrow: int, wide: int, seed: int, extreme: bool) -> None:
    layout = Layout(
        [Tensor("a", "float32", (3,), 1), Tensor("w", "int64", (wide,)), Tensor("n", "float32", (narrow,), 1)]
    )
    rng = np.random.default_rng(seed)
    buffer = np.frombuffer(rng.bytes(layout.nbytes), dtype=np.uint8).copy()
    if extreme:
        for piece in layout.pieces(0, layout.nbytes):
            info = np.iinfo(f"i{piece.tensor.lane_bytes}")
            lanes = buffer[piece.start : piece.stop].view(info.dtype)
            lanes[:] = rng.choice([info.min, info.max, -1, 0], lanes.size)
    tagger, key = Tagger(key_of("tag")), key_of("tag")
    whole = tagger.of(buffer, layout.pieces(0, layout.nbytes))
    assert whole == slow_tag(key, layout, buffer)
    cut = min(16 * (seed % 5000), layout.nbytes // 16 * 16)
    parts = [tagger.of(buffer, layout.pieces(a, b)) for a, b in ((0, cut), (cut, layout.nbytes))]
    assert parts[0] + parts[1] == whole
    assert tag_from_bytes(whole.to_bytes()) == whole


def test_tag_masks_cancel_and_tags_are_linear() -> None:
    t2, key = key_of("t2"), key_of("edge")
    assert tag_masks(t2, [(key, 1), (key, -1)]) == Tag()
    assert tag_masks(t2, [(key, 1)]) + tag_masks(t2, [(key, -1)]) == Tag()
    assert tag_masks(t2, [(key, 1)]) != tag_masks(key_of("other"), [(key, 1)])
    world = World(4)
    tagger = Tagger(key)
    pieces = LAYOUT.pieces(0, LAYOUT.nbytes)
    total = Tag()
    for u in world.numbers:
        total = total + tagger.of(world.plain[u], pieces)
    summed = np.frombuffer(world.sum_over(world.numbers), dtype=np.uint8)
    assert tagger.of(summed, pieces) == total
    with pytest.raises(PolicyError, match="23 bytes"):
        tag_from_bytes(bytes(23))


@pytest.mark.parametrize("bit", [0, 31, 32, 62, 63])
def test_any_flipped_bit_of_a_64_bit_lane_changes_the_tag(bit: int) -> None:
    buffer = lanes_at_random(LAYOUT, 1, "flip", 4)
    pieces = LAYOUT.pieces(0, LAYOUT.nbytes)
    wide = next(p for p in pieces if p.tensor.bits == 64)
    tagger = Tagger(key_of("tag"))
    before = tagger.of(buffer, pieces)
    buffer[wide.start : wide.start + 8].view("<u8")[:] ^= np.uint64(1 << bit)
    assert tagger.of(buffer, pieces) != before


# --- attempt file ---


def stored() -> bytes:
    world = World(4)
    world.attempt().run()
    private = world.disks[1].private
    assert private is not None
    return private


def test_an_attempt_file_with_other_fields_is_refused() -> None:
    value = parse_canon(stored())
    for other in (
        value | {"version": 2},
        value | {"sent": value["sent"] | {"M9": "00"}},
        value | {"sent": []},
        value | {"site": "1"},
        value | {"mask": value["mask"][2:]},
        {name: item for name, item in value.items() if name != "t2"},
        [],
    ):
        with pytest.raises(PolicyError, match="attempt file is damaged") as caught:
            from_private(canon(other))
        assert caught.value.__cause__ is None


def test_the_attempt_file_comes_back_as_it_was() -> None:
    data = stored()
    found = from_private(data)
    assert found.export_private() == data
    assert sorted(found.sent) == ["M1", "M2", "M3", "M4", "M5", "M6"]
    text = repr(found)
    assert not any(getattr(found, name).hex() in text for name in ("chan", "mask", "self_", "group", "own_a", "own_b"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_attempt_file_is_refused_without_a_word_of_its_content(data: st.DataObject) -> None:
    good = SMALL_FILE
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["cut", "drop", "add", "upper"]))
    bad = {
        "cut": good[:at],
        "drop": good[:at] + good[at + 1 :],
        "add": good[:at] + b"0" + good[at:],
        "upper": good.upper(),
    }[kind]
    said = ""
    try:
        # Two digits less within a stored message are found when that message is used.
        assert from_private(bad).export_private() == bad
    except PolicyError as error:
        said = error.what
    assert said in ("", "the attempt file is damaged or of another version")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_sealed_version_opens_whole_and_with_its_key_only(data: st.DataObject) -> None:
    private, key = data.draw(st.binary(max_size=100)), data.draw(st.binary(min_size=32, max_size=32))
    good = sealed(key, private)
    assert unsealed(key, good) == private
    assert sealed(key, private) != good  # no key seals twice
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :]
    other = bytes([key[0] ^ 1]) + key[1:]
    for bad, with_key in ((flipped, key), (good[:at], key), (good + b"0", key), (good, other), (good, bytes(32))):
        if (bad, with_key) != (good, key):
            with pytest.raises(PolicyError, match="damaged or of another version") as refused:
                unsealed(with_key, bad)
            assert refused.value.__suppress_context__


SMALL_FILE = stored()


# --- the relay's sum ---


TENSORS = [[(32, 700_000), (64, 3), (32, 1)], [(8, 5), (16, 9), (64, 1)], [(32, 0)], [], [(32, 3), (32, 3_000_000)]]


@pytest.mark.parametrize("tensors", TENSORS)
def test_sum_over_many_chunks(tensors: list[tuple[int, int]]) -> None:
    objects = Memory()
    nbytes = Geometry(tensors).nbytes
    runs = [(low, high, tensors[i][0]) for i, low, high, _ in Geometry(tensors).stretches(0, nbytes)]
    expected = np.zeros(nbytes, dtype=np.uint8)
    for u in (1, 2, 3):
        raw = np.frombuffer(secrets.token_bytes(nbytes), dtype=np.uint8)  # gaps too: a site may fill them
        objects.large[f"M3v/{u}"] = bytearray(raw.tobytes())
        for start, stop, bits in runs:
            lanes = expected[start:stop].view(f"<u{bits // 8}")
            lanes += raw[start:stop].view(lanes.dtype)
    objects.large["Y"] = bytearray(secrets.token_bytes(nbytes))  # left by a crash
    assert Accumulator(objects, tensors, (1, 2, 3), BlockMemory()).finish((1, 2, 3)) == SHA256.tree(expected)
    assert tree_of_sum(objects, ["M3v/1", "M3v/2", "M3v/3"], tensors) == SHA256.tree(expected)
    assert bytes(objects.large["Y"]) == expected.tobytes()
    assert tree_of(objects, "M3v/2") == SHA256.tree(bytes(objects.large["M3v/2"]))
    assert objects.largest_read <= 1 << 20
