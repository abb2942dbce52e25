"""The frozen vectors: this code still makes them, and a second implementation, written from docs/protocol.md, too.

The second implementation is this file. It uses hashlib, hmac, AES on single blocks, Ed25519, and Python's integers and
floats; nothing of fedhpc, no NumPy, and its own X25519.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
PREFIX = b"fedhpc-secagg/1\x00"


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((VECTORS / f"{name}.json").read_text(encoding="ascii")))


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(VECTORS / "make.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_this_code_makes_the_frozen_vectors() -> None:
    done = make()
    assert done.returncode == 0, done.stdout + done.stderr


# --- the second implementation ---


def canon(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b",".join(canon(k) + b":" + canon(value[k]) for k in sorted(value)) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(canon(v) for v in value) + b"]"
    return str(value).encode() if isinstance(value, int) else b'"' + value.encode("ascii") + b'"'


def h(name: str, *parts: bytes) -> bytes:
    data = PREFIX + name.encode() + b"\x00"
    for part in parts:
        data += struct.pack("<Q", len(part)) + part
    return hashlib.sha256(data).digest()


def tree(data: bytes) -> bytes:
    digests = [hashlib.sha256(data[i : i + 2**20]).digest() for i in range(0, len(data), 2**20)]
    return h("tree", struct.pack("<Q", len(data)), b"".join(digests))


def kdf(salt: bytes, ikm: bytes, name: str, i: int, j: int) -> bytes:
    prk = hmac.digest(salt, ikm, "sha256")
    return hmac.digest(prk, PREFIX + name.encode() + b"\x00" + struct.pack("<HH", i, j) + b"\x01", "sha256")


def prg(key: bytes, offset: int, count: int) -> bytes:
    aes = Cipher(algorithms.AES(key), modes.ECB())
    out = b""
    for block in range(offset // 16, -(-(offset + count) // 16)):
        out += aes.encryptor().update(block.to_bytes(16, "big"))
    return out[offset % 16 :][:count]


def x25519(scalar: bytes, point: bytes) -> bytes:
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


def message(private: str, name: str, sender: int, transcript: bytes, body: Any) -> str:
    signed = PREFIX + name.encode() + b"\x00" + struct.pack("<H", sender) + transcript
    signed += hashlib.sha256(canon(body)).digest()
    sig = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)).sign(signed).hex()
    return canon({"body": body, "from": sender, "name": name, "sig": sig, "t": transcript.hex()}).decode()


def number(text: str) -> float | int:
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


X9 = b"\x09" + bytes(31)
A = load("attempt")


def lanes_of(data: bytes, tensor: dict[str, Any], offset: int, *, signed: bool) -> list[int]:
    width = tensor["bits"] // 8
    count = math.prod(tensor["shape"])
    return [int.from_bytes(data[offset + width * i :][:width], "little", signed=signed) for i in range(count)]


def test_x25519_of_the_second_implementation() -> None:
    """RFC 7748, section 6.1: the reference itself is checked."""
    a = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    b = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert x25519(a, X9).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert x25519(a, x25519(b, X9)).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def test_transcript_vectors() -> None:
    vectors = load("transcript")
    for case in vectors["canon"]:
        assert canon(case["value"]).decode() == case["bytes"]
    for case in vectors["hash"]:
        assert h(case["name"], *map(bytes.fromhex, case["parts"])).hex() == case["digest"]
    for case in vectors["tree"]:
        n = case["pattern_bytes"]
        assert tree(bytes((i * i + i // 251) % 256 for i in range(n))).hex() == case["digest"]
    for case in vectors["state"]:
        parts = bytes.fromhex(case["config"]), struct.pack("<Q", case["round"]), bytes.fromhex(case["tree"])
        assert h("state", *parts).hex() == case["digest"]
    for case in vectors["input"]:
        assert h("input", case["purpose"].encode(), bytes.fromhex(case["base"])).hex() == case["digest"]


def test_attempt_transcript_and_keys() -> None:
    m0 = json.loads(A["M0"])
    assert canon(m0).decode() == A["M0"]
    assert m0["layout"] == h("layout", canon(A["layout"])).hex() == A["layout_hash"]
    assert m0["tensors"] == [[t["bits"], math.prod(t["shape"])] for t in A["layout"]]
    assert (A["offsets"], A["nbytes"]) == place(A["layout"])
    t0 = h("T0", A["M0"].encode())
    publics = []
    for u in range(3):
        chan, mask = (x25519(bytes.fromhex(A[f"{kind}_private"][u]), X9) for kind in ("chan", "mask"))
        assert A["M1"][u] == canon({"chan": chan.hex(), "left_s": -1, "mask": mask.hex()}).decode()
        publics.append(mask)
    t1 = h("T1", t0, *[struct.pack("<H", u) + body.encode() for u, body in enumerate(A["M1"], start=1)])
    t2 = h("T2", t1)
    assert (t0.hex(), t1.hex(), t2.hex()) == (A["T0"], A["T1"], A["T2"])
    for u in (1, 2, 3):
        assert A["MPI"][u - 1] == message(A["identity_private"][u - 1], "MPI", u, t2, {})
        public = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(A["identity_private"][u - 1])).public_key()
        assert public == Ed25519PublicKey.from_public_bytes(bytes.fromhex(A["identity_public"][u - 1]))
        for v in range(u + 1, 4):
            one = x25519(bytes.fromhex(A["mask_private"][u - 1]), publics[v - 1])
            other = x25519(bytes.fromhex(A["mask_private"][v - 1]), publics[u - 1])
            assert one == other
            assert kdf(t2, one, "edge", u, v).hex() == A["k_edge"][f"{u}-{v}"]


@pytest.mark.parametrize("u", [1, 2, 3])
def test_attempt_encoding_and_masks(u: int) -> None:
    encoded, masked = bytearray(A["nbytes"]), bytearray(A["nbytes"])
    for tensor, kind, offset in zip(A["layout"], A["kinds"], A["offsets"], strict=True):
        width, bits = tensor["bits"] // 8, tensor["bits"]
        weight = float.fromhex(A["weights"]["model/"][u - 1]) if tensor["name"].startswith("model/") else 1.0
        bound = (2 ** (bits - 1) - 1) // 3
        for i, text in enumerate(A["inputs"][u - 1][tensor["name"]]):
            x = number(text)
            lane = int(x) if kind == "int64" else half_even((x * weight) * 2.0 ** tensor["scale"])
            assert abs(lane) <= bound
            at = offset + width * i
            encoded[at : at + width] = lane.to_bytes(width, "little", signed=True)
            for v in (1, 2, 3):
                if v != u:
                    key = bytes.fromhex(A["k_edge"][f"{min(u, v)}-{max(u, v)}"])
                    word = int.from_bytes(prg(key, at, width), "little")
                    lane += word if v > u else -word
            masked[at : at + width] = (lane % 2**bits).to_bytes(width, "little")
    assert encoded.hex() == A["encoded"][u - 1]
    assert masked.hex() == A["masked"][u - 1]


def test_attempt_sum_decoding_and_results() -> None:
    summed = bytearray(A["nbytes"])
    masked = [bytes.fromhex(y) for y in A["masked"]]
    encoded = [bytes.fromhex(x) for x in A["encoded"]]
    raw = b""
    for tensor, kind, offset in zip(A["layout"], A["kinds"], A["offsets"], strict=True):
        width, bits = tensor["bits"] // 8, tensor["bits"]
        totals = [
            sum(c) % 2**bits for c in zip(*(lanes_of(y, tensor, offset, signed=False) for y in masked), strict=True)
        ]
        plain = [sum(c) for c in zip(*(lanes_of(x, tensor, offset, signed=True) for x in encoded), strict=True)]
        for i, (lane, exact) in enumerate(zip(totals, plain, strict=True)):
            assert lane == exact % 2**bits
            at = offset + width * i
            summed[at : at + width] = lane.to_bytes(width, "little")
            if kind == "int64":
                value: float | int = exact
                raw += struct.pack("<q", exact)
            else:
                code = "<f" if kind == "float32" else "<d"
                value = struct.unpack(code, struct.pack(code, float(exact) * 2.0 ** -tensor["scale"]))[0]
                raw += struct.pack(code, value)
            assert value == number(A["decoded"][tensor["name"]][i])
    assert summed.hex() == A["sum"]
    assert tree(bytes(summed)).hex() == A["sum_tree"]
    state = h("state", bytes.fromhex(A["config"]), struct.pack("<Q", 7), tree(raw)).hex()
    assert state == A["state"]
    body = {"state": state, "sum": A["sum_tree"], "u3": [1, 2, 3]}
    t2 = bytes.fromhex(A["T2"])
    assert A["M6"] == [message(A["identity_private"][u - 1], "M6", u, t2, body) for u in (1, 2, 3)]


def test_gaps_are_zero_before_and_after_masking() -> None:
    used = set()
    for tensor, offset in zip(A["layout"], A["offsets"], strict=True):
        used |= set(range(offset, offset + math.prod(tensor["shape"]) * tensor["bits"] // 8))
    gaps = set(range(A["nbytes"])) - used
    assert len(gaps) == 4 + 8 + 8
    for data in (*A["encoded"], *A["masked"], A["sum"]):
        assert all(bytes.fromhex(data)[i] == 0 for i in gaps)


def test_rounding_vectors() -> None:
    r = load("rounding")
    key = kdf(bytes.fromhex(r["input"]), bytes.fromhex(r["config"]), "rounding", r["site"], 0)
    assert key.hex() == r["key"]
    first = 0
    moved = 0
    for tensor in r["layout"]:
        lanes = []
        for i, text in enumerate(r["values"][tensor["name"]], start=first):
            x = number(text)
            if isinstance(x, int):
                lanes.append(x)
                continue
            v = (x * float.fromhex(r["weight"])) * 2.0 ** tensor["scale"]
            word = struct.unpack("<I", prg(key, 4 * i, 4))[0]
            lanes.append(math.floor(v) + ((v - math.floor(v)) * 2.0**32 > word))
            moved += lanes[-1] != half_even(v)
        assert lanes == r["lanes"][tensor["name"]]
        first += len(lanes)
    assert moved  # otherwise rounding to the nearest would pass too


# --- the outer step, whatever the processor can do ---

FOUND = np.show_config(mode="dicts")["SIMD Extensions"]["found"]  # type: ignore[call-overload]


def test_outer_steps_without_the_processor_s_extensions() -> None:
    """NumPy picks other loops when extensions are switched off; the bits must stay.

    Which groups there are depends on processor and NumPy; those that NumPy will not switch off are passed over.
    """
    switched_off = 0
    for off in (FOUND[n:] for n in range(len(FOUND))):
        shown = subprocess.run(
            [sys.executable, "-c", "from numpy._core._multiarray_umath import __cpu_features__ as f; print(f)"],
            env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(off)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if shown.returncode or any(f"'{name}': True" in shown.stdout for name in off):
            continue
        switched_off += 1
        done = make("--only", "strategies", NPY_DISABLE_CPU_FEATURES=" ".join(off))
        assert done.returncode == 0, done.stdout + done.stderr
    assert switched_off or not FOUND
