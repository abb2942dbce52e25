"""Sites that train in different ways are one federation: they begin alike, and equal updates give equal sums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from harness import Completed, Site, edit, mpirun, write_federation

pytestmark = pytest.mark.mpi

RANKS_SCRIPT = Path(__file__).with_name("training_ranks.py")
TASK = """
import os
import torch
from fedhpc.train.tasks import logistic
from fedhpc.train.tasks.logistic import dataset, sums

calls = 0

def loss(model, batch):
    global calls
    calls += len(batch[1]) == 4  # a rank's share of a batch of 8, which no check has
    if os.environ.get("FAILS_AT") == f"{calls}" and "FSDP" in type(model).__name__:
        raise RuntimeError("the fault")
    return logistic.loss(model, batch)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 7), torch.nn.Linear(7, 4)])
        self.out = logistic.model({"features": 4})
        self.bins = self.out.bins

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)

def model(options):
    return Net()

def fill(name, shape, generator):
    return torch.randn(shape, generator=generator) * 0.4
"""


def task_of(directory: Path) -> dict[str, Any]:
    (directory / "task.py").write_text(TASK)
    digest = hashlib.sha256(TASK.encode()).hexdigest()
    return {"name": "module", "held_out": 0.25, "source_sha256": digest, "options": {"features": 4}}


def test_a_sharded_site_goes_on_after_a_failure_in_a_round(tmp_path: Path) -> None:
    """Momenta are kept whole: the job that goes on deals them out again, and ends with the same bits."""
    sites = {"aa": Site(ranks=2, compute={"backend": "fsdp"}), "bb": Site()}
    train = {"optimizer": "adamw", "lr": 0.05, "batch_size": 8, "local_steps": 3}
    task = task_of(tmp_path)

    def run(case: str, **environment: str) -> Completed:
        words = ["-m", "fedhpc", "run", tmp_path / case / "federation.toml", "--sites", tmp_path / case / "sites"]
        return mpirun(3, [*words, "--out", tmp_path / case / "run", "--json"], timeout=120, env=environment, warm=True)

    for case in ("broken", "unbroken"):
        write_federation(tmp_path / case, sites, rounds=3, task=task, train=train, secure={"accept_two_sites": True})
        for name in sites:
            edit(tmp_path / case / "sites" / f"{name}.toml", "[data]", "[data]\ntask_source = '../../task.py'")
    failed = run("broken", FAILS_AT="8")
    assert failed.code == 65, failed.text
    assert "RuntimeError: the fault" in failed.err
    ended = {case: json.loads(run(case).ok().out.splitlines()[-1]) for case in ("broken", "unbroken")}
    assert ended["broken"]["resumed_after_round"] > 0
    assert ended["broken"]["model_sha256"] == ended["unbroken"]["model_sha256"]


def test_sites_of_every_backend_and_the_same_bits(tmp_path: Path) -> None:
    """With SGD on two ranks DDP, FSDP2 and MPI add the same two numbers, so the sites' updates are equal."""
    task = task_of(tmp_path)
    cases = {"a": ("ddp", "mpi"), "b": ("fsdp", "fsdp"), "c": ("fsdp", "ddp")}
    for case, (first, second) in cases.items():
        sites = {
            "aa": Site(ranks=2, compute={"backend": first}),
            "bb": Site(ranks=2, compute={"backend": second, "activation_checkpointing": True}),
            "cc": Site(ranks=1),
        }
        write_federation(tmp_path / case, sites, rounds=2, task=task)
        for name in sites:
            edit(tmp_path / case / "sites" / f"{name}.toml", "[data]", "[data]\ntask_source = '../../task.py'")
    done = mpirun(5, [RANKS_SCRIPT, *(tmp_path / name for name in cases)], timeout=120, warm=True).ok()
    hashes = [json.loads(line)[1] for line in done.out.splitlines() if line.startswith("[")]
    assert len(hashes) == len(cases)
    assert len(set(hashes)) == 1, hashes
