"""Sites that train in different ways are one federation: they begin alike, and equal updates give equal sums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from harness import Site, edit, mpirun, write_federation

pytestmark = pytest.mark.mpi

RANKS_SCRIPT = Path(__file__).with_name("training_ranks.py")
TASK = """
import torch
from fedhpc.train.tasks import logistic
from fedhpc.train.tasks.logistic import dataset, loss, sums

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


def test_sites_of_every_backend_and_the_same_bits(tmp_path: Path) -> None:
    """With SGD on two ranks DDP, FSDP2 and MPI add the same two numbers, so the sites' updates are equal."""
    (tmp_path / "task.py").write_text(TASK)
    task = {
        "name": "module", "held_out": 0.25, "source_sha256": hashlib.sha256(TASK.encode()).hexdigest(),
        "options": {"features": 4},
    }  # fmt: skip
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
