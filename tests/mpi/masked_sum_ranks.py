"""Runs on 8 ranks of test_masked_sum.py: many sums, each masked, unmasked, and added up by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedhpc.agreement.federation_file import PROTOCOL_NAME, read_agreement
from fedhpc.federation.party import NO_BASE, Party, SumKind, SumPlan
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.kernel.choice import PYTHON, VARIABLE
from fedhpc.ledger.journal import MemoryJournal
from fedhpc.mpi import world as mpi_world
from fedhpc.mpi.world import Place, World
from fedhpc.secure.keys import identity_public
from fedhpc.secure.ledger import ledger_keys
from fedhpc.secure.one_pass import Run, Worker
from fedhpc.secure.ring import Codec, Layout, Tensor, lane_bound, scale_for
from fedhpc.secure.salt import salt_key, salt_words
from fedhpc.secure.suite import SHA256
from fedhpc.secure.tag import Tag
from fedhpc.sums import blocks
from fedhpc.sums.in_job.masked_sum import MpiSums
from fedhpc.sums.in_job.mpi_exchange import MpiExchange
from fedhpc.sums.in_job.pipeline import Pipeline
from fedhpc.sums.streams import Streams
from fedhpc.sums.unconnected import NeverAway, OwnRanks

RANKS = 8
MIB = 1 << 20
world = mpi_world.start()
assert world.group.size == RANKS
if world.group.rank % 2:  # machines of one sum differ: half of the ranks never hide by a compiled kernel
    os.environ[VARIABLE] = PYTHON
places: dict[str, Place | None] = {}
worlds: dict[int, World | None] = {RANKS: world}
rounds = iter(range(1, 10_000))
counted = {"sums": 0, "steps": 0, "split rails": 0, "masked lanes": 0}


def place_in(sizes: list[int], rails: int | str | list[int]) -> Place | None:
    """Where this rank is when the first ranks are dealt to sites of `sizes` ranks; None if it is left over.

    `rails`: of every site, or of each.
    """
    key, count = json.dumps([sizes, rails]), sum(sizes)
    if count not in worlds:
        worlds[count] = mpi_world.some_ranks(world, joins=world.group.rank < count)
    if key not in places:
        of_some = worlds[count]
        number = next((u for u in range(1, len(sizes) + 1) if world.group.rank < sum(sizes[:u])), 0)
        wish = rails[number - 1] if isinstance(rails, list) else rails
        names = [f"s{u}" for u in range(1, len(sizes) + 1)]
        places[key] = None if of_some is None else mpi_world.split(of_some, number, names, wish)
    return places[key]


def party_of(case: dict[str, Any], place: Place, mode: str) -> Party:
    sites = len(case["sizes"])
    keys = [bytes([u]) * 32 for u in range(1, sites + 1)]
    text = f"[federation]\nname = 'test'\nprotocol = '{PROTOCOL_NAME}'\n[secure]\n" + "".join(
        f"{k} = {json.dumps(v)}\n" for k, v in case["secure"]
    )
    text += "".join(f"[[site]]\nname = 's{u}'\nsign = '{identity_public(k).hex()}'\n" for u, k in enumerate(keys, 1))
    agreement = read_agreement(text.encode(), "federation.toml")
    # The same bytes and hash for both modes, so that stochastic rounding draws the same words.
    agreement = dataclasses.replace(agreement, secure=dataclasses.replace(agreement.secure, mode=mode))
    mine, leads = keys[place.number - 1], place.site.rank == 0
    return Party(
        agreement=agreement, number=place.number, site=place.site, members=agreement.members(),
        identity=Ed25519PrivateKey.from_private_bytes(mine) if leads else None,
        ledger_keys=ledger_keys(agreement.hash, mine, place.number), journal=MemoryJournal(),
        salt_key=salt_key(agreement.hash, mine, place.number),
    )  # fmt: skip


def values_of(case: dict[str, Any], site: int, tensor: Tensor) -> np.ndarray:
    """What site number `site` puts in: any rank can draw it for any site."""
    draw = np.random.default_rng([case["seed"], site, *tensor.name.encode()])
    sites = len(case["sizes"])
    if tensor.kind == "int64":
        high = lane_bound(64, sites)
        some = draw.integers(-high, high, tensor.shape, endpoint=True)
        return np.where(draw.random(tensor.shape) < 0.1, high, some)  # some at the very bound, at all sites
    bound = case["bound"]
    some = draw.uniform(-bound, bound, tensor.shape)
    some = np.where(draw.random(tensor.shape) < 0.05, bound * draw.choice([-1.0, 1.0]), some)
    some = np.where(draw.random(tensor.shape) < 0.05, some * 1e-12, some)
    return some.astype(tensor.kind)


def salt_by_hand(case: dict[str, Any], config: bytes, round_: int) -> np.ndarray:
    """S: any rank of this test knows every site's key."""
    words = []
    for u in range(1, len(case["sizes"]) + 1):
        words.append(salt_words(salt_key(config, bytes([u]) * 32, u), u, round_, "test", NO_BASE))
    assert len({w.tobytes() for w in words}) == len(words)
    assert min(w.min() for w in words) >= 0
    return sum(words)


def expected(case: dict[str, Any], layout: Layout, factors: list[float]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(tensors, ring vector without salt): each site's numbers on the grid, added as integers."""
    ring = np.zeros(layout.nbytes, dtype=np.uint8)
    decoded = {}
    for tensor, offset in zip(layout.named, layout.offsets, strict=False):
        total = np.zeros(tensor.shape, dtype=np.int64)
        for site, factor in enumerate(factors, start=1):
            values = values_of(case, site, tensor)
            if tensor.kind != "int64":
                # The scale is a power of two, so this is the product w·x rounded once, then rounded half to even.
                values = np.rint(values.astype(np.float64) * factor * math.ldexp(1.0, tensor.scale)).astype(np.int64)
            total += values
        lanes = total.astype(f"<i{tensor.lane_bytes}").reshape(-1)
        assert (lanes == total.reshape(-1)).all(), "the drawn case does not fit its lanes"
        ring[offset : offset + lanes.nbytes] = lanes.view(np.uint8)
        if tensor.kind == "int64":
            decoded[tensor.name] = total
        else:
            decoded[tensor.name] = (total.astype(np.float64) * math.ldexp(1.0, -tensor.scale)).astype(tensor.kind)
    return decoded, ring


def layout_of(case: dict[str, Any]) -> Layout:
    sites = len(case["sizes"])
    bits = {"float32": 32, "float64": 64, "int64": 64}
    return Layout(
        [
            Tensor(f"t{i}", kind, tuple(shape), 0 if kind == "int64" else scale_for(case["bound"], bits[kind], sites))
            for i, (kind, shape) in enumerate(case["tensors"])
        ],
        salted=True,
    )


def check(case: dict[str, Any]) -> None:
    """Masked and unmasked sums of `case` on every rank, against the sum by hand."""
    place = place_in(case["sizes"], case["rails"])
    number = next(rounds)
    counted["sums"] += 1
    if place is None:
        return
    assert place.rails is not None
    layout, sites = layout_of(case), len(case["sizes"])
    shares = np.array(case["weights"][:sites], dtype=np.float64)
    factors = [float(w / shares.sum()) for w in shares]
    mine = {t.name: factors[place.number - 1] for t in layout.named if t.kind != "int64"}
    own = {t.name: values_of(case, place.number, t) for t in layout.named}
    vectors, trees, salts = {}, {}, {}
    for mode in ("pairwise", "off"):
        party = party_of(case, place, mode)
        vector = Vector(layout)
        if case["replicated"] or place.site.rank == 0:
            vector.fill(own)
        else:
            vector.buffer[:] = 255  # only the leader's values count
        exchange = MpiExchange(party.agreement.names, place.leaders, place.rails)
        pipeline = Pipeline(exchange, chunk_bytes=case["chunk"], overlap=case["overlap"])
        sums = MpiSums(party, exchange, pipeline, rails=place.rails.counts, attempt=number)
        plan = SumPlan(number, "test", SumKind.STATISTIC, bytes(32), factors=mine, replicated=case["replicated"])
        session = Session(party, sums, OwnRanks(party), NeverAway())
        opened = session.open(vector, plan)
        session.settle(opened, bytes(32))
        salts[mode] = salt_by_hand(case, party.agreement.hash, number) * (mode == "pairwise")
        assert opened.salt == salts[mode].tobytes(), f"rank {world.group.rank} has another salt"
        vectors[mode], trees[mode] = vector, opened.sum_tree
        if mode == "pairwise" and case.get("again"):
            check_again(case, session, vector, dataclasses.replace(plan, round_=number + 10_000, purpose="again"))
            counted["steps"] += 1
    counted["split rails"] += max(place.rails.counts) > 1 and layout.nbytes > MIB
    for tensor in layout.named:
        masked, plain = (vectors[mode].view(tensor.name) for mode in ("pairwise", "off"))
        assert masked.tobytes() == plain.tobytes(), f"{tensor}: masked and unmasked sums differ"
    if ("rounding", "stochastic") in [tuple(s) for s in case["secure"]]:
        for tensor in layout.named:
            sums = [values_of(case, u, tensor).astype(np.float64) * f for u, f in enumerate(factors, start=1)]
            if tensor.kind == "float32":  # within a grid step of each site, and the float32 of the result
                error = np.abs(vectors["pairwise"].view(tensor.name) - sum(sums))
                assert (error <= sites * tensor.quantum + 2.0**-24 * np.abs(sum(sums))).all()
        return
    every = worlds[sum(case["sizes"])]
    assert every is not None
    hashes = b""  # what rank 0 adds up by hand, for all ranks
    if every.group.rank == 0:
        by_hand, ring = expected(case, layout, factors)
        for salt in salts.values():
            ring[layout.nbytes - 40 :] = salt.view(np.uint8)
            hashes += SHA256.tree(ring)
        hashes += b"".join(hashlib.sha256(by_hand[t.name].tobytes()).digest() for t in layout.named)
    hashes = every.group.broadcast_bytes(hashes)
    for i, mode in enumerate(salts):
        assert trees[mode] == hashes[32 * i : 32 * (i + 1)], f"{mode}: Tree(X) is not that of the sum by hand"
    for i, tensor in enumerate(layout.named, start=2):
        got = hashlib.sha256(vectors["pairwise"].view(tensor.name).tobytes()).digest()
        assert got == hashes[32 * i : 32 * (i + 1)], f"{tensor}: differs from the sum by hand"


def check_again(case: dict[str, Any], session: Session, first: Vector, plan: SumPlan) -> None:
    """The same numbers in another round, with the keys of the first: the same sum."""
    party, vector = session.party, Vector(first.layout)
    if case["replicated"] or party.site.rank == 0:
        vector.fill({t.name: values_of(case, party.number, t) for t in first.layout.named})
    session.settle(session.open(vector, plan), bytes(32))
    if ["rounding", "stochastic"] in [list(s) for s in case["secure"]]:
        return  # other words
    for tensor in first.layout.named:
        assert vector.view(tensor.name).tobytes() == first.view(tensor.name).tobytes(), f"{tensor}: in the second sum"


def everywhere(case: dict[str, Any] | None, run: Callable[[dict[str, Any]], None] = check) -> bool:
    """Rank 0 gives a case, or None to end; all ranks run it. Any failure ends the job and shows the case."""
    data = world.group.broadcast_bytes(json.dumps(case).encode() if world.group.rank == 0 else None)
    case = json.loads(data)
    if case is None:
        return False
    try:
        run(case)
    except BaseException:
        print(f"rank {world.group.rank}: failed case {case}", file=sys.stderr, flush=True)
        raise
    return True


# --- the table of cases: one by one through the settings, with vectors that really split

BASE: dict[str, Any] = {
    "sizes": [1, 2, 5], "rails": "auto", "chunk": 2 * MIB, "overlap": False, "seed": 1, "bound": 3.0, "secure": [],
    "tensors": [["float32", [700, 900]], ["int64", [17]], ["float64", [90_001]]], "weights": [3, 1, 4, 1, 5, 9, 2, 6],
    "replicated": False, "again": True,
}  # fmt: skip
WIDE = [["float32", [1_300_000]], ["float64", [300_001]], ["int64", [3, 5]], ["float32", [1]], ["int64", [200_000]]]
TWO = [["accept_two_sites", True]]


def table() -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = [
        {"sizes": [4, 4], "secure": TWO, "rails": 4, "tensors": WIDE},
        {"sizes": [1, 7], "secure": TWO},
        # every rank carries a part of its own, whatever the other site's ranks do; the ranks that are left over wait
        {"sizes": [2, 3], "secure": TWO, "tensors": WIDE},
        {"sizes": [2, 3], "secure": TWO, "tensors": WIDE, "chunk": 65536 + 16, "overlap": True, "replicated": True},
        {"sizes": [1, 4], "secure": TWO, "tensors": WIDE, "chunk": 300_000 * 16},
        {"sizes": [3, 1, 2], "tensors": WIDE, "chunk": 8 * MIB, "overlap": True},
        {"sizes": [3, 4], "secure": TWO, "tensors": WIDE, "rails": [2, 4], "chunk": 400_000 * 16},
        {"sizes": [2, 2, 4], "rails": 1}, {"sizes": [2, 2, 4], "rails": 2}, {"sizes": [2, 3, 3], "rails": "auto"},
        {"sizes": [2, 3, 3], "rails": [1, 2, 3], "tensors": WIDE, "overlap": True},
        {"sizes": [2, 2, 2, 2], "rails": 2, "tensors": WIDE},
        {"sizes": [1, 1, 1, 2, 3]}, {"sizes": [1, 1, 1, 1, 2, 2]}, {"sizes": [1] * 6 + [2]}, {"sizes": [1] * 8},
        {"sizes": [1] * 8, "secure": [["degree", 6]], "tensors": [["float32", [1000]]]},
        {"sizes": [2, 2, 4], "rails": 2, "chunk": 4096, "tensors": [["float32", [300_000]], ["float64", [77]]]},
        {"sizes": [2, 2, 4], "rails": 2, "chunk": 4096, "overlap": True, "tensors": [["float32", [300_000]]]},
        {"sizes": [2, 2, 4], "rails": 2, "chunk": 8 * MIB, "tensors": WIDE},
        {"sizes": [2, 2, 4], "rails": 2, "chunk": 8 * MIB, "tensors": WIDE, "overlap": True, "replicated": True},
        {"sizes": [2, 2, 4], "rails": 2, "chunk": 65536 + 16, "tensors": WIDE, "overlap": True},
        {"sizes": [2, 2, 4], "rails": 2, "tensors": WIDE, "secure": [["rounding", "stochastic"]], "chunk": 70_000 * 16},
        {"tensors": [["float32", [0]], ["int64", [0, 3]], ["float64", []]]},  # empty, and 0-d
        {"tensors": [["float32", [0]]]}, {"tensors": [], "weights": [1] * 8},  # nothing but salt
        # the salt lies in a block of its own, at a rank that has nothing else; just within a block; across its end
        {"sizes": [2, 2, 4], "rails": 2, "tensors": [["int64", [MIB // 8]]]},
        {"sizes": [2, 2, 4], "rails": 2, "tensors": [["int64", [MIB // 8 - 5]]]},
        {"sizes": [2, 2, 4], "rails": 2, "tensors": [["int64", [MIB // 8 - 3]]]},
        # exactly a block, a byte more than a block, two blocks
        {"sizes": [2, 2, 4], "tensors": [["float32", [MIB // 4]]]},
        {"sizes": [2, 2, 4], "tensors": [["float32", [MIB // 4 + 1]]]},
        {"sizes": [2, 2, 4], "tensors": [["float64", [MIB // 4]]], "rails": 2},
        {"bound": 1e-30}, {"bound": 1e30}, {"weights": [0, 0, 1, 0, 0, 0, 0, 0]},
    ]  # fmt: skip
    return [BASE | change for change in changes]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    sites = draw(st.integers(2, 8))
    cuts = sorted(draw(st.lists(st.integers(1, 7), min_size=sites - 1, max_size=sites - 1, unique=True)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 8], strict=True)]
    shapes = st.one_of(
        st.lists(st.integers(0, 40), max_size=3), st.lists(st.integers(1, 120_000), min_size=1, max_size=1)
    )
    secure = TWO if sites == 2 else []
    if draw(st.booleans()) and draw(st.booleans()):
        secure = [*secure, ["rounding", "stochastic"]]
    return {
        "sizes": sizes,
        "rails": draw(st.just("auto") | st.tuples(*(st.integers(1, size) for size in sizes)).map(list)),
        "chunk": draw(st.sampled_from([4096, 4112, 65536, 2 * MIB, 8 * MIB])),
        "overlap": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32)),
        "bound": draw(st.sampled_from([1.0, 0.75, 1e-6, 123456.789, 2.0**20])),
        "secure": secure,
        "tensors": draw(
            st.lists(
                st.tuples(st.sampled_from(["float32", "float64", "int64"]), shapes).map(list), min_size=1, max_size=6
            )
        ),
        "weights": draw(st.lists(st.integers(1, 10_000), min_size=8, max_size=8)),
        "replicated": draw(st.booleans()),
    }


@settings(
    max_examples=int(os.environ.get("FEDHPC_TEST_CASES", "40")), derandomize=True, database=None, deadline=None,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(cases())
def drawn(case: dict[str, Any]) -> None:
    everywhere(case)


# Masks must really be added, or the comparison of masked with unmasked sums says nothing.
plain_workers = blocks.workers


def counting_workers(codec: Callable[[], Codec], masks: Streams, tag_key: bytes | None) -> Callable[[], Worker]:
    """Workers that look at what they have hidden, beside the same lanes without masks."""
    make, bare = plain_workers(codec, masks, tag_key), plain_workers(codec, [(k, -sign) for k, sign in masks], None)

    def new() -> Worker:
        worker, unmask = make(), bare().uncover
        cover = worker.cover

        def count(runs: Sequence[Run]) -> Tag:
            tag = cover(runs)
            for run in runs if masks else ():
                lanes = run.lanes.copy()
                unmask([run._replace(lanes=lanes)])
                counted["masked lanes"] += int((lanes != run.lanes).sum())
                if lanes.size > 1000:
                    assert (lanes != run.lanes).mean() > 0.99
            return tag

        worker.cover = count  # type: ignore[method-assign]
        return worker

    return new


blocks.workers = counting_workers

for listed in table():
    everywhere(listed)
assert counted["masked lanes"] > 100_000 or world.group.rank
if world.group.rank == 0:
    drawn()
    everywhere(None)
else:
    while everywhere(None):
        pass
every = [json.loads(m) for m in world.group.gather_bytes(json.dumps(counted).encode())]
assert min(e["sums"] for e in every) == max(e["sums"] for e in every) > len(table())
assert every[0]["split rails"] > 8
assert every[0]["steps"] == len(table())
if world.group.rank == 0:
    print(f"all equal: {counted}")
