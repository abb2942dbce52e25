"""The frozen vectors: this code still makes them, and a second implementation, written from docs/protocol.md, too.

The second implementation is this file with second.py. Here: the notation and the `mpi` exchange; rounds over the relay
are in test_protocol_vectors.py, messages alone in test_message_vectors.py.
"""

from __future__ import annotations

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
from second import (
    VECTORS,
    X9,
    Chain,
    blind_after,
    canon,
    h,
    half_even,
    kdf,
    layout_hash,
    load,
    mac,
    message,
    number,
    pattern,
    place,
    prg,
    result_hash,
    salt_key,
    salt_of,
    state_of,
    tree,
    x25519,
)

ROOT = Path(__file__).parents[3]


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
        assert tree(pattern(n), case["suite"]).hex() == case["digest"]
    for case in vectors["state"]:
        parts = bytes.fromhex(case["config"]), struct.pack("<Q", case["round"]), bytes.fromhex(case["tree"])
        assert h("state", *parts).hex() == case["digest"]
    for case in vectors["input"]:
        assert h("input", case["purpose"].encode(), bytes.fromhex(case["base"])).hex() == case["digest"]


def test_salt_vectors() -> None:
    v = load("transcript")["salt"]
    config, key = bytes.fromhex(v["config"]), bytes.fromhex(v["k_salt"])
    assert salt_key(config, bytes.fromhex(v["private"]), v["site"]) == key
    for case in v["salts"]:
        words = salt_of(key, v["site"], case["round"], case["purpose"], bytes.fromhex(case["base"]))
        assert list(map(str, words)) == case["words"]
        assert all(100 * word < 2**63 for word in words)
    blind = bytes(32)
    for s, expected in zip(v["S"], v["blinds"][1:], strict=True):
        blind = blind_after(blind, bytes.fromhex(s))
        assert blind.hex() == expected
    assert [t["name"] for t in v["layout"]] == ["salt", "n", "salt"]
    assert layout_hash(v["layout"]).hex() == v["layout_hash"]
    keyed = layout_hash(v["layout"], config, v["layout_round"], bytes.fromhex(v["S"][0]))
    assert keyed.hex() == v["layout_hash_in_M0"] != v["layout_hash"]


def test_attempt_transcript_and_keys() -> None:
    m0 = json.loads(A["M0"])
    assert canon(m0).decode() == A["M0"]
    keyed = layout_hash(A["layout"], bytes.fromhex(A["config"]), 7, bytes.fromhex(A["layout_salt"]))
    assert m0["layout"] == keyed.hex()
    assert A["layout"][-1] == {"bits": 64, "name": "salt", "scale": 0, "shape": [5]}
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
            assert kdf(t2, one, "chain", u, v).hex() == A["chains"][f"{u}-{v}"]


def test_the_sums_of_one_agreement() -> None:
    """The first, whose proposal is in T2 and whose M6 names no sum, and two statistics: all that is said."""
    t2 = head = bytes.fromhex(A["T2"])
    chains = {pair: Chain(t2, bytes.fromhex(ck), *map(int, pair.split("-"))) for pair, ck in A["chains"].items()}
    before = bytes(32)

    def macs(u: int, i: int, name: str) -> str:
        """Of site u for the two others."""
        keys = {v: chains[f"{min(u, v)}-{max(u, v)}"].mac_key() for v in (1, 2, 3) if v != u}
        return b"".join(mac(key, name, u, v, i, head, before) for v, key in keys.items()).hex()

    for i, one in enumerate([A, *A["next"]], start=1):
        head = h("sum", head, struct.pack("<Q", i), one["M0"].encode())
        assert head.hex() == one["head"]
        t0 = h("T0", one["M0"].encode()).hex()
        if i > 1:
            assert one["propose"] == [t0 + macs(u, i, "proposal") for u in (1, 2, 3)]
        assert one["ready"] == [macs(u, i, "ready") for u in (1, 2, 3)]
        assert {pair: chain.edge(head).hex() for pair, chain in chains.items()} == one["k_edge"]
        body = {"state": one["state"], "sum": "" if one is A else one["sum"], "u3": [1, 2, 3]}
        before = result_hash(body)
        signed = body | {"state": one.get("signed_state", one["state"])}
        assert one["M6"] == [message(A["identity_private"][u - 1], "M6", u, head, signed) for u in (1, 2, 3)]


@pytest.mark.parametrize("u", [1, 2, 3])
def test_attempt_encoding_and_masks(u: int) -> None:
    encoded, masked = bytearray(A["nbytes"]), bytearray(A["nbytes"])
    key = salt_key(bytes.fromhex(A["config"]), bytes.fromhex(A["identity_private"][u - 1]), u)
    words = salt_of(key, u, 7, "train", bytes.fromhex(json.loads(A["M0"])["state"]))
    assert A["inputs"][u - 1]["salt"] == list(map(str, words))
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
    raw, salt = raw[:-40], raw[-40:]
    assert summed.hex() == A["sum"]
    assert tree(bytes(summed)).hex() == A["sum_tree"]
    blind = blind_after(bytes.fromhex(A["blind"]), salt)
    state = state_of(raw, bytes.fromhex(A["config"]), 7, blind).hex()
    assert state == A["state"]
    body = {"state": state, "sum": "", "u3": [1, 2, 3]}
    head = bytes.fromhex(A["head"])
    assert A["M6"] == [message(A["identity_private"][u - 1], "M6", u, head, body) for u in (1, 2, 3)]


def test_gaps_are_zero_before_and_after_masking() -> None:
    used = set()
    for tensor, offset in zip(A["layout"], A["offsets"], strict=True):
        used |= set(range(offset, offset + math.prod(tensor["shape"]) * tensor["bits"] // 8))
    gaps = set(range(A["nbytes"])) - used
    assert len(gaps) == 4 + 8 + 8 + 4
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
