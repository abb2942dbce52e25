"""Frozen vectors of docs/protocol.md, made by this implementation and checked by an independent one in the tests.

python tests/vectors/make.py            compare with the files, exit 1 where they differ
python tests/vectors/make.py --write    write the files anew: only together with a change of the protocol
python tests/vectors/make.py --only strategies    one of them
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from lone_messages import lone_messages, pattern
from protocol_round import protocol_round, variants
from salted import add_salt, next_state, salt_vectors

from fedhpc.agreement.strategy_settings import StrategySettings
from fedhpc.federation.vector import Vector
from fedhpc.rounds.strategy import make_strategy
from fedhpc.secure import labels
from fedhpc.secure.keys import AttemptKey, derive
from fedhpc.secure.masks import Masks
from fedhpc.secure.pairwise import Member, PairwiseAttempt
from fedhpc.secure.proposal import Proposal, one_base
from fedhpc.secure.ratchet import Ratchet
from fedhpc.secure.ring import Codec, Layout, Tensor, lanes_of
from fedhpc.secure.salt import layout_key
from fedhpc.secure.suite import SHA256, suite_named
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, canon, hash_parts, input_hash, state_hash

HERE = Path(__file__).parent


def secret(*words: object) -> bytes:
    """A fixed private key for a vector [32]."""
    return hashlib.sha256(" ".join(map(str, ("fedhpc test vector", *words))).encode()).digest()


def transcript() -> dict[str, Any]:
    """canon, H, Tree, state and input."""
    values: list[Any] = [
        {},
        [],
        "",
        0,
        -(2**53) + 1,
        {"b": [1, -2, {"z": "~ !#"}], "a": "plain", "B": [[]]},
        {"body": {}, "from": 100, "name": "M6", "sig": "00ff", "t": ""},
    ]
    parts: list[list[bytes]] = [[], [b""], [b"", b""], [b"ab", b"c"], [b"a", b"bc"], [bytes(300)]]
    sizes = [0, 1, 1000, TREE_BLOCK_BYTES - 1, TREE_BLOCK_BYTES, TREE_BLOCK_BYTES + 1, 2 * TREE_BLOCK_BYTES]
    config, base = secret("config"), secret("base")
    return {
        "salt": salt_vectors(config, secret("identity", 3), base),
        "canon": [{"value": v, "bytes": canon(v).decode("ascii")} for v in values],
        "hash": [
            {"name": name, "parts": [p.hex() for p in ps], "digest": hash_parts(name.encode(), *ps).hex()}
            for name in ("T0", "layout")
            for ps in parts
        ],
        "tree": [
            {"suite": suite.name, "pattern_bytes": n, "digest": suite.tree(pattern(n)).hex()}
            for suite in (SHA256, suite_named("blake3"))
            for n in sizes
        ],
        "state": [
            {"config": config.hex(), "round": r, "tree": base.hex(), "digest": state_hash(config, r, base).hex()}
            for r in (0, 1, 2**40)
        ],
        "input": [
            {"purpose": p, "base": b.hex(), "digest": input_hash(p, b).hex()}
            for p, b in (("train", base), ("weights", bytes(32)), ("mean age", bytes(32)))
        ],
    }


def attempt() -> dict[str, Any]:
    """One whole attempt of the `mpi` exchange with three sites, from values to signed results."""
    config, base = secret("config"), secret("base")
    layout = Layout(
        [
            Tensor("model/weight", "float32", (3, 5), 27),  # 60 bytes, a gap of 4
            Tensor("measured/loss", "float64", (3,), 40),  # 24 bytes, a gap of 8
            Tensor("measured/rows", "int64", (), 0),  # 8 bytes, a gap of 8
            Tensor("model/empty", "float32", (0,), 27),
            Tensor("model/bias", "float32", (7,), 30),
        ],
        salted=True,  # after a gap of 4
    )
    counts = hashlib.sha512(b"S of the sum that fixed the scales").digest()[:40]
    keyed = layout_key(config, 7, counts)
    weights = (0.5, 0.3, 0.2)
    sites = len(weights)
    identities = [Ed25519PrivateKey.from_private_bytes(secret("identity", u)) for u in (1, 2, 3)]
    roster = [Member(u, f"site-{u}", key.public_key()) for u, key in enumerate(identities, start=1)]
    proposal = Proposal(
        attempt=4503599627370497,
        cohort=one_base((1, 2, 3), base),
        config=config,
        layout=layout.hash_under(keyed),
        purpose="train",
        round_=7,
        state=base,
        tensors=tuple((b, n) for b, n in layout.shapes()),
    )
    fresh = [{name: secret(name, u) for name in ("chan", "mask")} for u in (1, 2, 3)]
    attempts = [
        PairwiseAttempt(
            proposal,
            u,
            identities[u - 1],
            roster,
            fresh=(AttemptKey(fresh[u - 1]["chan"]), AttemptKey(fresh[u - 1]["mask"])),
        )
        for u in (1, 2, 3)
    ]
    keys = [a.keys() for a in attempts]
    signatures = [a.receive_keys(keys) for a in attempts]
    for a in attempts:
        a.receive_signatures(signatures)
    chains = chains_of(attempts)
    ratchets = [Ratchet(u, identities[u - 1], roster, a.t2, a.chains()) for u, a in enumerate(attempts, start=1)]
    ready = [r.first(attempts[0].proposal) for r in ratchets]
    for r in ratchets:
        r.receive_ready(ready)
    edges_of = [r.edges() for r in ratchets]

    inputs, encoded, masked = [], [], []
    total = np.zeros(layout.nbytes, dtype=np.uint8)
    codec = Codec(sites, "vector")
    for u, weight in enumerate(weights, start=1):
        vector = Vector(layout)
        vector.fill(attempt_values(u, layout))
        add_salt(vector, config, secret("identity", u), u, 7, base)
        inputs.append(_texts(vector))
        own = Codec(sites, f"site-{u}", {t.name: weight for t in layout.tensors if t.name.startswith("model/")})
        pieces = layout.pieces(0, layout.nbytes)
        for piece in pieces:
            own.check(piece.values_in(vector.buffer), piece)
            own.encode(piece.values_in(vector.buffer), piece.lanes_in(vector.buffer), piece)
        encoded.append(vector.buffer.tobytes())
        masks = Masks(edges_of[u - 1])
        for piece in pieces:
            lanes = lanes_of(vector.buffer, piece.start, piece.stop, piece.tensor.bits)
            masks.add(lanes, piece.start)
            into = lanes_of(total, piece.start, piece.stop, piece.tensor.bits)
            np.add(into, lanes, out=into)
        masked.append(vector.buffer.tobytes())

    summed = Vector(layout)
    summed.buffer[:] = total
    for piece in layout.pieces(0, layout.nbytes):
        codec.decode(piece.lanes_in(summed.buffer), piece.values_in(summed.buffer), piece)
    decoded, blind = _texts(summed), secret("blind")
    # As if the decoded sums were the next model.
    following = next_state(list(summed.views().values()), config, 7, blind, summed.salt.tobytes())
    edges = {
        f"{u}-{v}": key.hex()
        for u, found in enumerate(edges_of, start=1)
        for v, (key, sign) in zip([w for w in (1, 2, 3) if w != u], found, strict=True)
        if sign > 0
    }
    for r in ratchets:
        r.settled(following, b"")  # what makes the next model is not named beside it
    results = [r.sign_result().decode("ascii") for r in ratchets]
    return {
        "chains": chains,
        "head": ratchets[0].head.hex(),
        "ready": [m.hex() for m in ready],
        "next": further_sums(ratchets, proposal),
        "config": config.hex(),
        "layout": layout.as_json(),
        "layout_salt": counts.hex(),
        "blind": blind.hex(),
        "kinds": [t.kind for t in layout.tensors],
        "offsets": layout.offsets,
        "nbytes": layout.nbytes,
        "weights": {"model/": [w.hex() for w in weights]},
        "identity_private": [secret("identity", u).hex() for u in (1, 2, 3)],
        "identity_public": [m.sign.public_bytes_raw().hex() for m in roster],
        "chan_private": [f["chan"].hex() for f in fresh],
        "mask_private": [f["mask"].hex() for f in fresh],
        "M0": attempts[0].proposal.decode("ascii"),
        "M1": [k[32:].decode("ascii") for k in keys],
        "T0": keys[0][:32].hex(),
        "T1": hash_parts(labels.HASH_T1, keys[0][:32], *[bytes([u, 0]) + k[32:] for u, k in enumerate(keys, 1)]).hex(),
        "T2": attempts[0].t2.hex(),
        "MPI": [s.decode("ascii") for s in signatures],
        "k_edge": edges,
        "inputs": inputs,
        "encoded": [b.hex() for b in encoded],
        "masked": [b.hex() for b in masked],
        "sum": total.tobytes().hex(),
        "sum_tree": SHA256.tree(total).hex(),
        "decoded": decoded,
        "state": following.hex(),
        "M6": results,
    }


def chains_of(attempts: list[PairwiseAttempt]) -> dict[str, str]:
    """ck_1 of every two sites."""
    return {f"{u}-{v}": key.hex() for u, a in enumerate(attempts, start=1) for v, key in a.chains().items() if u < v}


def further_sums(ratchets: list[Ratchet], before: Proposal) -> list[dict[str, Any]]:
    """Two more sums with the keys of one agreement: a statistic, whose result is compared; then one that is signed."""
    found = []
    for number in (2, 3):
        m0 = replace(before, cohort=one_base((1, 2, 3), bytes(32)), purpose=f"sum {number}", round_=6 + number)
        proposals = [r.propose(m0.to_bytes()) for r in ratchets]
        ready = [r.receive_proposals(proposals) for r in ratchets]
        for r in ratchets:
            r.receive_ready(ready)
        edges = [r.edges() for r in ratchets]
        state, sum_tree = secret("state", number), secret("sum", number)
        for r in ratchets:
            r.settled(state, sum_tree)
        following = secret("model that is made of the sums")
        found.append(
            {
                "M0": m0.to_bytes().decode("ascii"),
                "head": ratchets[0].head.hex(),
                "propose": [m.hex() for m in proposals],
                "ready": [m.hex() for m in ready],
                "k_edge": {"1-2": edges[0][0][0].hex(), "1-3": edges[0][1][0].hex(), "2-3": edges[1][1][0].hex()},
                "state": state.hex(),
                "sum": sum_tree.hex(),
                "signed_state": following.hex(),
                "M6": [r.sign_result(following).decode("ascii") for r in ratchets],
            }
        )
    return found


def attempt_values(site: int, layout: Layout) -> dict[str, np.ndarray[Any, Any]]:
    """Values of `site` for each tensor: small and large, both signs, −0.0, ties, the largest lanes that are allowed."""
    bound32, bound64 = ((1 << 31) - 1) // 3, ((1 << 63) - 1) // 3
    weight = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.1,
        2.0**-28,
        3 * 2.0**-28,
        -(2.0**-28),
        1e-40,
        5.25,
        -5.25,
        3.0,
        0.7,
        2.0**-126,
        1e-9,
    ]
    loss = [1234.5678901234 * site, -(2.0**-41), 2.0**20 / (site + 2)]
    bias = [(bound32 >> 7 << 7) * 2.0**-30, -(2.0**-31), 0.25, -0.25, 1 / 3, 0.0, 0.5]
    return {
        "model/weight": (np.array(weight, dtype=np.float32) * np.float32(site)).reshape(3, 5),
        "measured/loss": np.array(loss),
        "measured/rows": np.array([bound64, -bound64, 12][site - 1], dtype=np.int64),
        "model/empty": np.zeros(0, dtype=np.float32),
        "model/bias": np.array(bias, dtype=np.float32),
    }


def rounding() -> dict[str, Any]:
    """Stochastic rounding with the public words of one site; a tensor before it moves the lane numbers."""
    config, input_ = secret("config"), input_hash("train", secret("base"))
    site, weight = 2, 0.3
    layout = Layout([Tensor("rows", "int64", (3,)), Tensor("a", "float32", (9,), 20), Tensor("b", "float64", (8,), 3)])
    vector = Vector(layout)
    a = [0.5, -0.5, 1e-6, -1e-6, 7.0, -0.0, 0.1, -0.1, 123.456]
    b = [0.05, -0.05, 1.0, 0.125, 3.3, -3.3, 1e5 + 0.7, -1e5 - 0.7]
    vector.fill({"rows": np.array([5, -5, 0]), "a": np.array(a, dtype=np.float32), "b": np.array(b)})
    values = {n: [_text(x) for x in v.tolist()] for n, v in vector.views().items()}
    key = derive(input_, config, labels.KEY_ROUNDING, site)
    codec = Codec(3, "vector", {"a": weight, "b": weight}, key)
    for piece in layout.pieces(0, layout.nbytes):
        codec.check(piece.values_in(vector.buffer), piece)
        codec.encode(piece.values_in(vector.buffer), piece.lanes_in(vector.buffer), piece)
    lanes = {
        p.tensor.name: vector.buffer[p.start : p.stop].view(f"<i{p.tensor.lane_bytes}").tolist()
        for p in layout.pieces(0, layout.nbytes)
    }
    return {
        "config": config.hex(),
        "input": input_.hex(),
        "site": site,
        "key": key.hex(),
        "weight": weight.hex(),
        "layout": layout.as_json(),
        "values": values,
        "lanes": lanes,
    }


def outer_tensor(dtype: str, size: int, seed: int) -> np.ndarray[Any, Any]:
    """Values over many magnitudes, from SHAKE-256: an integer mantissa times a power of two, both exact."""
    words = np.frombuffer(hashlib.shake_256(b"%d" % seed).digest(8 * size), dtype="<u4").reshape(-1, 2)
    mantissa = (words[:, 0] >> 8).astype(np.int64) - (1 << 23)
    span = 40 if dtype == "float32" else 300
    exponent = (words[:, 1] % (2 * span)).astype(np.int32) - span - 23
    values = np.ldexp(mantissa.astype(np.float64), exponent).astype(dtype)
    info = np.finfo(dtype)
    root = 1e18 if dtype == "float32" else 1e150  # squares stay finite
    special = [0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, root, -root, info.eps, 1.0]
    values[: len(special)] = special
    return values


def strategies() -> dict[str, Any]:
    """SHA-256 of model and state after each of five outer steps."""
    table: dict[str, Any] = {}
    for name in ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "diloco"):
        settings = [StrategySettings(name), StrategySettings(name, lr=0.3)]  # type: ignore[arg-type]
        for given in settings:
            strategy = make_strategy(given)
            for dtype in ("float32", "float64"):
                model = outer_tensor(dtype, 1037, 0)
                state = {s: np.zeros_like(model) for s in strategy.names}
                digests = []
                for step in range(1, 6):
                    model = strategy.step(model, outer_tensor(dtype, 1037, step), state)
                    if not all(np.isfinite(array).all() for array in (model, *state.values())):
                        raise ValueError(f"{name} left the finite numbers")
                    joined = b"".join(np.ascontiguousarray(array).tobytes() for array in (model, *state.values()))
                    digests.append(hashlib.sha256(joined).hexdigest())
                table[f"{name} lr={given.outer_lr} {dtype}"] = digests
    return table


VECTORS: dict[str, Callable[[], dict[str, Any]]] = {
    "transcript": transcript,
    "attempt": attempt,
    "messages": lone_messages,
    "protocol_round": protocol_round,
    "rounding": rounding,
    "variants": variants,
    "strategies": strategies,
}


def text_of(vector: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(vector, indent=1, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    """Compare or write; the number of files that differ."""
    only = arguments[arguments.index("--only") + 1] if "--only" in arguments else None
    differing = 0
    for name, make in VECTORS.items():
        if only not in (None, name):
            continue
        path, text = HERE / f"{name}.json", text_of(make())
        if "--write" in arguments:
            path.write_text(text, encoding="ascii")
        elif path.read_text(encoding="ascii") != text:
            print(f"{path.name} differs from what this code makes")
            differing += 1
    return differing


def _texts(vector: Vector) -> dict[str, list[str | int]]:
    """All values of a vector by name, its salt among them."""
    return {n: [_text(x) for x in v.reshape(-1).tolist()] for n, v in (vector.views() | {"salt": vector.salt}).items()}


def _text(value: float | int) -> str | int:
    """A float as its exact hexadecimal text, an integer as text: neither fits a JSON number everywhere."""
    return str(value) if isinstance(value, int) else value.hex()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
