"""Runs on 7 ranks of test_federation_api.py: three sites of 2, 2 and 3 ranks; what sums and means give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import fedhpc
from fedhpc.errors import ConfigError, DataError, FedhpcError
from fedhpc.federation.weighted_sum import total_weight
from fedhpc.secure.ring import lane_bound

assert "mpi4py.MPI" not in sys.modules or "mpi4py.run" in sys.modules, "importing fedhpc imports MPI"
directory = Path(sys.argv[1])
fed = fedhpc.join(directory / "federation.toml", sites=directory / "sites")
N = 3
me = fed.sites.index(fed.site) + 1  # 1, 2, 3
leads = fed.rank == 0
assert fed.sites == ["aa", "bb", "cc"]
assert fed.ranks == [2, 2, 3][me - 1]
assert fed.session.sums.rails == fed.ranks

# Integers: exact, at the bound too, in every width; bool; 0-d; empty.
limit = lane_bound(64, N)
assert fed.sum(np.int64(limit)) == limit * N
assert fed.sum(-limit) == -limit * N
assert fed.sum([limit, -limit, me]).tolist() == [limit * N, -limit * N, 6]
total = fed.sum(
    {
        "i8": np.array([-128, 127], np.int8), "u8": np.array([255], np.uint8), "u64": np.array([2**40], np.uint64),
        "i32": np.full((2, 3), -(2**31), np.int32), "bool": np.array([True, me == 1]), "0-d": np.int16(me),
        "big-endian": np.array([me, -me], ">i4"), "empty": np.zeros((0, 4), np.int64), "python": [[1, 2], [3, me]],
    }
)  # fmt: skip
assert {n: a.tolist() for n, a in total.items()} == {
    "i8": [-384, 381], "u8": [765], "u64": [3 * 2**40], "i32": [[-3 * 2**31] * 3] * 2, "bool": [3, 1], "0-d": 6,
    "big-endian": [6, -6], "empty": [], "python": [[3, 6], [9, 6]],
}  # fmt: skip
assert all(a.dtype == np.int64 for a in total.values())
assert total["empty"].shape == (0, 4)
assert total["0-d"].shape == ()
assert set(total.quantum.values()) == {0.0}
assert total.sites == fed.sites

# Floats with a bound: on the grid of the quantum, the value at the bound allowed.
for kind in (np.float32, np.float64):
    x = np.array([0.1 * me, -4.0, 4.0, 1e-30, 0.0], kind)
    got = fed.sum({"x": x}, bound=4.0)
    q = got.quantum["x"]
    assert got["x"].dtype == kind
    exact = np.array([np.rint(float(kind(0.1 * u)) / q) * q for u in (1, 2, 3)]).sum()
    assert got["x"][0] == kind(exact)
    assert got["x"].tolist()[1:] == [-12.0, 12.0, 0.0, 0.0]
    assert 0 < q <= 4.0 * N * 4 / 2 ** (31 if kind is np.float32 else 63)

# Floats without: each element has its own grid, whatever the size of it and its neighbours.
sizes = np.array([1e-200, 1.0, 1e300, 0.0, 5e-324, -1e9])
got = fed.sum(
    {"one": sizes * me, "apart": {0: sizes * 0, 1: sizes, 2: sizes * 0}[me - 1], "mixed": sizes * [0, 1, -2][me - 1]}
)
assert got["one"] == pytest.approx(6 * sizes, rel=1e-15, abs=0)
assert got["apart"].tolist() == sizes.tolist()
assert got["mixed"] == pytest.approx(-sizes, rel=1e-15, abs=0)
assert got.quantum["one"].shape == sizes.shape
assert got.quantum["one"][3] == 0.0
assert 0 < got.quantum["one"][1] <= 2.0**-52
# Beyond so many elements one for each array, unless it is asked for.
big = np.concatenate([np.full(5000, 0.1 * me), [1e30]])
coarse, fine = fed.sum({"big": big}), fed.sum({"big": big}, per_element=True)
assert coarse["big"][0] == 0.0 < coarse.quantum["big"]
assert fine["big"] == pytest.approx(np.concatenate([np.full(5000, 0.6), [3e30]]), rel=1e-15)
bounded = fed.sum({"x": np.array([1e9, 1e-9 * me])}, bound=1e9, per_element=True)
assert bounded["x"] == pytest.approx([3e9, 6e-9], rel=1e-15)
small = fed.sum({"only one site has it": np.float32(1e18 if me == 2 else 0)})
assert small["only one site has it"] == np.float32(1e18)
assert fed.sum(np.zeros(0, np.float32)).shape == (0,)
assert fed.sum(np.float64(0.5)) == 1.5
assert fed.sum({}) == {}

# Many names; names in any order that all sites share.
many = fed.sum({f"name {i}": np.full(i % 5, me * i) for i in range(300)})
assert all(many[f"name {i}"].tolist() == [6 * i] * (i % 5) for i in range(300))

# Only rank 0's values count, also in a vector of several rails, and whatever the other ranks hold.
assert fed.sum(1.0 * me if leads else np.nan, bound=4.0) == 6.0
assert fed.sum(1.0 * me if leads else np.inf) == 6.0
assert fed.sum(me if leads else 10**9) == 6
long = np.full(500_000, float(me)) if leads else np.full(500_000, -7.0)
assert (fed.sum(long) == 6.0).all()
# ... and its weight: with several rails every rank scales its part.
mean = fed.mean(np.full(700_000, 8.0, np.float32), weight=float(me) if leads else 1000.0)
assert (mean == np.float32(8.0)).all(), np.unique(mean)

# Means.
assert fed.mean(me) == 2.0
assert fed.mean({"x": np.array([me, 10.0])})["x"] == pytest.approx([2.0, 10.0], rel=1e-15)
weighted = fed.mean({"a": np.float64(me), "b": np.array([me == 1])}, weight=[5, 0, 15][me - 1])
assert weighted["a"] == pytest.approx(2.5, rel=1e-15)
assert weighted["b"] == pytest.approx([0.25], rel=1e-15)
assert fed.mean(np.float32(me), weight=2.0**40) == 2.0
assert fed.mean(3, weight=me / 1000) == pytest.approx(3.0, rel=1e-15)
assert fed.mean(me, weight=0 if me < 3 else 1e-3) == pytest.approx(3.0, rel=1e-15)
with pytest.raises(DataError, match="add up to 0"):
    fed.mean(me, weight=0)
assert total_weight(fed.session, me * 10) == 60

# One name, one vector: the same again gives the same; the ledger's refusal of another is in test_federation_api.py.
first = fed.sum({"x": np.array([me * 0.1])}, name="patients per ward")
assert fed.sum(1) == N
again = fed.sum({"x": np.array([me * 0.1])}, name="patients per ward")
assert first["x"].tobytes() == again["x"].tobytes()

# What no site may send is refused by every site alike, before anything is sent; the federation goes on.
refusals: list[tuple[type[FedhpcError], str, dict]] = [
    (DataError, "dtype float128", {"arrays": np.longdouble(1)}),
    (DataError, "masked array", {"arrays": np.ma.array([1.0, 99.0], mask=[False, True])}),
    (DataError, "dtype complex128", {"arrays": 1j}),
    (DataError, "dtype <U1", {"arrays": "x"}),
    (DataError, "dtype object", {"arrays": [2**70]}),
    (DataError, "beyond 2", {"arrays": np.array([2**63], np.uint64)}),
    (ConfigError, "the name of an array is", {"arrays": {"ä": 1}}),
    (ConfigError, "the name of an array is", {"arrays": {'a"b': 1}}),
    (ConfigError, "the name of an array is", {"arrays": {"": 1}}),
    (ConfigError, "name is", {"arrays": 1, "name": "x" * 201}),
    (ConfigError, "bound = 0", {"arrays": 1.0, "bound": 0.0}),
    (ConfigError, "bound = -1", {"arrays": 1.0, "bound": -1.0}),
    (ConfigError, "bound = nan", {"arrays": 1.0, "bound": float("nan")}),
]
for kind, words, call in refusals:
    with pytest.raises(kind, match=words):
        fed.sum(**call)
with pytest.raises(DataError, match="has the weight"):
    fed.mean(1, weight=-1.0)
with pytest.raises(DataError, match="has the weight"):
    fed.mean(1, weight=float("nan"))
assert fed.sum(me) == 6

# The ledger knows every sum that left, and its name, and no value.
if leads:
    ledger = directory / "ledger" / fed.site / "ledger.jsonl"
    lines = [line["entry"] for line in map(json.loads, ledger.open()) if "entry" in line]
    assert [e["round"] for e in lines] == list(range(1, len(lines) + 1))
    assert [e["purpose"] for e in lines].count("patients per ward") == 1
    assert not ledger.stat().st_mode & 0o077

# Sums need no torch; nor does joining.
assert "torch" not in sys.modules
rounds = fed.session.round_
fed.close()
fed.close()  # safe to call twice, as its docstring says
with pytest.raises(ConfigError, match="closed"):
    fed.sum(1)

# A second start in the same run directory goes on after the rounds of the first, and knows its names.
with fedhpc.join(str(directory / "federation.toml"), sites=str(directory / "sites")) as fed:
    assert fed.session.round_ == rounds
    assert fed.sum({"x": np.array([me * 0.1])}, name="patients per ward")["x"].tobytes() == first["x"].tobytes()
    assert fed.sum(me) == 6
print("rank done")
