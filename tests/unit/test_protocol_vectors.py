"""The frozen round over the relay, opened by a second implementation: hashlib, hmac, AES-GCM and Python's integers.

It shares its X25519, KDF, PRG and canon with test_secure_vectors.py and imports nothing of fedhpc.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from test_secure_vectors import X9, canon, h, kdf, lanes_of, load, message, place, prg, tree, x25519

P = 2**256 - 189
V = load("protocol_round")
SITES = range(1, V["N"] + 1)
LEFT = [u for u in SITES if u not in V["lost"]]
TAU = V["tau"]
SCALARS = {u: [bytes.fromhex(d) for d in V["drawn"][u - 1]] for u in SITES}
CHAN, MASK, SELF, GROUP = ({u: SCALARS[u][i] for u in SITES} for i in range(4))
T0, T1, T2, T3 = (bytes.fromhex(V[name]) for name in ("T0", "T1", "T2", "T3"))


def u16(n: int) -> bytes:
    return struct.pack("<H", n)


def body_of(name: str, u: int) -> Any:
    return json.loads(V[name][str(u)])["body"]


def share_of(secret: bytes, coefficients: list[bytes], v: int) -> bytes:
    value = int.from_bytes(secret, "little") + sum(
        int.from_bytes(c, "little") * v**i for i, c in enumerate(coefficients, start=1)
    )
    return (value % P).to_bytes(32, "little")


def shares(u: int, v: int) -> tuple[bytes, bytes]:
    """What site u deals to site v: of b, of a."""
    drawn = SCALARS[u]
    return share_of(SELF[u], drawn[4 : 3 + TAU], v), share_of(MASK[u], drawn[3 + TAU : 2 + 2 * TAU], v)


def box_key(u: int, v: int) -> bytes:
    return kdf(T1, x25519(CHAN[u], x25519(CHAN[v], X9)), "chan", u, v)


def box(key: bytes, n: int, t: bytes, content: bytes) -> str:
    return AESGCM(key).encrypt(struct.pack("<Q", n) + bytes(4), content, t).hex()


def signed(name: str, u: int, t: bytes, body: Any) -> None:
    assert V[name][str(u)] == message(V["identity_private"][u - 1], name, u, t, body)


def words(key: str, offset: int, width: int) -> int:
    return int.from_bytes(prg(bytes.fromhex(key), offset, width), "little")


def lane_places() -> list[tuple[int, int]]:
    """(byte offset, width) of every lane."""
    offsets, _ = place(V["layout"])
    found = []
    for tensor, at in zip(V["layout"], offsets, strict=True):
        width = tensor["bits"] // 8
        count = 1
        for n in tensor["shape"]:
            count *= n
        found += [(at + width * i, width) for i in range(count)]
    return found


def test_keys_and_shares() -> None:
    assert h("T0", V["M0"].encode()) == T0
    for u in SITES:
        assert len(SCALARS[u]) == 4 + 2 * (TAU - 1)
        keys = {"chan": x25519(CHAN[u], X9).hex(), "left_s": -1, "mask": x25519(MASK[u], X9).hex()}
        signed("M1", u, T0, keys)
    assert h("T1", T0, *[u16(u) + canon(body_of("M1", u)) for u in SITES]) == T1
    for u in SITES:
        dealt = {v: shares(u, v) for v in SITES}
        body = {
            "commit": h("self", T1, u16(u), SELF[u]).hex(),
            "group": h("group", T1, u16(u), GROUP[u]).hex(),
            "hash_a": [h("share-a", T1, u16(u), u16(v), dealt[v][1]).hex() for v in SITES],
            "hash_b": [h("share-b", T1, u16(u), u16(v), dealt[v][0]).hex() for v in SITES],
            "sealed": [
                "" if v == u else box(box_key(u, v), 2, T1, dealt[v][0] + dealt[v][1] + GROUP[u]) for v in SITES
            ],
        }
        signed("M2", u, T1, body)
    assert h("T2", T1, *[u16(u) + canon(body_of("M2", u)) for u in SITES]) == T2


def test_mask_keys() -> None:
    for u in SITES:
        assert V["k_self"][u - 1] == kdf(T2, SELF[u], "self", u, 0).hex()
        for v in SITES:
            if u < v:
                edge = kdf(T2, x25519(MASK[u], x25519(MASK[v], X9)), "edge", u, v)
                assert V["k_edge"][f"{u}-{v}"] == edge.hex()
    assert V["k_tag"] == kdf(T2, b"".join(GROUP[u] for u in SITES), "tag", 0, 0).hex()


@pytest.mark.parametrize("u", SITES)
def test_masks_and_tags(u: int) -> None:
    plain = bytes.fromhex(V["encoded"][u - 1])
    masked = bytearray(plain)
    streams = [(V["k_self"][u - 1], 1)]
    streams += [(V["k_edge"][f"{min(u, v)}-{max(u, v)}"], 1 if v > u else -1) for v in SITES if v != u]
    phi = [0, 0]
    for i, (at, width) in enumerate(lane_places()):
        lane = int.from_bytes(plain[at : at + width], "little", signed=True)
        phi[width == 8] += lane * words(V["k_tag"], 4 * i, 4)
        lane += sum(sign * words(key, at, width) for key, sign in streams)
        masked[at : at + width] = (lane % 256**width).to_bytes(width, "little")
    assert masked.hex() == V["masked"][u - 1]
    assert V["tag"][u - 1] == ((phi[0] % 2**64).to_bytes(8, "little") + (phi[1] % 2**128).to_bytes(16, "little")).hex()
    for key, sign in streams:
        word = kdf(T2, bytes.fromhex(key), "tagmask", 0, 0)
        phi[0] += sign * int.from_bytes(word[:8], "little")
        phi[1] += sign * int.from_bytes(word[8:24], "little")
    tag = (phi[0] % 2**64).to_bytes(8, "little") + (phi[1] % 2**128).to_bytes(16, "little")
    if u in LEFT:
        signed("M3", u, T2, {"tag": tag.hex(), "vector": tree(bytes(masked)).hex()})


def test_survivors_answers_and_result() -> None:
    total = bytearray(len(V["Y"]) // 2)
    plain = bytearray(len(total))
    for at, width in lane_places():
        for target, source in ((total, V["masked"]), (plain, V["encoded"])):
            lanes = [int.from_bytes(bytes.fromhex(source[u - 1])[at : at + width], "little") for u in LEFT]
            target[at : at + width] = (sum(lanes) % 256**width).to_bytes(width, "little")
    assert total.hex() == V["Y"]
    assert V["M4r"].encode() == canon({"sum": tree(bytes(total)).hex(), "u3": LEFT})
    assert h("T3", T2, *[u16(u) + canon(body_of("M3", u)) for u in LEFT], tree(bytes(total))) == T3
    for u in LEFT:
        signed("M4", u, T3, {})
        answer = b"".join(shares(w, u)[0 if w in LEFT else 1] for w in SITES)
        signed("M5", u, T3, {"sealed": ["" if v == u else box(box_key(u, v), 5, T3, answer) for v in LEFT]})
    streams = [(kdf(T2, SELF[w], "self", w, 0).hex(), -1) for w in LEFT]
    for g in V["lost"]:
        streams += [(V["k_edge"][f"{min(w, g)}-{max(w, g)}"], -1 if w < g else 1) for w in LEFT]
    assert sorted(map(tuple, V["streams"])) == sorted(streams)
    opened = bytearray(total)
    for at, width in lane_places():
        lane = int.from_bytes(total[at : at + width], "little") + sum(s * words(key, at, width) for key, s in streams)
        opened[at : at + width] = (lane % 256**width).to_bytes(width, "little")
    assert opened.hex() == V["X"] == plain.hex()
    state = h("state", bytes.fromhex(V["config"]), struct.pack("<Q", 7), tree(bytes(opened)))
    assert state.hex() == V["state"]
    for u in LEFT:
        signed("M6", u, T3, {"state": V["state"], "sum": tree(bytes(opened)).hex(), "u3": LEFT})
    first = V["layout"][0]
    assert lanes_of(bytes(opened), first, 0, signed=True)[0] == 3 * ((2**31 - 1) // V["N"])
