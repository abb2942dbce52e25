"""Canonical bytes, hashes and signed messages: one form for each value, and every other one refused."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fakes import random_bytes

from fedhpc.errors import PolicyError
from fedhpc.secure import suite
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import (
    MAX_CANON_BYTES,
    TREE_BLOCK_BYTES,
    canon,
    hash_parts,
    input_hash,
    open_message,
    parse_canon,
    sign_message,
    signed_bytes,
    state_hash,
    u16,
    u64,
)

PLAIN = "".join(chr(c) for c in range(32, 127) if chr(c) not in '"\\')

texts = st.text(alphabet=PLAIN, max_size=20)
values = st.recursive(
    st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def test_canon_golden() -> None:
    assert canon({"b": [1, -2], "a": "x y", "B": {}, "": []}) == b'{"":[],"B":{},"a":"x y","b":[1,-2]}'
    assert canon((1, 2)) == canon([1, 2]) == b"[1,2]"
    assert canon(2**53 - 1) == b"9007199254740991"
    assert canon(PLAIN) == b'"' + PLAIN.encode() + b'"'


@given(values)
def test_canon_round_trip(value: Any) -> None:
    data = canon(value)
    assert parse_canon(data) == value
    assert json.loads(data) == value
    assert canon(parse_canon(data)) == data


@pytest.mark.parametrize(
    "value",
    [
        1.0, float("nan"), None, True, False, b"bytes", {1: 2}, {None: 1}, {"a": {"b": None}}, [1, [2, [0.5]]],
        'a"b', "a\\b", "é", "a\nb", "\x7f", "\x1f", "\ud800", {'"': 1}, {"é": 1},
        2**53, -(2**53), 10**30, {1, 2}, np.int64(3), np.float32(1),
    ],
)  # fmt: skip
def test_canon_refuses(value: Any) -> None:
    with pytest.raises(ValueError, match=r"canonical|plain|below|key"):
        canon(value)


@pytest.mark.parametrize(
    "data",
    [
        b"", b" 1", b"1 ", b"1\n", b"01", b"-0", b"+1", b"1.0", b"1e3", b"NaN", b"Infinity", b"null", b"true", b"false",
        b'{"a": 1}', b'{"a":1, "b":2}', b'{"b":1,"a":2}', b'{"a":1,"a":1}', b'{"a":1,"a":2}', b"[1,]", b"[1][2]",
        b'"\\u0041"', b'"\\n"', b'"a\\"b"', b'"\xc3\xa9"', b"\xef\xbb\xbf1", b"\xff", b"'a'", b"9007199254740992",
        b"-9007199254740992", b"1" * 5000, b"[" * 18 + b"]" * 18, b"[" * 100_000, b'{"a":1}//', b"\x00", b"[1",
    ],
)  # fmt: skip
def test_parse_canon_refuses(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own errors are ValueErrors too
        parse_canon(data)


def test_depth_limit() -> None:
    deep: Any = 0
    for _ in range(16):
        deep = [deep]
    assert parse_canon(canon(deep)) == deep
    with pytest.raises(ValueError, match="deeply"):
        canon([deep])
    with pytest.raises(ValueError, match="deeply"):
        parse_canon(b"[" * 100_000 + b"]" * 100_000)


def test_size_limit_is_exact() -> None:
    fits = "a" * (MAX_CANON_BYTES - 2)
    assert len(canon(fits)) == 4 << 20
    assert parse_canon(canon(fits)) == fits
    with pytest.raises(ValueError, match="at most"):
        canon(fits + "a")
    with pytest.raises(ValueError, match="at most"):
        parse_canon(b'"' + b"a" * (MAX_CANON_BYTES - 1) + b'"')


@given(st.binary(max_size=60))
def test_parse_canon_takes_only_its_own_output(data: bytes) -> None:
    try:
        value = parse_canon(data)
    except ValueError:
        return
    assert canon(value) == data


# An independent H and Tree, from the text of docs/protocol.md.
def plain_hash(name: str, *parts: bytes) -> bytes:
    joined = b"".join(len(p).to_bytes(8, "little") + p for p in parts)
    return hashlib.sha256(b"fedhpc-secagg/3\x00" + name.encode() + b"\x00" + joined).digest()


def plain_tree(data: bytes) -> bytes:
    step = 2**20
    digests = b"".join(hashlib.sha256(data[i : i + step]).digest() for i in range(0, len(data), step))
    return plain_hash("tree", b"sha256", len(data).to_bytes(8, "little"), digests)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_hash_parts(parts: list[bytes]) -> None:
    assert hash_parts(b"T1", *parts) == plain_hash("T1", *parts)


def test_hash_parts_separates_names_and_borders() -> None:
    seen = {
        hash_parts(b"T1", b"ab", b"c"),
        hash_parts(b"T1", b"a", b"bc"),
        hash_parts(b"T1", b"abc"),
        hash_parts(b"T1", b"abc", b""),
        hash_parts(b"T2", b"abc"),
        hash_parts(b"T1"),
    }
    assert len(seen) == 6


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 7])
def test_tree(size: int) -> None:
    data = random_bytes(size, size)
    assert SHA256.tree(data.tobytes()) == SHA256.tree(data) == plain_tree(data.tobytes())


def test_tree_takes_any_dtype_and_shape() -> None:
    array = np.arange(600_000, dtype="<f4").reshape(2, 3, -1)
    assert SHA256.tree(array) == plain_tree(array.tobytes())


def test_state_and_input() -> None:
    config, root = b"c" * 32, b"t" * 32
    assert state_hash(config, 258, root) == plain_hash("state", config, b"\2\1\0\0\0\0\0\0", root)
    assert input_hash("train", root) == plain_hash("input", b"train", root)
    assert u16(513) == b"\1\2"
    assert u64(1) == b"\1" + bytes(7)
    with pytest.raises(OverflowError):
        u16(65536)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 90), max_size=6),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    block=st.sampled_from([16, 32]),
    kind=st.sampled_from(["<f4", "<i8", "u1"]),
)
def test_joined_digests_equal_tree_over_any_split(sizes: list[int], cuts: list[int], block: int, kind: str) -> None:
    """Small blocks stand for those of 2^20 bytes, so that many borders are met."""
    patch = pytest.MonkeyPatch()
    patch.setattr(suite, "TREE_BLOCK_BYTES", block)
    try:
        itemsize = np.dtype(kind).itemsize
        arrays = [random_bytes(n * itemsize, i).view(kind) for i, n in enumerate(sizes)]
        joined = b"".join(a.tobytes() for a in arrays)
        blocks = -(-len(joined) // block)
        borders = sorted({0, blocks, *(c for c in cuts if c <= blocks)})
        digests = []
        for low, high in itertools.pairwise(borders):
            part = SHA256.joined_blocks(arrays, low, high)
            assert len(part) == high - low
            digests += part
        assert SHA256.root(len(joined), digests) == SHA256.tree(joined)
        assert digests == [hashlib.sha256(joined[i : i + block]).digest() for i in range(0, len(joined), block)]
    finally:
        patch.undo()


def test_joined_digests_with_real_blocks() -> None:
    arrays = [random_bytes(n, n) for n in (TREE_BLOCK_BYTES - 3, 5, 0, 2 * TREE_BLOCK_BYTES)]
    joined = b"".join(a.tobytes() for a in arrays)
    digests = SHA256.joined_blocks(arrays, 0, 1) + SHA256.joined_blocks(arrays, 1, 4)
    assert SHA256.root(len(joined), digests) == plain_tree(joined)


KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
T = bytes(range(0xA0, 0xC0))


def test_signed_bytes_golden() -> None:
    body = {"a": 1}
    expected = b"fedhpc-secagg/3\0M6\0\x05\x00" + T + hashlib.sha256(b'{"a":1}').digest()
    assert signed_bytes("M6", 5, T, body) == expected
    message = sign_message(KEY, "M6", 5, T, body)
    assert parse_canon(message) == {
        "body": body, "from": 5, "name": "M6", "sig": KEY.sign(expected).hex(), "t": T.hex()
    }  # fmt: skip
    assert open_message(message, "M6", 5, T, KEY.public_key(), "b") == body


def refused(data: bytes, match: str) -> None:
    with pytest.raises(PolicyError, match=match) as caught:
        open_message(data, "M6", 5, T, KEY.public_key(), "basel")
    assert "basel" in caught.value.what
    assert caught.value.exit_code == 77


def test_every_changed_field_of_a_message_is_refused() -> None:
    good = parse_canon(sign_message(KEY, "M6", 5, T, {"a": 1}))

    def changed(**fields: Any) -> bytes:
        return canon(good | fields)

    refused(changed(body={"a": 2}), "signature")
    refused(changed(name="M1"), "expected M6")
    refused(changed(**{"from": 6}), "expected M6")
    refused(changed(t="00" * 32), "another transcript")
    refused(changed(t=good["t"].upper()), "another transcript")
    refused(changed(sig="00" * 64), "signature")
    refused(changed(sig=good["sig"][:-2]), "signature")
    refused(changed(sig=""), "signature")
    refused(changed(sig=5), "signature")
    refused(changed(sig=[good["sig"]]), "signature")
    refused(changed(sig="zz" * 64), "signature")
    refused(changed(extra=1), "fields")
    for field in good:
        refused(canon({k: v for k, v in good.items() if k != field}), "fields")
    refused(b"", "malformed")
    refused(canon(good)[:-1], "malformed")
    refused(json.dumps(good).encode(), "malformed")
    refused(canon([good]), "fields")
    refused(b"\x80\x04N.", "malformed")


def test_one_form_of_a_signature() -> None:
    """Other hex forms of the same bytes are other messages: refused."""
    good = parse_canon(sign_message(KEY, "M6", 5, T, {}))
    sig = good["sig"]
    refused(canon(good | {"sig": sig.upper()}), "signature")
    refused(canon(good | {"sig": sig[:64] + " " + sig[64:]}), "signature")


def test_signature_binds_key_name_sender_transcript() -> None:
    refused(sign_message(OTHER, "M6", 5, T, {}), "signature")
    refused(sign_message(KEY, "MPI", 5, T, {}), "expected M6")
    refused(sign_message(KEY, "M6", 6, T, {}), "expected M6")
    refused(sign_message(KEY, "M6", 5, b"u" * 32, {}), "another transcript")
    # The same signature moved under another header.
    for name, sender, transcript_ in (("MPI", 5, T), ("M6", 4, T), ("M6", 5, b"u" * 32)):
        moved = parse_canon(sign_message(KEY, name, sender, transcript_, {}))
        refused(canon(moved | {"name": "M6", "from": 5, "t": T.hex()}), "signature")
