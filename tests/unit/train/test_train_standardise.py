"""Two sums give the federation's mean and deviation, in every site's model, whatever the units of the columns."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from federation_fakes import Meeting
from torch.utils.data import TensorDataset
from train_fakes import Net, make_trainer

from fedhpc.app.federation import Federation
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.session import Session
from fedhpc.train import standardise as module
from fedhpc.train.settings import TrainSettings
from fedhpc.train.standardise import standardise

SETTINGS = TrainSettings(lr=0.1, local_steps=1)
ROWS = (300, 250, 200)
HELD_OUT = 5


def data(table: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(table), torch.zeros(len(table)))


def trainer_of(table: np.ndarray, *, held_out: int = HELD_OUT, double: bool = False) -> Any:
    model = Net(features=table.shape[1])
    if double:
        model.double()
    return make_trainer(SETTINGS, model=model, n=len(table), held_out=held_out, dataset=data(table))


def federated(tables: list[np.ndarray], **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """feature_mean and feature_scale after real sums over sites that hold one table each, the same at all of them."""
    trainers = [trainer_of(table, **how) for table in tables]

    def work(session: Session) -> list[Any]:
        trainer = trainers[session.party.number - 1]
        standardise(partial(Federation(session).sum, everyone=True), trainer)
        return [trainer.tensors()[name] for name in ("feature_mean", "feature_scale")]

    found = Meeting(len(tables)).run(work) if len(tables) > 1 else {1: alone(trainers[0])}
    for other in found.values():
        np.testing.assert_array_equal(other, found[1])
    return found[1][0], found[1][1]


def alone(trainer: Any) -> list[Any]:
    standardise(lambda arrays, **how: arrays, trainer)
    return [trainer.tensors()[name] for name in ("feature_mean", "feature_scale")]


def pooled(tables: list[np.ndarray], held_out: int = HELD_OUT) -> tuple[np.ndarray, np.ndarray]:
    union = np.concatenate([t[held_out:] for t in tables]).astype(np.longdouble)
    return union.mean(axis=0), union.std(axis=0)


def clinical(unit: float, kind: type = np.float32) -> list[np.ndarray]:
    """Age, sex, creatinine, a date in nanoseconds since 1970, and platelets in any unit."""
    draw, tables = np.random.default_rng(3), []
    for rows in ROWS:
        age, sex = draw.uniform(40, 84, rows), draw.integers(0, 2, rows)
        date = 1.7e18 + 1e16 * draw.standard_normal(rows)
        platelets = draw.normal(250, 60, rows) * unit
        tables.append(np.stack([age, sex, np.exp(draw.normal(0, 0.3, rows)), date, platelets], axis=1).astype(kind))
    return tables


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1.0, 1e6, 1e9, 1e15, 1e30])
@pytest.mark.parametrize("sites", [1, 3])
def test_a_unit_changes_no_other_column(unit: float, sites: int) -> None:
    """F1: platelets per litre gave all other columns the scale 1, and the model another AUC."""
    tables = clinical(unit) if sites == 3 else [np.concatenate(clinical(unit))]
    mean, deviation = pooled(tables)
    # Buffers of float64 show the sums' own precision; those of float32 are the nearest numbers.
    found = federated(tables, double=True)
    np.testing.assert_allclose(found[0], mean.astype(float), rtol=1e-12)
    np.testing.assert_allclose(found[1], deviation.astype(float), rtol=1e-9)
    found = federated(tables)
    assert found[1].dtype == np.float32
    np.testing.assert_array_max_ulp(found[0], mean.astype(np.float32))
    np.testing.assert_array_max_ulp(found[1], deviation.astype(np.float32))


def test_mean_and_deviation_of_the_union_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_VALUES", 36)
    rng = np.random.default_rng(0)
    tables = [(rng.normal(1e3, 5, (n, 5)) * [1, 10, 1, 1, 0.1]).astype(np.float32) for n in (30, 45, 28)]
    for table in tables:
        table[:, 2] = 0.1
        table[:, 3] = 0.0
    mean, deviation = pooled(tables)
    found = federated(tables)
    np.testing.assert_array_max_ulp(found[0], mean.astype(np.float32))
    deviation[[2, 3]] = 1.0
    np.testing.assert_array_max_ulp(found[1], deviation.astype(np.float32))
    assert found[1][2] == found[1][3] == 1.0


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3, -1e-30, 1e30, 1.7e18, 1e-44])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_constant_is_one_and_what_varies_is_none(value: float, kind: type) -> None:
    """Constant everywhere; at two sites of three; but for one row of one site, in the last digit."""
    tables = [np.full((20, 3), value, dtype=np.float32) for _ in range(3)]
    tables[2][:, 1] *= 2
    tables[2][:, 1] += np.float32(value == 0)
    tables[1][7, 2] = np.nextafter(tables[1][7, 2], np.float32(np.inf))
    _, deviation = pooled(tables)
    _, scale = federated([t.astype(kind) for t in tables], double=True)
    assert scale[0] == 1.0
    np.testing.assert_allclose(scale[1:], deviation[1:].astype(float), rtol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e9 + 0.1, 1.7e9])
def test_a_constant_that_float32_cannot_hold_is_a_constant(value: float) -> None:
    mean, scale = federated([np.full((n, 1), value) for n in (400, 30, 21)])
    assert scale[0] == max(1.0, np.float32(abs(value - float(mean[0]))))


def test_what_float32_cannot_hold_beside_its_mean_is_told_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """Seconds since 1970 of half a minute, as float64: float32 steps are 128 s there."""
    draw = np.random.default_rng(1)
    tables = [np.stack([1.7e9 + draw.uniform(0, 30, n), draw.normal(size=n)], axis=1) for n in (40, 50, 60)]
    with caplog.at_level(logging.WARNING, logger="fedhpc.train"):
        mean, scale = federated(tables)
    assert "feature 0: the deviation is smaller than what float32 holds of the mean" in caplog.text
    inputs = (tables[0][:, 0] - float(mean[0])) / float(scale[0])
    assert np.abs(inputs).max() < 3
    assert scale[1] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("size", [1e-200, 1e-160])
def test_squares_that_vanish_are_refused_and_no_constant(size: float) -> None:
    tables = [np.random.default_rng(n).normal(size=(n, 2)) * [1, size] for n in (30, 40, 50)]
    with pytest.raises(DataError, match="feature 1: the deviation is too small"):
        federated(tables, double=True)


def test_a_sum_that_was_rounded_to_zero_is_refused_and_no_constant() -> None:
    """Whatever adds the numbers up: where their grid is coarser than the squares, nothing is known of a deviation."""

    def rounded(arrays: dict, **how: Any) -> Any:
        sums = Coarse({k: np.floor(v) if v.dtype == np.float64 else v for k, v in arrays.items()})
        sums.quantum = dict.fromkeys(arrays, 1.0)
        return sums

    trainer = trainer_of(np.array([[0.5, 3.0], [0.5, 9.0], [0.5, 0.25]], np.float32) / 4, held_out=0)
    with pytest.raises(DataError, match="feature"):
        standardise(rounded, trainer)


class Coarse(dict[str, Any]):
    quantum: dict[str, float]


def test_numbers_too_large_for_the_buffers_are_refused() -> None:
    table = np.ones((20, 2))
    table[3, 1] = 1e300
    with pytest.raises(DataError, match="site a: 1 of 2 features hold values that are not finite, or too large"):
        federated([table], held_out=0)
    table[3, 1] = 1e200  # its square is beyond float64
    with pytest.raises(DataError, match="1 of 2 features"):
        federated([table], held_out=0, double=True)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.uint8, torch.int64])
def test_features_of_any_kind(kind: torch.dtype) -> None:
    rows = torch.arange(60, dtype=torch.float32).reshape(30, 2).to(kind)
    trainer = make_trainer(
        SETTINGS, model=Net(features=2), n=30, held_out=0, dataset=TensorDataset(rows, torch.zeros(30))
    )
    mean, scale = alone(trainer)
    np.testing.assert_array_max_ulp(mean, rows.double().mean(0).numpy().astype(np.float32))
    np.testing.assert_array_max_ulp(scale, rows.double().std(0, correction=0).numpy().astype(np.float32))


def test_values_that_are_not_finite_and_models_without_buffers_are_refused() -> None:
    table = np.zeros((20, 5), dtype=np.float32)
    table[7, 1] = np.nan
    with pytest.raises(DataError, match="site a: 1 of 5 features"):
        alone(trainer_of(table, held_out=0))
    plain = make_trainer(SETTINGS, model=torch.nn.Linear(5, 1))
    with pytest.raises(ConfigError, match="feature_mean"):
        standardise(lambda arrays, **how: arrays, plain)


def test_sixty_thousand_features_take_sums_of_bounded_size() -> None:
    draw = np.random.default_rng(0)
    tables = [draw.normal(size=(3, 60_000)).astype(np.float32) * np.float32(10.0) ** place for place in (1, 5, 6)]
    trainers = [make_trainer(SETTINGS, model=Buffers(60_000), n=3, held_out=0, dataset=data(t)) for t in tables]
    meeting, sizes = Meeting(3), []
    meeting.noted = lambda plan, layout: sizes.append(layout.nbytes)

    def work(session: Session) -> Any:
        trainer = trainers[session.party.number - 1]
        standardise(partial(Federation(session).sum, everyone=True), trainer)
        return trainer.tensors()["feature_scale"]

    scale = meeting.run(work)[1]
    assert max(sizes) <= 17 << 20
    assert len(sizes) <= 12
    np.testing.assert_array_max_ulp(scale, pooled(tables, 0)[1].astype(np.float32))


class Buffers(torch.nn.Module):
    """The buffers of standardising, and a parameter."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.weight = torch.nn.Parameter(torch.zeros(1))
