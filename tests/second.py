"""The second implementation: what docs/protocol.md section 2 defines, in plain Python written from that text.

hashlib, hmac, AES on single blocks, AES-GCM, Ed25519 and Python's integers; nothing of fedhpc, no NumPy, and its own
X25519, HKDF, Shamir and canonical JSON. Slow, and open to an observer of its timing: it only checks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VECTORS = Path(__file__).parent / "vectors"
PREFIX = b"fedhpc-secagg/3\x00"
P = 2**256 - 189
X9 = b"\x09" + bytes(31)


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((VECTORS / f"{name}.json").read_text(encoding="ascii")))


def u16(n: int) -> bytes:
    return struct.pack("<H", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


# --- canonical JSON, hashes, keys


def canon(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b",".join(canon(k) + b":" + canon(value[k]) for k in sorted(value)) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(canon(v) for v in value) + b"]"
    return str(value).encode() if isinstance(value, int) else b'"' + value.encode("ascii") + b'"'


def read_canon(text: str, *fields: str) -> Any:
    """The value of canonical text, an object of exactly these fields if some are named; ValueError for other texts."""
    value = json.loads(text)
    if _has_no_form(value) or canon(value).decode() != text or (fields and sorted(value) != sorted(fields)):
        raise ValueError(text)
    return value


def _has_no_form(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_no_form(v) for v in value.values())
    if isinstance(value, list):
        return any(_has_no_form(v) for v in value)
    return value is None or isinstance(value, bool | float)


def h(name: str, *parts: bytes) -> bytes:
    data = PREFIX + name.encode() + b"\x00"
    for part in parts:
        data += u64(len(part)) + part
    return hashlib.sha256(data).digest()


def tree(data: bytes, suite: str = "sha256") -> bytes:
    digest = {"sha256": hashlib.sha256, "blake3": blake3}[suite]
    digests = [digest(data[i : i + 2**20]).digest() for i in range(0, len(data), 2**20)]
    return h("tree", suite.encode(), u64(len(data)), b"".join(digests))


def kdf(salt: bytes, ikm: bytes, name: str, i: int = 0, j: int = 0) -> bytes:
    prk = hmac.digest(salt, ikm, "sha256")
    return hmac.digest(prk, PREFIX + name.encode() + b"\x00" + struct.pack("<HH", i, j) + b"\x01", "sha256")


def prg(key: bytes, offset: int, count: int) -> bytes:
    aes = Cipher(algorithms.AES(key), modes.ECB())
    out = b""
    for block in range(offset // 16, -(-(offset + count) // 16)):
        out += aes.encryptor().update(block.to_bytes(16, "big"))
    return out[offset % 16 :][:count]


def word(key: bytes, offset: int, width: int) -> int:
    return int.from_bytes(prg(key, offset, width), "little")


def seal(key: bytes, n: int, t: bytes, content: bytes) -> bytes:
    return AESGCM(key).encrypt(u64(n) + bytes(4), content, t)


def unseal(key: bytes, n: int, t: bytes, box: bytes) -> bytes:
    return AESGCM(key).decrypt(u64(n) + bytes(4), box, t)


def x25519(scalar: bytes, point: bytes = X9) -> bytes:
    """RFC 7748, section 5."""
    p = 2**255 - 19
    k = int.from_bytes(scalar, "little") & ~7 & ~(128 << 248) | (64 << 248)
    u = int.from_bytes(point, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % p, b * b % p, d * a % p, c * b % p
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % p, u * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


# --- salt, blind, the hash of a layout


def salt_key(config: bytes, private: bytes, u: int) -> bytes:
    return kdf(config, private, "salt", u)


def salt_of(key: bytes, u: int, round_: int, purpose: str, base: bytes) -> list[int]:
    stream = prg(kdf(h("salt", u64(round_), purpose.encode(), base), key, "salt", u), 0, 40)
    return [int.from_bytes(stream[i : i + 8], "little") % 2**56 for i in range(0, 40, 8)]


def blind_after(blind: bytes, salt: bytes) -> bytes:
    return kdf(blind, salt, "blind")


def layout_hash(layout: list[dict[str, Any]], config: bytes = b"", round_: int = 0, salt: bytes = b"") -> bytes:
    """As it stands in M0; `salt`: S of the sum that fixed the scales, if they are not public."""
    plain = h("layout", canon(layout))
    if not salt:
        return plain
    return hmac.digest(kdf(h("layout-key", config, u64(round_)), salt, "layout"), plain, "sha256")


def without_gaps(data: bytes, layout: list[dict[str, Any]]) -> bytes:
    """The bytes of the named tensors, joined."""
    sizes = [math.prod(t["shape"]) * t["bits"] // 8 for t in layout[:-1]]
    return b"".join(data[at : at + size] for at, size in zip(place(layout)[0], sizes, strict=False))


def state_of(model: bytes, config: bytes, round_: int, blind: bytes, suite: str = "sha256") -> bytes:
    """A state without W and strategy, after `round_` training rounds."""
    return h("state", config, u64(round_), tree(model + bytes(8) + u64(round_) + blind, suite))


# --- Shamir's shares


def share_of(secret: bytes, coefficients: list[bytes], v: int) -> bytes:
    value = int.from_bytes(secret, "little")
    for power, coefficient in enumerate(coefficients, start=1):
        value += int.from_bytes(coefficient, "little") * v**power
    return (value % P).to_bytes(32, "little")


def secret_of(shares: dict[int, bytes]) -> bytes:
    """Lagrange's interpolation at 0."""
    total = 0
    for v, share in shares.items():
        value = int.from_bytes(share, "little")
        for w in shares:
            if w != v:
                value = value * w * pow(w - v, -1, P) % P
        total += value
    return (total % P).to_bytes(32, "little")


# --- signed messages


def signed_bytes(name: str, sender: int, t: bytes, body: Any) -> bytes:
    return PREFIX + name.encode() + b"\x00" + u16(sender) + t + hashlib.sha256(canon(body)).digest()


def message(private: str, name: str, sender: int, t: bytes, body: Any) -> str:
    sig = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)).sign(signed_bytes(name, sender, t, body)).hex()
    return canon({"body": body, "from": sender, "name": name, "sig": sig, "t": t.hex()}).decode()


def public_of(private: str) -> Ed25519PublicKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)).public_key()


def open_message(text: str, name: str, sender: int, t: bytes, key: Ed25519PublicKey) -> Any:
    """The body of a message, everything about it checked; ValueError or InvalidSignature otherwise."""
    found = read_canon(text, "body", "from", "name", "sig", "t")
    if (found["name"], found["from"], found["t"]) != (name, sender, t.hex()):
        raise ValueError("another message")
    if not re.fullmatch("[0-9a-f]{128}", found["sig"]):
        raise ValueError("no signature")
    key.verify(bytes.fromhex(found["sig"]), signed_bytes(name, sender, t, found["body"]))
    return found["body"]


def read_set(value: Any, sites: int) -> list[int]:
    """U1, U2 or u3: rising site numbers; ValueError otherwise."""
    if not isinstance(value, list) or any(type(u) is not int or not 1 <= u <= sites for u in value):
        raise ValueError("not a list of sites")
    if value != sorted(set(value)):
        raise ValueError("not rising")
    return value


# --- sums in one job


def result_hash(body: Any) -> bytes:
    return h("M6", canon(body))


def mac(key: bytes, name: str, sender: int, to: int, i: int, head: bytes, before: bytes) -> bytes:
    """Of site `sender` for site `to` in sum i; `before`: the hash of its M6 of sum i − 1, zeros for the first."""
    said = PREFIX + name.encode() + b"\x00" + u16(sender) + u16(to) + u64(i) + head + before
    return hmac.digest(key, said, "sha256")


class Chain:
    """What two sites of a job share, from ck_1 on."""

    def __init__(self, t2: bytes, ck: bytes, low: int, high: int) -> None:
        self.t2, self.ck, self.pair = t2, ck, (low, high)

    def mac_key(self) -> bytes:
        return kdf(self.t2, self.ck, "mac", *self.pair)

    def edge(self, head: bytes) -> bytes:
        """The edge key of this sum; the chain is that of the next one then."""
        key = kdf(head, self.ck, "edge", *self.pair)
        self.ck = kdf(head, self.ck, "next", *self.pair)
        return key


# --- numbers


def number(text: str | int) -> float | int:
    if isinstance(text, int):
        return text
    return float.fromhex(text) if "x" in text or text in ("inf", "-inf", "nan") else int(text)


def half_even(v: float) -> int:
    floor = math.floor(v)
    rest = v - floor
    return floor + 1 if rest > 0.5 or (rest == 0.5 and floor % 2 == 1) else floor


def place(layout: list[dict[str, Any]]) -> tuple[list[int], int]:
    """Byte offsets of the tensors, and the bytes of the vector."""
    offsets, at = [], 0
    for tensor in layout:
        at = (at + 15) // 16 * 16
        offsets.append(at)
        at += math.prod(tensor["shape"]) * tensor["bits"] // 8
    return offsets, at


def lane_places(layout: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(byte offset, width) of every lane, by lane number."""
    found = []
    for tensor, at in zip(layout, place(layout)[0], strict=True):
        width = tensor["bits"] // 8
        found += [(at + width * i, width) for i in range(math.prod(tensor["shape"]))]
    return found


def pattern(nbytes: int) -> bytes:
    """The bytes that stand for large contents in the vectors."""
    return bytes((i * i + i // 251) % 256 for i in range(nbytes))
