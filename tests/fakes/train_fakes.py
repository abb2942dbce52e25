"""A task and rows in memory, for the tests of the trainer."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from fedhpc.mpi.collectives import Group, SerialGroup
from fedhpc.train.first_model import FirstModel
from fedhpc.train.settings import ComputeSettings, TrainSettings
from fedhpc.train.tasks.loader import Task
from fedhpc.train.trainer import TorchTrainer


class Net(torch.nn.Module):
    """Batch norm (running statistics, an integer counter), dropout, and the buffers of standardising."""

    def __init__(self, dropout: float = 0.3, norm: bool = True, features: int = 5) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.a = torch.nn.Linear(features, 8)
        self.norm = torch.nn.BatchNorm1d(8) if norm else torch.nn.Identity()
        self.drop = torch.nn.Dropout(dropout)
        self.b = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.feature_mean) / self.feature_scale
        return self.b(self.drop(torch.relu(self.norm(self.a(x)))))[:, 0]


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return torch.nn.functional.mse_loss(model(x), y)


def sums(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    x, y = batch
    error = model(x) - y
    return {"n": torch.tensor(len(y)), "loss": (error**2).sum(), "close": (error.abs() < 1).sum(), "error": error.sum()}


def make_task(site: str = "a", **functions: Any) -> Task:
    module = types.ModuleType("fake_task")
    module.__dict__.update(
        {"model": lambda o: Net(**o), "dataset": lambda p, o: rows(), "loss": loss, "sums": sums} | functions
    )
    return Task("fake", module, None, "fake", site)


def rows(n: int = 53, features: int = 5) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, features, generator=generator)
    return TensorDataset(x, x @ torch.arange(1.0, features + 1) + 0.1 * torch.randn(n, generator=generator))


def make_trainer(
    settings: TrainSettings,
    *,
    model: dict[str, Any] | torch.nn.Module | FirstModel | None = None,
    group: Group | None = None,
    n: int = 53,
    held_out: int = 10,
    proximal: float = 0.0,
    task: Task | None = None,
    compute: ComputeSettings | None = None,
    dataset: Any = None,
) -> TorchTrainer:
    task = task or make_task()
    if not isinstance(model, FirstModel):
        built = model if isinstance(model, torch.nn.Module) else task.model(model or {}, 3)
        model = FirstModel(lambda: built)
    order = np.arange(n, dtype=np.int64)
    return TorchTrainer(
        task, model, dataset or rows(n), order[held_out:], order[:held_out], settings,
        compute or ComputeSettings(device="cpu"), group or SerialGroup("site a"), "a", 11, proximal,
    )  # fmt: skip
