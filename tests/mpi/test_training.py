"""Whole runs with the real trainer: equal to plain PyTorch where they must be, and to themselves however laid out."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Site, Warm, call, mpirun, table, write_federation

from fedhpc.secure.ring import scale_for

RANKS_SCRIPT = Path(__file__).with_name("training_ranks.py")
THREE = ("aa", "bb", "cc")
MLP = {"name": "mlp", "held_out": 0.25, "options": {"features": 4, "hidden": [16, 8], "dropout": 0.2}}
# 1.1 MB of parameters: two rails have a block of 2^20 bytes each to carry.
WIDE = {"name": "mlp", "held_out": 0.25, "options": {"features": 4, "hidden": [512, 512], "dropout": 0.2}}


def train(tmp_path: Path, ranks: int, cases: Mapping[str, Mapping[str, Any]], timeout: float) -> dict[str, list[Any]]:
    """{case: [final hash, started at, metrics]} of federations that all start in one job."""
    for name, settings in cases.items():
        write_federation(tmp_path / name, **settings)
    done = mpirun(ranks, [RANKS_SCRIPT, *(tmp_path / name for name in cases)], timeout=timeout, warm=True).ok()
    found = {}
    for line in done.out.splitlines():
        if line.startswith("["):
            name, *facts = json.loads(line)
            found[name] = facts
    assert found.keys() == cases.keys(), done.text
    return found


@pytest.mark.mpi
def test_three_sites_of_one_rank(tmp_path: Path) -> None:
    """Seeds, strategies, settings of the exchange, masks on and off: what changes the model and what must not."""
    rows = dict(zip(THREE, (24, 40, 33), strict=True))
    sites = {n: Site(rows=r, samples=r) for n, r in rows.items()}
    base: dict[str, Any] = {"sites": sites, "task": MLP, "rounds": 2}
    one_rail = {n: Site(rows=r, exchange={"rails": 1, "chunk_bytes": 4096, "overlap": "on"}) for n, r in rows.items()}
    big_chunk = {n: Site(rows=r, exchange={"chunk_bytes": 8 << 20, "overlap": "off"}) for n, r in rows.items()}
    names = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "diloco")
    cases = {
        "base": base,
        "again": base,
        "seed": base | {"seed": 1},
        "off": base | {"secure": {"mode": "off"}},
        "one rail, small chunks": base | {"sites": one_rail},
        "large chunks": base | {"sites": big_chunk},
        "mixed": base | {"sites": {"aa": one_rail["aa"], "bb": sites["bb"], "cc": big_chunk["cc"]}},
        "declared": base | {"strategy": {"weights": "declared"}},
        "64 bits": base | {"secure": {"lane_bits": 64}},
        "64 bits, off": base | {"secure": {"lane_bits": 64, "mode": "off"}},
        "stochastic": base | {"secure": {"rounding": "stochastic", "bound": 8.0}},
        "bound": base | {"secure": {"bound": 8.0}},
        **{name: base | {"strategy": {"name": name, "weights": "uniform"}} for name in names},
    }
    found = train(tmp_path, 3, cases, timeout=200)
    hashes = {name: facts[0] for name, facts in found.items()}
    for same in ("again", "off", "one rail, small chunks", "large chunks", "mixed"):
        assert hashes[same] == hashes["base"], same
    assert hashes["64 bits"] == hashes["64 bits, off"]
    different = ["base", "seed", "stochastic", "bound", *names]
    equal = [(a, b) for a in different for b in different if a < b and hashes[a] == hashes[b]]
    assert not equal
    # The sites have 18, 30 and 25 training rows and declare 24, 40 and 33: nearly the same weights.
    final = {n: np.concatenate([t.ravel() for t in np.load(tmp_path / n / "final.npz").values()]) for n in cases}
    for near in ("declared", "stochastic", "bound"):
        assert 0 < np.abs(final[near] - final["base"]).max() < 1e-2, near
    assert np.abs(final["64 bits"] - final["base"]).max() < 1e-6
    for name in cases:
        metrics = found[name][2]
        assert math.isfinite(metrics["loss"])
        assert np.isfinite(final[name]).all()
        # Every site wrote the same state and the same public metrics, round for round.
        records = [
            [json.loads(line) for line in (tmp_path / name / "run" / site / "metrics.jsonl").open()] for site in THREE
        ]
        public = [[(r["round"], r["state"], r["metrics"]) for r in site] for site in records]
        assert public[0] == public[1] == public[2]
        assert len(public[0]) == 3


@pytest.mark.mpi
def test_uneven_ranks(tmp_path: Path) -> None:
    """Sites of 1, 2 and 3 ranks (DDP inside a site): one rail or all, small or large chunks, masks or none."""

    def sites(counts: tuple[int, int, int], exchange: dict[str, Any]) -> dict[str, Site]:
        return {n: Site(rows=40, ranks=c, exchange=exchange) for n, c in zip(THREE, counts, strict=True)}

    base: dict[str, Any] = {"task": WIDE, "rounds": 2, "train": {"lr": 0.1, "batch_size": 0, "local_steps": 2}}
    cases = {
        "uneven": base | {"sites": sites((1, 2, 3), {})},
        "two rails": base | {"sites": sites((2, 2, 2), {})},
        "two rails, small chunks": base | {"sites": sites((2, 2, 2), {"chunk_bytes": 8192, "overlap": "on"})},
        "one rail": base | {"sites": sites((2, 2, 2), {"rails": 1})},
        "one rail, off": base | {"sites": sites((2, 2, 2), {"rails": 1}), "secure": {"mode": "off"}},
    }
    found = train(tmp_path, 6, cases, timeout=200)
    hashes = {name: facts[0] for name, facts in found.items()}
    assert len({hashes[n] for n in ("two rails", "two rails, small chunks", "one rail", "one rail, off")}) == 1, hashes
    assert 0 < found["uneven"][2]["accuracy"] <= 1
    size = sum(t.nbytes for t in np.load(tmp_path / "two rails" / "final.npz").values())
    assert size > 1 << 20, "the vector must split over the rails"


@pytest.mark.mpi
@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_what_a_run_writes_is_its_owners_only(tmp_path: Path, umask: int) -> None:
    """Losses and numbers of rows too; with a log of every rank."""
    sites = {"aa": Site(rows=24, ranks=2), "bb": Site(rows=40), "cc": Site(rows=33)}
    write_federation(tmp_path / "modes", sites=sites, task=MLP, rounds=1)
    before = os.umask(umask)
    try:
        words = [RANKS_SCRIPT, tmp_path / "modes"]
        mpirun(4, words, timeout=100, env={"FEDHPC_LOG_RANKS": "all"}, warm=True).ok()
    finally:
        os.umask(before)
    run = tmp_path / "modes" / "run"
    assert {"metrics.jsonl", "log.rank-1.jsonl", "round-000001.h5"} <= {p.name for p in run.rglob("*")}
    for path in (run, *run.rglob("*")):
        mode = path.stat().st_mode & 0o7777
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"


PLAIN = """
import sys
from pathlib import Path
import numpy as np, torch
from fedhpc.train.batches import Batches
from fedhpc.train.randomness import RankRandom, rank_seed
from fedhpc.train.held_out import split_rows
from fedhpc.train.tasks import mlp
from harness import table

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
options = {options}
torch.manual_seed(3)
model = mlp.model(options)
x, y = map(torch.from_numpy, table("aa", 60))
rows, _ = split_rows(60, 0.25, 0, "aa", y.numpy())
optimizer = {optimizer}
batches = Batches(rows, 8, 3, "aa")
random = RankRandom(rank_seed(3, "aa", 0), torch.device("cpu"))
model.train()
with random.active():
    for _ in range(4 * 5):
        batch = batches.next()
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(x[batch])[:, 0], y[batch].float()).backward()
        optimizer.step()
import hashlib
digest = hashlib.sha256()
for tensor in model.state_dict().values():
    digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


ALONE = {
    "momentum": (
        {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)",
    ),
    "adamw": ({"optimizer": "adamw", "lr": 0.01}, "torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)"),
}


def test_one_site_is_plain_pytorch_to_the_last_bit(tmp_path: Path) -> None:
    options = {"features": 4, "hidden": [16, 8], "dropout": 0.0}
    for name, (settings, _) in ALONE.items():
        write_federation(
            tmp_path / name, {"aa": Site(rows=60)}, rounds=4, seed=3,
            task={"name": "mlp", "held_out": 0.25, "options": options},
            train=settings | {"batch_size": 8, "local_steps": 5},
        )  # fmt: skip
    done = call([*Warm.words(), RANKS_SCRIPT, *(tmp_path / name for name in ALONE)], timeout=60).ok()
    plain = call(
        [sys.executable, "-c", "".join(PLAIN.format(options=options, optimizer=o) for _, o in ALONE.values())],
        env={"PYTHONPATH": f"{RANKS_SCRIPT.parents[1]}:{RANKS_SCRIPT.parents[2]}"}, timeout=60,
    ).ok()  # fmt: skip
    found = {
        name: digest for name, digest, *_ in (json.loads(line) for line in done.out.splitlines() if line[0] == "[")
    }
    assert found == dict(zip(ALONE, plain.out.split(), strict=True))
    assert len(set(found.values())) == len(ALONE)


FEDSGD_TASK = '''
"""Logistic regression in double precision."""
import torch
from fedhpc.train.tasks import logistic

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1).double()
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)
    def forward(self, x):
        return self.linear(x.double())[:, 0]

def model(options):
    return Model()
def dataset(path, options):
    return logistic.dataset(path, {"features": 4})
def loss(model, batch):
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1].double())
def sums(model, batch):
    return {"n": torch.tensor(len(batch[1]))}
'''


@pytest.mark.mpi
def test_fedsgd_is_pooled_sgd_up_to_the_grid(tmp_path: Path) -> None:
    """One full-batch step a round, sites weighted by rows: the mean update is the gradient over all rows.

    Bound, per round and parameter: each of the N sites rounds its share to the grid q = 2^-s, by at most q/2, so the
    sum is off by at most N q/2; doubles add about 1e-15, here below q/100. A gradient step with lr ≤ 2/L on a convex
    L-smooth loss never moves two points apart (2-norm), so after R rounds the P parameters are off by at most
    R √P N q/2. For logistic loss L ≤ max |(x, 1)|² / 4.
    """
    sites = {"aa": Site(rows=12), "bb": Site(rows=50), "cc": Site(rows=29)}
    # A huge bound makes the grid coarse, far coarser than the doubles' own rounding.
    bound, lr = 2.0**40, 0.25
    settings: dict[str, Any] = {
        "sites": sites, "train": {"optimizer": "sgd", "lr": lr, "batch_size": 0, "local_steps": 1},
        "strategy": {"weights": "samples"}, "secure": {"bound": bound, "lane_bits": 64},
        "task": {
            "name": "module", "held_out": 0.0, "source_sha256": hashlib.sha256(FEDSGD_TASK.encode()).hexdigest(),
        },
    }  # fmt: skip
    counts = (1, 7)
    for rounds in counts:
        federation = write_federation(tmp_path / str(rounds), rounds=rounds, **settings)
        (federation.parent / "task.py").write_text(FEDSGD_TASK)
        for file in (federation.parent / "sites").glob("*.toml"):
            file.write_text(file.read_text().replace("[data]\n", "[data]\ntask_source = '../task.py'\n"))
    mpirun(3, [RANKS_SCRIPT, *(tmp_path / str(r) for r in counts)], timeout=100, warm=True).ok()

    tables = [table(name, site.rows) for name, site in sites.items()]
    x = np.concatenate([t[0] for t in tables]).astype(np.float64)
    x = np.hstack([x, np.ones((len(x), 1))])
    y = np.concatenate([t[1] for t in tables])
    assert lr <= 2 / ((x**2).sum(axis=1).max() / 4)
    grid = 2.0 ** -scale_for(bound, 64, len(sites))
    assert grid > 1e-7, "the grid, not the doubles, must decide"
    for rounds in counts:
        w = np.zeros(5)
        for _ in range(rounds):
            w -= lr * x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y)
        final = np.load(tmp_path / str(rounds) / "final.npz")
        got = np.concatenate([final["linear.weight"].ravel(), final["linear.bias"]])
        allowed = len(sites) * grid / 2
        assert np.linalg.norm(got - w) <= rounds * math.sqrt(5) * allowed * 1.01
        if rounds == 1:
            assert np.abs(got - w).max() <= allowed * 1.01
        assert np.abs(got - w).max() > grid / 1000, "the test must see the grid"
        assert np.abs(w).max() > 1000 * allowed, "the model must have moved"
