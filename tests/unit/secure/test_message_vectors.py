"""The frozen messages that stand alone, made and read by the second implementation (second.py)."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from second import (
    canon,
    h,
    kdf,
    load,
    message,
    number,
    open_message,
    pattern,
    public_of,
    read_canon,
    read_set,
    seal,
    tree,
    u64,
    unseal,
    x25519,
)

from fedhpc.errors import PolicyError
from fedhpc.relay.rounds.ready import read_ready
from fedhpc.secure.messages import read_sites, read_survivors

V = load("messages")
N, CONFIG, PRIVATE = V["N"], bytes.fromhex(V["config"]), V["identity_private"]
TAU = 3


def test_abandon() -> None:
    v = V["ABANDON"]
    following = h("state", CONFIG, u64(v["round"]), bytes.fromhex(v["tensors_tree"]))
    assert following.hex() == v["following"]
    present = bytes.fromhex(v["present"])
    for u, text in v["messages"].items():
        assert text == message(PRIVATE[int(u) - 1], "ABANDON", int(u), present, {"state": v["following"]})
    other = json.loads(v["M6 of the same state"])
    assert other["name"] == "M6"
    assert other["body"]["state"] == v["following"]
    assert len({*map(int, v["messages"]), other["from"]}) == TAU


def test_results_of_several_attempts() -> None:
    v = V["M6"]
    bodies = []
    for u, text in v["messages"].items():
        t = bytes.fromhex(v["t"][u])
        bodies.append(open_message(text, "M6", int(u), t, public_of(PRIVATE[int(u) - 1])))
        assert read_set(bodies[-1]["u3"], N) == [1, 2, 4]
    assert len(bodies) == TAU
    assert len(set(map(canon, bodies))) == 1
    assert len(set(v["t"].values())) == 2


def test_need_and_state() -> None:
    v = V["CATCH-UP"]
    taker, giver = v["taker"], v["giver"]
    mine, theirs = (bytes.fromhex(v[f"{who}_private"]) for who in ("taker", "giver"))
    need = {"key": x25519(mine).hex(), "state": v["old_state"]}
    assert v["NEED"] == message(PRIVATE[taker - 1], "NEED", taker, CONFIG, need)
    t = h("need", canon(need))
    proof = [json.loads(text) for text in V["M6"]["messages"].values()]
    state = {"key": x25519(theirs).hex(), "m6": proof, "round": v["round"]}
    assert v["STATE"] == message(PRIVATE[giver - 1], "STATE", giver, t, state)

    # The taker's side, from what it was sent.
    body = open_message(v["STATE"], "STATE", giver, t, public_of(PRIVATE[giver - 1]))
    key = kdf(t, x25519(mine, bytes.fromhex(body["key"])), "state", giver, taker)
    data = pattern(v["pattern_bytes"])
    first, last = data[: 2**20], data[2**20 :]
    assert unseal(key, 1, t, bytes.fromhex(v["box 1"])) == last
    box = seal(key, 0, t, first)
    assert hashlib.sha256(box).hexdigest() == v["box 0, SHA-256"]
    assert len(box) == 2**20 + 16
    found = h("state", CONFIG, u64(body["round"]), tree(data)).hex()
    assert {m6["body"]["state"] for m6 in body["m6"]} == {found}


def test_configurations() -> None:
    before: dict[str, Any] = {}
    for signed in V["CONFIG"]["signed"]:
        assert (signed["epoch"], signed["previous"]) == (before.get("epoch", -1) + 1, before.get("hash", ""))
        t = bytes.fromhex(signed["hash"])
        for u in range(1, N + 1):
            assert signed["messages"][str(u)] == message(PRIVATE[u - 1], "CONFIG", u, t, {})
        before = signed
    assert before["epoch"] == 1


def test_enrolment() -> None:
    v = V["ENROL"]
    token = bytes.fromhex(v["token"])
    access, proof = (kdf(bytes(32), token, f"enrol-{half}") for half in ("access", "proof"))
    assert (access.hex(), proof.hex()) == (v["access"], v["proof"])
    assert v["access_hash"] == hashlib.sha256(v["access"].encode()).hexdigest()
    body = {"csr": v["csr"], "name": "site-5", "sign": public_of(v["private"]).public_bytes_raw().hex()}
    digest = h("enrol", b"site-5", bytes.fromhex(body["sign"]), bytes.fromhex(v["tls"]))[:16].hex()
    assert v["fingerprint"] == " ".join(digest[i : i + 4] for i in range(0, 32, 4))
    proved = hmac.digest(proof, canon(body), "sha256")
    assert v["with token"] == message(v["private"], "ENROL", 0, proved, body)
    assert v["without token"] == message(v["private"], "ENROL", 0, bytes(32), body)


def test_the_tensors_of_a_state() -> None:
    v = V["tensors of a state"]
    data = b""
    for _, kind, values in [*v["model"], *sorted(v["strategy"])]:
        data += b"".join(struct.pack("<f" if kind == "float32" else "<d", number(x)) for x in values)
    data += struct.pack("<d", number(v["W"])) + struct.pack("<q", v["rounds"]) + bytes.fromhex(v["blind"])
    assert data.hex() == v["bytes"]
    assert h("state", CONFIG, u64(v["round"]), tree(data)).hex() == v["state"]
    assert [name for name, _, _ in v["model"]] != sorted(name for name, _, _ in v["model"])  # layout order


def test_ledger_lines() -> None:
    head = bytes(32)
    entries = []
    for line in V["LEDGER"]["lines"]:
        found = read_canon(line, "entry", "head")
        head = hashlib.sha256(head + canon(found["entry"])).digest()
        assert found["head"] == head.hex()
        entries.append(found["entry"])
    vector, released, begun, opened, ended = entries
    assert vector["input"] == h("input", b"mean age", bytes(32)).hex()
    assert (vector["cohort"], released["cohort"]) == ([], [1, 2, 4])
    assert released["fingerprint"] == "00" * 32
    assert begun["cohort"] == []
    assert opened == begun | {"cohort": [1, 3, 4]}
    assert ended == opened | {"state": ended["state"]}


def test_a_box_of_m5() -> None:
    v = V["M5 box"]
    key, t = bytes.fromhex(v["key"]), bytes.fromhex(v["t"])
    assert unseal(key, 5, t, bytes.fromhex(v["box"])).hex() == v["content"]
    assert seal(key, 5, t, bytes.fromhex(v["content"])).hex() == v["box"]


def read_ready_again(text: str) -> None:
    value = read_canon(text, "base", "everyone", "layout", "purpose", "state", "tensors")
    good = value["everyone"] in (0, 1) and type(value["purpose"]) is str and value["tensors"]
    for name in ("base", "layout", "state"):
        good = good and len(bytes.fromhex(value[name])) == 32 and value[name] == value[name].lower()
    for bits, lanes in value["tensors"]:
        good = good and bits in (32, 64) and 0 <= lanes < 2**53
    if not good:
        raise ValueError(text)


def test_ready() -> None:
    v = V["READY"]
    assert canon(v["body"]).decode() == v["text"]
    read_ready_again(v["text"])
    assert read_ready(v["text"].encode())[1] == ((32, 5), (64, 3))


@pytest.mark.parametrize("text", V["READY"]["refused"])
def test_what_is_no_ready(text: str) -> None:
    refused_by_both(text, read_ready_again, read_ready)


def test_sets_and_survivors() -> None:
    v = V["sets"]
    for text, m4r in zip(v["U1 or U2"], v["M4r"], strict=True):
        members = read_set(read_canon(text), N)
        assert canon({"sum": v["sum"], "u3": members}).decode() == m4r
        assert list(read_sites(text.encode(), N, "U1")) == members
        assert list(read_survivors(m4r.encode(), N).u3) == members


@pytest.mark.parametrize("text", V["sets"]["refused"])
def test_what_is_no_set(text: str) -> None:
    refused_by_both(text, lambda t: read_set(read_canon(t), N), lambda data: read_sites(data, N, "U1"))
    m4r = f'{{"sum":"{V["sets"]["sum"]}","u3":{text}}}'
    refused_by_both(m4r, lambda t: read_set(read_canon(t, "sum", "u3")["u3"], N), lambda data: read_survivors(data, N))


def refused_by_both(text: str, second: Callable[[str], Any], first: Callable[[bytes], Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, it refuses
        second(text)
    with pytest.raises(PolicyError):
        first(text.encode())
