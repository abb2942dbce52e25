"""The frozen rounds over the relay, played by the second implementation (second.py), which knows nothing of fedhpc.

First everybody's part is made from everybody's secrets, and every message must come out as it is frozen. Then a single
site goes through the round with its own keys and the messages alone, and must arrive at the sum.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import Any

import pytest
from second import (
    blind_after,
    canon,
    h,
    half_even,
    kdf,
    lane_places,
    layout_hash,
    load,
    message,
    number,
    open_message,
    place,
    public_of,
    read_canon,
    read_set,
    salt_key,
    salt_of,
    seal,
    secret_of,
    share_of,
    state_of,
    tree,
    u16,
    u64,
    unseal,
    without_gaps,
    word,
    x25519,
)

Streams = list[tuple[bytes, int]]


class Round:
    """A frozen round, and what follows from the private values in it."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.v = values
        self.suite = values.get("suite", "sha256")
        self.sites, self.tau = range(1, values["N"] + 1), values["tau"]
        self.t0, self.t1, self.t2, self.t3 = (bytes.fromhex(values[name]) for name in ("T0", "T1", "T2", "T3"))
        self.u1, self.u2, self.u3 = (sorted(map(int, values[name])) for name in ("M1", "M2", "M3"))
        drawn = {u: [bytes.fromhex(d) for d in values["drawn"][u - 1]] for u in self.sites}
        self.chan, self.mask, self.self_, self.group = ({u: drawn[u][i] for u in self.sites} for i in range(4))
        self.of_b = {u: drawn[u][4 : 3 + self.tau] for u in self.sites}
        self.of_a = {u: drawn[u][3 + self.tau :] for u in self.sites}

    def body(self, name: str, u: int) -> Any:
        return json.loads(self.v[name][str(u)])["body"]

    def is_message(self, name: str, u: int, t: bytes, body: Any) -> None:
        assert self.v[name][str(u)] == message(self.v["identity_private"][u - 1], name, u, t, body)

    def shares(self, u: int, v: int) -> tuple[bytes, bytes]:
        """What site u deals to site v: of b, of a."""
        return share_of(self.self_[u], self.of_b[u], v), share_of(self.mask[u], self.of_a[u], v)

    def box_key(self, u: int, v: int) -> bytes:
        return kdf(self.t1, x25519(self.chan[u], x25519(self.chan[v])), "chan", u, v)

    def near(self, u: int) -> list[int]:
        """The neighbours of u in U2."""
        count, k = len(self.u2), self.v.get("degree", 0)
        if k == 0 or k >= count - 1:
            return [v for v in self.u2 if v != u]
        return sorted({self.u2[(self.u2.index(u) + s * d) % count] for d in range(1, k // 2 + 1) for s in (1, -1)})

    @cached_property
    def edges(self) -> dict[tuple[int, int], bytes]:
        return {
            (u, v): kdf(self.t2, x25519(self.mask[u], x25519(self.mask[v])), "edge", u, v)
            for u in self.u2
            for v in self.near(u)
            if u < v
        }

    def edge(self, u: int, v: int) -> bytes:
        return self.edges[min(u, v), max(u, v)]

    def self_key(self, u: int) -> bytes:
        return kdf(self.t2, self.self_[u], "self", u)

    @cached_property
    def tag_key(self) -> bytes:
        return kdf(self.t2, b"".join(self.group[u] for u in self.u2), "tag")

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        return lane_places(self.v["layout"])

    def data(self, name: str, u: int) -> bytes:
        return bytes.fromhex(self.v[name][u - 1])


def with_streams(data: bytes, places: list[tuple[int, int]], streams: Streams) -> bytes:
    """Lanes with mask words added or subtracted mod 2^k."""
    out = bytearray(data)
    for at, width in places:
        lane = int.from_bytes(data[at : at + width], "little") + sum(s * word(key, at, width) for key, s in streams)
        out[at : at + width] = (lane % 256**width).to_bytes(width, "little")
    return bytes(out)


def tag_of(data: bytes, places: list[tuple[int, int]], key: bytes) -> tuple[int, int]:
    phi = [0, 0]
    for i, (at, width) in enumerate(places):
        lane = int.from_bytes(data[at : at + width], "little", signed=True)
        phi[width == 8] += lane * word(key, 4 * i, 4)
    return phi[0], phi[1]


def tag_bytes(tag: tuple[int, int], t2: bytes, streams: Streams) -> bytes:
    """A tag, with the tag masks of streams added or subtracted."""
    narrow, wide = tag
    for key, sign in streams:
        masks = kdf(t2, key, "tagmask")
        narrow += sign * int.from_bytes(masks[:8], "little")
        wide += sign * int.from_bytes(masks[8:24], "little")
    return (narrow % 2**64).to_bytes(8, "little") + (wide % 2**128).to_bytes(16, "little")


ROUNDS = {"protocol_round": Round(load("protocol_round"))}
ROUNDS |= {name: Round(values) for name, values in load("variants").items()}


@pytest.fixture(params=ROUNDS)
def played(request: pytest.FixtureRequest) -> Round:
    return ROUNDS[request.param]


def test_the_rounds_are_as_different_as_they_should_be() -> None:
    def sets(name: str) -> tuple[int, ...]:
        one = ROUNDS[name]
        return len(one.sites), len(one.u1), len(one.u2), len(one.u3)

    assert {name: sets(name) for name in ROUNDS} == {
        "protocol_round": (4, 4, 4, 3),
        "losses": (8, 7, 6, 5),
        "sparse": (7, 7, 7, 6),
        "wide": (3, 3, 3, 3),
        "bases": (4, 4, 4, 4),
        "blake3": (4, 4, 4, 3),
    }
    assert len(ROUNDS["sparse"].edges) == 7 * 4 // 2
    assert {t["bits"] for t in ROUNDS["wide"].v["layout"]} == {64}


def test_proposal_keys_and_shares(played: Round) -> None:
    v = played.v
    m0 = read_canon(v["M0"], "attempt", "cohort", "config", "layout", "purpose", "round", "state", "tensors")
    assert m0["config"] == v["config"]
    assert m0["layout"] == layout_hash(v["layout"]).hex()
    assert m0["tensors"] == [[t["bits"], math.prod(t["shape"])] for t in v["layout"]]
    assert v["input"] == h("input", m0["purpose"].encode(), bytes.fromhex(m0["state"])).hex()
    assert h("T0", v["M0"].encode()) == played.t0
    for u in played.u1:
        assert len(played.of_b[u]) == len(played.of_a[u]) == played.tau - 1
        keys = {"chan": x25519(played.chan[u]).hex(), "left_s": -1, "mask": x25519(played.mask[u]).hex()}
        played.is_message("M1", u, played.t0, keys)
    assert h("T1", played.t0, *[u16(u) + canon(played.body("M1", u)) for u in played.u1]) == played.t1
    for u in played.u2:
        dealt = {w: played.shares(u, w) for w in played.u1}
        commit, group = h("self", played.t1, u16(u), played.self_[u]), h("group", played.t1, u16(u), played.group[u])
        sealed = [
            b"" if w == u else seal(played.box_key(u, w), 2, played.t1, dealt[w][0] + dealt[w][1] + played.group[u])
            for w in played.u1
        ]
        body = {
            "commit": commit.hex(),
            "group": group.hex(),
            "hash_a": [h("share-a", played.t1, u16(u), u16(w), dealt[w][1]).hex() for w in played.u1],
            "hash_b": [h("share-b", played.t1, u16(u), u16(w), dealt[w][0]).hex() for w in played.u1],
            "sealed": [box.hex() for box in sealed],
        }
        played.is_message("M2", u, played.t1, body)
    assert h("T2", played.t1, *[u16(u) + canon(played.body("M2", u)) for u in played.u2]) == played.t2


def test_salts(played: Round) -> None:
    """The last tensor of every vector; in the sum it is the sum of those in U3."""
    v, config = played.v, bytes.fromhex(played.v["config"])
    bases = dict(json.loads(v["M0"])["cohort"])
    assert v["layout"][-1] == {"bits": 64, "name": "salt", "scale": 0, "shape": [5]}
    total = [0] * 5
    for u in played.u2:
        key = salt_key(config, bytes.fromhex(v["identity_private"][u - 1]), u)
        words = salt_of(key, u, 7, "train", bytes.fromhex(bases[u]))
        assert played.data("encoded", u)[-40:] == b"".join(map(u64, words))
        total = [a + b for a, b in zip(total, words, strict=True)] if u in played.u3 else total
    assert bytes.fromhex(v["X"])[-40:] == b"".join(map(u64, total))


def test_mask_keys(played: Round) -> None:
    assert {f"{u}-{v}": key.hex() for (u, v), key in played.edges.items()} == played.v["k_edge"]
    in_u2 = [played.self_key(u).hex() if u in played.u2 else "" for u in played.sites]
    assert in_u2 == played.v["k_self"]
    assert played.tag_key.hex() == played.v["k_tag"]


def test_masks_and_tags(played: Round) -> None:
    for u in played.u2:
        plain, masked = played.data("encoded", u), played.data("masked", u)
        streams = [(played.self_key(u), 1), *((played.edge(u, v), 1 if v > u else -1) for v in played.near(u))]
        assert with_streams(plain, played.places, streams) == masked
        tag = tag_of(plain, played.places, played.tag_key)
        assert tag_bytes(tag, played.t2, []).hex() == played.v["tag"][u - 1]
        if u in played.u3:
            hidden = tag_bytes(tag, played.t2, streams)
            played.is_message("M3", u, played.t2, {"tag": hidden.hex(), "vector": tree(masked, played.suite).hex()})


def summed(vectors: list[bytes], places: list[tuple[int, int]]) -> bytes:
    out = bytearray(len(vectors[0]))
    for at, width in places:
        total = sum(int.from_bytes(data[at : at + width], "little") for data in vectors)
        out[at : at + width] = (total % 256**width).to_bytes(width, "little")
    return bytes(out)


def test_survivors_answers_and_result(played: Round) -> None:
    v = played.v
    total = summed([played.data("masked", u) for u in played.u3], played.places)
    plain = summed([played.data("encoded", u) for u in played.u3], played.places)
    assert total.hex() == v["Y"]
    assert v["M4r"].encode() == canon({"sum": tree(total, played.suite).hex(), "u3": played.u3})
    t3 = h("T3", played.t2, *[u16(u) + canon(played.body("M3", u)) for u in played.u3], tree(total, played.suite))
    assert t3 == played.t3
    for u in played.u3:
        played.is_message("M4", u, t3, {})
        answer = b"".join(played.shares(w, u)[0 if w in played.u3 else 1] for w in played.u2)
        sealed = [b"" if w == u else seal(played.box_key(u, w), 5, t3, answer) for w in played.u3]
        played.is_message("M5", u, t3, {"sealed": [box.hex() for box in sealed]})
    streams = [(played.self_key(w), -1) for w in played.u3]
    lost = [g for g in played.u2 if g not in played.u3]
    assert lost == v["lost"]
    streams += [(played.edge(w, g), -1 if w < g else 1) for g in lost for w in played.near(g) if w in played.u3]
    assert sorted((key.hex(), sign) for key, sign in streams) == sorted(map(tuple, v["streams"]))
    assert with_streams(total, played.places, streams) == plain == bytes.fromhex(v["X"])
    config, s = bytes.fromhex(v["config"]), plain[-40:]
    assert len(plain) == place(v["layout"])[1]
    blind = blind_after(bytes.fromhex(v["blind"]), s)
    state = state_of(without_gaps(plain, v["layout"]), config, 7, blind, played.suite).hex()
    assert state == v["state"]
    for u in played.u3:
        played.is_message("M6", u, t3, {"state": state, "sum": "", "u3": played.u3})


@pytest.mark.parametrize("which", ["first", "last"])
def test_one_site_opens_the_sum_from_its_own_keys_and_the_messages(played: Round, which: str) -> None:
    """What a site of another implementation does: open boxes, check hashes, join shares, take streams off."""
    v, config = played.v, bytes.fromhex(played.v["config"])
    me = played.u3[0 if which == "first" else -1]
    chan, mask = played.chan[me], played.mask[me]
    members = {u: public_of(private) for u, private in enumerate(v["identity_private"], start=1)}

    def read(name: str, u: int, t: bytes) -> Any:
        return open_message(v[name][str(u)], name, u, t, members[u])

    m0 = read_canon(v["M0"])
    assert [u for u, _ in m0["cohort"]] == list(played.sites)
    t0 = h("T0", v["M0"].encode())
    u1 = read_set(sorted(map(int, v["M1"])), v["N"])
    m1 = {u: read("M1", u, t0) for u in u1}
    t1 = h("T1", t0, *[u16(u) + canon(m1[u]) for u in u1])
    u2 = read_set(sorted(map(int, v["M2"])), v["N"])
    m2 = {u: read("M2", u, t1) for u in u2}
    t2 = h("T2", t1, *[u16(u) + canon(m2[u]) for u in u2])

    def key_from(u: int) -> bytes:
        return kdf(t1, x25519(chan, bytes.fromhex(m1[u]["chan"])), "chan", u, me)

    # The shares dealt to this site, each as its dealer has hashed it.
    at, mine, groups = u1.index(me), {}, []
    for u in u2:
        if u == me:
            b, a, c = *played.shares(me, me), played.group[me]
        else:
            plain = unseal(key_from(u), 2, t1, bytes.fromhex(m2[u]["sealed"][at]))
            b, a, c = plain[:32], plain[32:64], plain[64:]
        assert m2[u]["hash_b"][at] == h("share-b", t1, u16(u), u16(me), b).hex()
        assert m2[u]["hash_a"][at] == h("share-a", t1, u16(u), u16(me), a).hex()
        assert m2[u]["group"] == h("group", t1, u16(u), c).hex()
        mine[u] = (b, a)
        groups.append(c)
    tag_key = kdf(t2, b"".join(groups), "tag")

    # The set and the sum that τ sites signed.
    m4r = read_canon(v["M4r"], "sum", "u3")
    u3 = read_set(m4r["u3"], v["N"])
    m3 = {u: read("M3", u, t2) for u in u3}
    total = bytes.fromhex(v["Y"])
    assert m4r["sum"] == tree(total, played.suite).hex()
    t3 = h("T3", t2, *[u16(u) + canon(m3[u]) for u in u3], bytes.fromhex(m4r["sum"]))
    assert all(read("M4", u, t3) == {} for u in u3)

    # τ answers, this site's own among them; each share must be the one dealt.
    answering = [me, *[u for u in u3 if u != me][: v["tau"] - 1]]
    pools: dict[int, dict[int, bytes]] = {w: {} for w in u2}
    for u in answering:
        if u == me:
            shares = [mine[w][0 if w in u3 else 1] for w in u2]
        else:
            box = read("M5", u, t3)["sealed"][u3.index(me)]
            plain = unseal(key_from(u), 5, t3, bytes.fromhex(box))
            shares = [plain[i : i + 32] for i in range(0, len(plain), 32)]
        for w, share in zip(u2, shares, strict=True):
            kind = "b" if w in u3 else "a"
            assert m2[w][f"hash_{kind}"][u1.index(u)] == h(f"share-{kind}", t1, u16(w), u16(u), share).hex()
            pools[w][u] = share
    streams: Streams = []
    for w in u2:
        secret = secret_of(pools[w])
        if w in u3:
            assert m2[w]["commit"] == h("self", t1, u16(w), secret).hex()
            streams.append((kdf(t2, secret, "self", w), -1))
        else:
            assert m1[w]["mask"] == x25519(secret).hex()
            for u in played.near(w):
                if u in u3:
                    shared = x25519(secret, bytes.fromhex(m1[u]["mask"]))
                    streams.append((kdf(t2, shared, "edge", min(u, w), max(u, w)), -1 if u < w else 1))
                    if u == me:
                        assert shared == x25519(mask, bytes.fromhex(m1[w]["mask"]))
    opened = with_streams(total, played.places, streams)

    # The tag of the sum is the sum of the tags.
    narrow = sum(int.from_bytes(bytes.fromhex(m3[u]["tag"])[:8], "little") for u in u3)
    wide = sum(int.from_bytes(bytes.fromhex(m3[u]["tag"])[8:], "little") for u in u3)
    assert tag_bytes((narrow, wide), t2, streams) == tag_bytes(tag_of(opened, played.places, tag_key), t2, [])

    assert opened == summed([played.data("encoded", u) for u in u3], played.places)
    result = read("M6", me, t3)
    blind = blind_after(bytes.fromhex(v["blind"]), opened[-40:])
    state = state_of(without_gaps(opened, v["layout"]), config, 7, blind, played.suite)
    assert result == {"state": state.hex(), "sum": "", "u3": u3}


@pytest.mark.parametrize("name", ["protocol_round", "losses", "sparse", "wide"])
def test_the_largest_lanes_are_among_them(name: str) -> None:
    played = ROUNDS[name]
    at, width = played.places[0]
    for u in played.u2:
        lane = int.from_bytes(played.data("encoded", u)[at : at + width], "little", signed=True)
        assert lane == (2 ** (8 * width - 1) - 1) // len(played.sites)


def test_gaps_stay_zero(played: Round) -> None:
    used = {at + i for at, width in played.places for i in range(width)}
    gaps = set(range(place(played.v["layout"])[1])) - used
    assert gaps
    vectors = [played.data(name, u) for name in ("encoded", "masked") for u in played.u2]
    for data in (*vectors, bytes.fromhex(played.v["Y"]), bytes.fromhex(played.v["X"])):
        assert all(data[i] == 0 for i in gaps)


def test_updates_from_older_states() -> None:
    """Policy `buffered`: each base in M0 is the site's own, and an old update counts less."""
    played = ROUNDS["bases"]
    v = played.v
    cohort, present = json.loads(v["M0"])["cohort"], json.loads(v["M0"])["state"]
    assert [int(base != present) for _, base in cohort] == [int(s > 0) for s in v["behind"]]
    assert len({base for _, base in cohort}) == len(set(v["behind"])) == 3
    offsets, _ = place(v["layout"])
    for u in played.sites:
        factor = float.fromhex(v["factors"][u - 1])
        assert factor == 1.0 / v["N"] * (1.0 + v["behind"][u - 1]) ** -v["discount"]
        encoded = played.data("encoded", u)
        for tensor, at in zip(v["layout"][:-1], offsets, strict=False):  # the salt: test_salts
            width = tensor["bits"] // 8
            for i, text in enumerate(v["values"][u - 1][tensor["name"]]):
                x = number(text)
                if isinstance(x, float):
                    x = half_even(x * (factor if tensor["name"].startswith("model/") else 1.0) * 2.0 ** tensor["scale"])
                lane = encoded[at + width * i : at + width * (i + 1)]
                assert int.from_bytes(lane, "little", signed=True) == x


def test_attempt_store() -> None:
    """What a site keeps, of one in the sum and of the lost one."""
    played = ROUNDS["protocol_round"]
    v = played.v
    for u, sent in ((1, ("M1", "M2", "M3", "M4", "M5", "M6")), (3, ("M1", "M2", "M3"))):
        found = read_canon(v["attempt_file"][str(u)])
        own_b, own_a = played.shares(u, u)
        kept = found.pop("sent")
        assert found == {
            "chan": played.chan[u].hex(),
            "config": v["config"],
            "group": played.group[u].hex(),
            "m0": v["M0"].encode().hex(),
            "mask": played.mask[u].hex(),
            "own_a": own_a.hex(),
            "own_b": own_b.hex(),
            "self": played.self_[u].hex(),
            "site": u,
            "t2": played.t2.hex(),
            "version": 1,
        }
        assert sorted(kept) == list(sent)
        for name in sent:
            if str(u) in v[name]:
                assert bytes.fromhex(kept[name]).decode() == v[name][str(u)]
