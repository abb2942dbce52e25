"""[task], [train] and [compute] refuse what cannot work, and name the key."""

from __future__ import annotations

import pytest

from fedhpc.config import read_section
from fedhpc.errors import ConfigError
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({}, "exactly one of local_steps and local_epochs"),
        ({"local_steps": 1, "local_epochs": 1}, "exactly one"),
        ({"local_steps": 1, "lr": 0.0}, "train.lr"),
        ({"local_steps": 1, "lr": float("nan")}, "train.lr"),
        ({"local_steps": 1, "momentum": 1.0}, "train.momentum"),
        ({"local_steps": 1, "optimizer": "adamw", "momentum": 0.9}, "train.momentum"),
        ({"local_steps": 1, "betas": [0.8, 0.9]}, "train.betas"),
        ({"local_steps": 1, "optimizer": "adamw", "betas": [0.8]}, "train.betas"),
        ({"local_steps": 1, "accumulation": 0}, "train.accumulation"),
        ({"local_steps": 1, "clip_norm": -1.0}, "train.clip_norm"),
        ({"local_steps": 1, "batch_size": -1}, "train.batch_size"),
        ({"local_steps": 1, "schedule": "cosine"}, "train.total_steps"),
        ({"local_steps": 1, "schedule": "linear", "warmup_steps": 9, "total_steps": 9}, "train.total_steps"),
        ({"local_steps": 1, "total_steps": 9}, "train.total_steps"),
        ({"local_steps": 1, "optimiser": "sgd"}, "optimiser"),
        ({"local_steps": 1, "optimizer": "adam", "momentum": 0.9}, "train.momentum"),
        ({"local_steps": 1, "schedule": "step"}, "train.step_every"),
        ({"local_steps": 1, "schedule": "step", "step_every": 2, "gamma": 1.5}, "train.gamma"),
        ({"local_steps": 1, "schedule": "step", "step_every": 2, "total_steps": 9}, "train.total_steps"),
        ({"local_steps": 1, "step_every": 2}, "train.step_every"),
        ({"local_steps": 1, "gamma": 0.5}, "train.step_every"),
        ({"local_steps": 1, "keep": "auc"}, "train.keep"),
        ({"local_steps": 1, "patience": 3}, "train.patience"),
        ({"local_steps": 1, "keep": "best:auc", "min_delta": -0.1}, "train.min_delta"),
        ({"local_steps": 1, "personal": "head"}, "train.personal"),
    ],
)
def test_train_refuses(table: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_section(TrainSettings, {"lr": 0.1} | table, "train")


def test_the_learning_rate_has_no_default() -> None:
    with pytest.raises(ConfigError, match="'lr' is missing"):
        read_section(TrainSettings, {"local_steps": 1}, "train")


def test_train_reads_a_whole_section() -> None:
    table = {
        "optimizer": "adamw", "lr": 1, "betas": [0.8, 0.9], "batch_size": 0, "local_epochs": 2, "accumulation": 2,
        "clip_norm": 1.0, "schedule": "cosine", "warmup_steps": 3, "total_steps": 30, "precision": "bf16",
        "optimizer_state": "reset", "weight_decay": 0.1,
    }  # fmt: skip
    read = read_section(TrainSettings, table, "train")
    assert read.betas == (0.8, 0.9)
    assert read.lr == 1.0


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"name": "module"}, "task.source_sha256"),
        ({"name": "mlp", "source_sha256": "0" * 64}, "task.source_sha256"),
        ({"name": "module", "source_sha256": "A" * 64}, "task.source_sha256"),
        ({"name": "mlp", "features_sha256": "12"}, "task.features_sha256"),
        ({"name": "mlp", "held_out": 1.0}, "task.held_out"),
        ({"name": "mlp", "split_seed": -1}, "task.split_seed"),
        ({"name": "mpl"}, "did you mean 'mlp'|is not one of"),
    ],
)
def test_task_refuses(table: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_section(TaskSettings, table, "task")


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"threads": 0}, "compute.threads"),
        ({"workers": -1}, "compute.workers"),
        ({"data_memory_mib": -1}, "compute.data_memory_mib"),
    ],
)
def test_compute_refuses(table: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_section(ComputeSettings, table, "compute")
