"""What users write with fedhpc.join: sums, means and their own loop. Each takes a Federation and gives what it got.

`expected_sums` says what `sums` must give, from every site's numbers and plain integer sums.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from fedhpc.app.federation import Federation
from fedhpc.federation.weighted_sum import total_weight

MIB = 1 << 20


def digest(array: np.ndarray) -> str:
    return f"{array.dtype.name}{list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def numbers_of(site: int) -> dict[str, np.ndarray]:
    """What site `site` sums: integers, halves of floats, several blocks, and nothing."""
    draw = np.random.default_rng(site)
    return {
        "int8": draw.integers(-100, 100, 5).astype(np.int8),
        "bool": draw.random((2, 3)) < 0.5,
        "int64": draw.integers(-(2**61), 2**61, 3),
        "float32": draw.uniform(-1, 1, (3, 1)).astype(np.float32),
        "float64": draw.uniform(-1, 1, ()),
        "empty": np.zeros((0, 4), np.float32),
        "large": draw.uniform(-1, 1, 900_001).astype(np.float32),  # 3.4 blocks
        "ints": draw.integers(-1000, 1000, 70_000),
    }


def sums(fed: Federation) -> dict[str, Any]:
    """Sums and means of many kinds."""
    me = fed.session.party.number
    mine = numbers_of(me)
    found = {f"sum {n}": digest(a) for n, a in fed.sum(mine, bound=1.0, name="all").items()}
    scaled = fed.sum({"x": mine["float32"] * 1000 * me}, name="without a bound")
    found["scaled"] = digest(scaled["x"])
    found["quantum"] = scaled.quantum["x"].tolist()
    found["one int"] = int(fed.sum(me))
    found["one float"] = float(fed.sum(0.5 * me, bound=8.0))
    empty = fed.sum({"none": np.zeros(0)}, name="none")
    found["empty"] = [digest(a) for a in empty.values()]
    found["empty with scale"] = [digest(a) for a in fed.sum({"a": np.zeros(0), "b": np.ones(1)}).values()]
    found["mean of ints"] = fed.mean(np.array([me, 10 * me]), bound=64.0).tolist()
    weighted = fed.mean({"x": np.array([1.0 * me])}, weight=10 * me, name="weighted")
    found["weighted"] = weighted["x"].tolist()
    found["sites"] = weighted.sites
    found["large int mean"] = digest(fed.mean({"x": mine["ints"]}, bound=1000.0)["x"])
    found["everyone"] = fed.sum(np.array([me]), everyone=True).tolist()
    found["round"] = fed.session.round_
    found["state"] = fed.session.state.hex()
    return found


def on_grid(values: list[np.ndarray], scale: int) -> np.ndarray:
    """Σ rint(x·2^s)·2^−s of every site's values, in their own kind."""
    total = sum(np.rint(np.asarray(x, np.float64) * 2.0**scale).astype(np.int64) for x in values)
    return np.asarray(np.asarray(total).astype(np.float64) * 2.0**-scale, values[0].dtype)


def expected_sums(sites: int) -> dict[str, Any]:
    """What `sums` gives, but for rounds, states and means."""
    of = [numbers_of(u) for u in range(1, sites + 1)]
    found = {}
    for name in of[0]:
        values = [np.asarray(numbers[name]) for numbers in of]
        if values[0].dtype.kind == "f":
            bits = 8 * values[0].itemsize
            room = (((1 << (bits - 1)) - 1) // sites).bit_length() - 1  # 2^room still fits at every site
            total = on_grid(values, room - 1)  # the bound 1.0 is below 2^1
        else:
            total = sum(v.astype(np.int64) for v in values)  # type: ignore[assignment]
        found[f"sum {name}"] = digest(np.asarray(total))
    scaled = [numbers["float32"] * np.float32(1000) * np.float32(u) for u, numbers in enumerate(of, 1)]
    # A scale for each element, in 64-bit lanes, by the power of 2^8 that the largest value reaches, down from 2^128.
    exponents = np.frexp(np.abs(np.stack(scaled)).max(axis=0))[1]
    shift = (((1 << 63) - 1) // sites).bit_length() - 1 - (128 - (128 - exponents) // 8 * 8)
    lanes = np.sum([np.rint(np.ldexp(np.asarray(x, np.float64), shift)).astype(np.int64) for x in scaled], axis=0)
    found["scaled"] = digest(np.ldexp(lanes.astype(np.float64), -shift).astype(np.float32))
    found["quantum"] = np.ldexp(1.0, -shift).tolist()
    ones = range(1, sites + 1)
    found |= {
        "one int": sum(ones),
        "one float": 0.5 * sum(ones),
        "empty": [digest(np.zeros(0))],
        "empty with scale": [digest(np.zeros(0)), digest(np.full(1, float(sites)))],
        "everyone": [sum(ones)],
    }
    return found


def small(fed: Federation) -> dict[str, Any]:
    """Numbers that a guesser would find soon; with S, the salt of each sum, which only the sites know."""
    me, found = fed.session.party.number, {}
    found["patients"] = int(fed.sum({"n": np.array(200 + 31 * me)}, name="patients")["n"])
    salts = {"patients": fed.session.last_salt.hex()}
    found["W"] = total_weight(fed.session, 20 + 7 * me, "weights of age")
    salts["W"] = fed.session.last_salt.hex()
    scaled = fed.sum({"x": np.array(3.0 * me)}, name="without a bound")
    return found | {"quantum": scaled.quantum["x"], "salts": salts}


def sync(fed: Federation) -> dict[str, Any]:
    """A loop of the user's own in PyTorch, with momentum, a buffer and a double."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 1).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    draw = np.random.default_rng(fed.session.party.number)
    x = torch.from_numpy(draw.standard_normal((24, 6)).astype(np.float32))
    y = x.sum(dim=1, keepdim=True).double()
    together = fed.sync(model, optimizer, every=2, weight=10 * fed.session.party.number)
    for _ in range(6):
        optimizer.zero_grad()
        hidden = model[1](model[0](x)).double()
        torch.nn.functional.mse_loss(model[2](hidden), y).backward()
        optimizer.step()
        together.step()
    return {"sha256": together.model_sha256, "round": fed.session.round_, "state": fed.session.state.hex()}


def skipping(fed: Federation) -> dict[str, Any]:
    """A sum that may be skipped, and one that is waited for."""
    first = fed.sum({"n": fed.session.party.number}, name="may be skipped", everyone=True, skip=True)
    second = fed.sum({"n": fed.session.party.number}, name="is waited for", everyone=True)
    return {
        "first": None if first is None else int(first["n"]),
        "second": int(second["n"]),
        "round": fed.session.round_,
    }


def patients(fed: Federation) -> dict[str, Any]:
    """The same sum twice."""
    totals = [int(fed.sum({"n": fed.session.party.number}, name="patients")["n"]) for _ in range(2)]
    return {"total": totals[0], "again": totals[1]}


def other_patients(fed: Federation) -> dict[str, Any]:
    """Another number under the name that `patients` has summed."""
    return {"total": int(fed.sum({"n": 7 * fed.session.party.number}, name="patients")["n"])}


def nothing(fed: Federation) -> dict[str, Any]:
    """Join, and leave."""
    return {"sites": fed.sites}
