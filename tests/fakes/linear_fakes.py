"""The task logistic on rows in memory, for a NumPy trainer and for a torch trainer in double precision."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from fedhpc.mpi.collectives import Group, SerialGroup
from fedhpc.train.class_rows import ClassRows
from fedhpc.train.first_model import FirstModel
from fedhpc.train.linear.numpy_trainer import NumpyTrainer
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.settings import ComputeSettings, TrainSettings
from fedhpc.train.tasks import logistic
from fedhpc.train.tasks.loader import Task
from fedhpc.train.trainer import TorchTrainer

BINS = 40
Rows = tuple[np.ndarray, np.ndarray]


class MemoryRows(ClassRows):
    """Rows that no store holds."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.labels = x, y
        self.store: Any = types.SimpleNamespace(
            feature_set=None,
            close=lambda: None,
            features=lambda rows: x[rows],
            features_in_turn=lambda plan: (x[rows] for rows in plan),
        )


def drawn(seed: int, n: int, features: int) -> Rows:
    """Features of several units, and classes that follow from them in part."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((n, features)) * 10.0 ** draw.integers(-1, 2, features) + draw.integers(-3, 4, features)
    y = (x @ draw.standard_normal(features) + draw.standard_normal(n) > 0).astype(np.int64)
    return x.astype(np.float32), y


def loss_in_double(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return torch.nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.double())


def numpy_trainer(
    rows: Rows, settings: TrainSettings, *, held_out: int = 6, proximal: float = 0.0, group: Group | None = None,
    kind: Any = np.float64, site: str = "a",
) -> NumpyTrainer:  # fmt: skip
    order = np.arange(len(rows[1]), dtype=np.int64)
    return NumpyTrainer(
        LogisticOptions(rows[0].shape[1], BINS), MemoryRows(*rows), order[held_out:], order[:held_out], settings,
        group or SerialGroup(f"site {site}"), site, 11, proximal, kind,
    )  # fmt: skip


def torch_trainer(
    rows: Rows, settings: TrainSettings, *, held_out: int = 6, proximal: float = 0.0, group: Group | None = None,
    kind: Any = np.float64, site: str = "a",
) -> TorchTrainer:  # fmt: skip
    order = np.arange(len(rows[1]), dtype=np.int64)
    module = types.ModuleType("double_task")
    module.__dict__.update(
        model=lambda options: logistic.model(options).double(), dataset=lambda path, options: None,
        loss=loss_in_double, sums=logistic.sums,
    )  # fmt: skip
    task = Task("double", module if kind is np.float64 else logistic, None, "double", site)
    made = task.model({"features": rows[0].shape[1], "bins": BINS}, 0)
    return TorchTrainer(
        task, FirstModel(lambda: made), TensorDataset(*map(torch.from_numpy, rows)), order[held_out:],
        order[:held_out], settings, ComputeSettings(device="cpu"), group or SerialGroup(f"site {site}"), site, 11,
        proximal,
    )  # fmt: skip
