"""Two sums give the federation's mean and deviation, in every site's model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from train_fakes import make_trainer

from fedhpc.errors import ConfigError, DataError
from fedhpc.train import standardise as module
from fedhpc.train.settings import TrainSettings
from fedhpc.train.standardise import standardise

SETTINGS = TrainSettings(lr=0.1, local_steps=1)


def federation(trainers: list, monkeypatch: pytest.MonkeyPatch | None = None) -> list[str]:
    """Runs `standardise` at several sites in one process: a first pass collects, a later one answers."""
    names: list[str] = []
    totals: dict[str, dict[str, Any]] = {}
    for stage in ("standardise.mean", "standardise.variance"):
        gathered: list[dict[str, Any]] = []

        class Stop(Exception):
            pass

        def collect(arrays: dict, *, name: str, stage: str = stage, gathered: list = gathered, stop: Any = Stop) -> Any:
            if name == stage:
                gathered.append(arrays)
                raise stop
            return totals[name]

        for trainer in trainers:
            with pytest.raises(Stop):
                standardise(collect, trainer)
        totals[stage] = {k: sum(g[k] for g in gathered) for k in gathered[0]}
        names.append(stage)
    for trainer in trainers:
        standardise(lambda arrays, name: totals[name], trainer)
    return names


def test_mean_and_deviation_of_the_union(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_ROWS", 7)
    rng = np.random.default_rng(0)
    tables = [(rng.normal(1e3, 5, (n, 5)) * [1, 10, 1, 1, 0.1]).astype(np.float32) for n in (30, 45)]
    for table in tables:
        table[:, 2] = 0.1
        table[:, 3] = 0.0
    trainers = [make_trainer(SETTINGS, n=len(t), held_out=5, dataset=data(t)) for t in tables]
    federation(trainers)
    union = np.concatenate([t[5:] for t in tables]).astype(np.float64)
    scale = union.std(axis=0)
    scale[[2, 3]] = 1.0
    for trainer in trainers:
        tensors = trainer.tensors()
        np.testing.assert_array_equal(tensors["feature_mean"], union.mean(axis=0).astype(np.float32))
        np.testing.assert_allclose(tensors["feature_scale"], scale, rtol=1e-6)
        assert tensors["feature_scale"][2] == tensors["feature_scale"][3] == 1.0


def data(table: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(table), torch.zeros(len(table)))


def test_a_rounded_sum_does_not_blow_up_a_constant_feature() -> None:
    trainer = make_trainer(SETTINGS, n=20, held_out=0, dataset=data(np.full((20, 5), 7.3, dtype=np.float32)))
    quantum = 2.0**-20

    def rounded(arrays: dict, name: str) -> dict:
        return {k: np.floor(v / quantum) * quantum if v.dtype == np.float64 else v for k, v in arrays.items()}

    standardise(rounded, trainer)
    assert (trainer.tensors()["feature_scale"] == 1.0).all()


def test_values_that_are_not_finite_and_models_without_buffers_are_refused() -> None:
    table = np.zeros((20, 5), dtype=np.float32)
    table[7, 1] = np.nan
    with pytest.raises(DataError, match="site a: 1 of 5 features"):
        standardise(lambda arrays, name: arrays, make_trainer(SETTINGS, n=20, held_out=0, dataset=data(table)))
    plain = make_trainer(SETTINGS, model=torch.nn.Linear(5, 1))
    with pytest.raises(ConfigError, match="feature_mean"):
        standardise(lambda arrays, name: arrays, plain)
