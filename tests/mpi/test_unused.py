"""What rows do not reach, and coupled rows, are told alike on any number of ranks, and nobody waits for ever."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Completed, Site, call, mpirun, write_federation


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_reach_different_parameters(ranks: int, tmp_path: Path) -> None:
    mpirun(ranks, [Path(__file__).with_name("unused_ranks.py"), tmp_path / "done"], timeout=240).ok()
    assert (tmp_path / "done").read_text() == "all equal"


TASK = '''
"""Logistic regression with batch norm, and a head that nothing uses."""
import torch
from fedhpc.train.tasks import logistic

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
        self.old_head = torch.nn.Linear(4, 1)
    def forward(self, x):
        return self.linear(self.norm(x))[:, 0]

def model(options):
    return Model()
def dataset(path, options):
    return logistic.dataset(path, {"features": 4})
def loss(model, batch):
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1].float())
def sums(model, batch):
    return {"n": torch.tensor(len(batch[1]))}
'''
COUPLED = TASK.replace("model(batch[0]),", "model(batch[0]) - model(batch[0]).mean(),").replace("self.old_head", "#")
LISTED = TASK + 'rows = "coupled"\n'


def run(folder: Path, source: str, ranks: int = 1, **train: Any) -> Completed:
    """`fedhpc run` of one site of 33 training rows, in batches of 16."""
    federation = write_federation(
        folder, {"aa": Site(rows=33, ranks=ranks)}, rounds=1,
        train={"lr": 0.1, "batch_size": 16, "local_epochs": 1} | train,
        task={"name": "module", "held_out": 0.0, "source_sha256": hashlib.sha256(source.encode()).hexdigest()},
    )  # fmt: skip
    (folder / "task.py").write_text(source)
    file = folder / "sites" / "aa.toml"
    file.write_text(file.read_text().replace("[data]\n", "[data]\ntask_source = '../task.py'\n"))
    words = ["-m", "fedhpc", "run", str(federation), "--sites", str(folder / "sites")]
    return call([sys.executable, *words], timeout=60) if ranks == 1 else mpirun(ranks, words, timeout=90, warm=True)


def test_the_command_names_them_and_what_to_do(tmp_path: Path) -> None:
    ways = ("old_head.weight, old_head.bias", "requires_grad_(False)", '[train] unused_parameters = "allow"')
    run(tmp_path / "refused", TASK).refused(64, "site aa: step 1 (round 1)", *ways)
    run(tmp_path / "allowed", TASK, unused_parameters="allow", accumulation=3).ok()
    run(tmp_path / "coupled", COUPLED).refused(64, "site aa: loss() of task", 'rows = "coupled"', "docs/tasks.md")
    run(tmp_path / "listed", LISTED, accumulation=2).refused(64, 'rows = "coupled"', "train.accumulation = 2")
    run(tmp_path / "word", TASK, unused_parameters="ignore").refused(64, "train.unused_parameters")


@pytest.mark.mpi
def test_the_command_says_the_same_on_two_ranks(tmp_path: Path) -> None:
    run(tmp_path / "refused", TASK, ranks=2).refused(64, "site aa: step 1 (round 1)", "old_head.weight, old_head.bias")
    run(tmp_path / "allowed", TASK, ranks=2, unused_parameters="allow").ok()
    run(tmp_path / "coupled", LISTED, ranks=2).refused(64, 'rows = "coupled"', "2 ranks")
