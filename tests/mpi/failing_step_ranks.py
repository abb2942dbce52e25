"""Runs on every rank of test_failing_step.py: a step of training fails on one rank, or on all of them.

failing_step_ranks.py BACKEND RANK      RANK "all": on every rank
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from train_fakes import loss, make_task, make_trainer

from fedhpc.mpi import world as mpi_world
from fedhpc.train.first_model import Drawn, FirstModel
from fedhpc.train.settings import ComputeSettings, TrainSettings

backend, who = sys.argv[1:]
group = mpi_world.start().group
group.label = "site a"
calls = 0


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(5, 5) for _ in range(2))
        self.out = torch.nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        if failing():
            raise ValueError(f"the fault of rank {group.rank}")
        return self.out(x)[:, 0]


def failing() -> bool:
    global calls
    calls += 1
    return calls == 3 and who in ("all", str(group.rank))


def fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 0.3


settings = TrainSettings(optimizer="adamw", lr=0.01, batch_size=8, local_steps=200)
first: Any = FirstModel(Net, Drawn(fill, 1, "task.py"))
compute = ComputeSettings(backend=backend, device="cpu")  # type: ignore[arg-type]
with make_trainer(settings, group=group, model=first, task=make_task(loss=loss), compute=compute) as trainer:
    trainer.train(1, trainer.tensors())
