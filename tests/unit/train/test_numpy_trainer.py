"""The task logistic with NumPy alone: what torch computes in double precision, and the same life of a trainer."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_fakes import drawn, numpy_trainer, torch_trainer

from fedhpc.app.federation import Federation
from fedhpc.errors import DataError
from fedhpc.federation.session import Session
from fedhpc.rounds.interfaces import LocalResult
from fedhpc.rounds.loop import Run
from fedhpc.rounds.null_objects import NoCheckpoints, Silence
from fedhpc.train.evaluate import EXPECTED, NEGATIVE, POSITIVE
from fedhpc.train.linear.numpy_trainer import NumpyTrainer
from fedhpc.train.settings import TrainSettings
from fedhpc.train.standardise import standardise

Arrays = dict[str, np.ndarray]
STEPS = 5
ADAMW = TrainSettings(optimizer="adamw", lr=0.02, weight_decay=0.03, batch_size=8, local_steps=STEPS)
MOMENTUM = TrainSettings(lr=0.05, momentum=0.9, weight_decay=0.01, batch_size=8, local_steps=STEPS, clip_norm=0.3)
SETTINGS: dict[str, tuple[TrainSettings, float]] = {
    "adamw": (ADAMW, 0.0),
    "momentum": (MOMENTUM, 0.0),
    "plain sgd": (dataclasses.replace(MOMENTUM, momentum=0.0, clip_norm=0.0), 0.0),
    "all rows": (dataclasses.replace(MOMENTUM, batch_size=0), 0.0),
    "reset": (dataclasses.replace(ADAMW, optimizer_state="reset"), 0.0),
    "accumulation": (dataclasses.replace(ADAMW, accumulation=3), 0.0),
    "cosine": (dataclasses.replace(ADAMW, schedule="cosine", warmup_steps=3, total_steps=9), 0.0),
    "linear": (dataclasses.replace(MOMENTUM, schedule="linear", total_steps=9), 0.0),
    "adam": (dataclasses.replace(ADAMW, optimizer="adam"), 0.0),
    "steps": (dataclasses.replace(MOMENTUM, schedule="step", step_every=2, gamma=0.5, warmup_steps=1), 0.0),
    "fedprox": (MOMENTUM, 0.5),
    "epochs": (dataclasses.replace(ADAMW, local_steps=0, local_epochs=2), 0.0),
}


def close(one: Arrays, two: Arrays, within: float) -> None:
    assert list(one) == list(two)
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert one[name].shape == two[name].shape
        np.testing.assert_allclose(one[name], two[name], rtol=within, atol=within, err_msg=name)


def two_rounds(trainer: Any) -> tuple[Arrays, list[LocalResult]]:
    """Two rounds from models that are not the first."""
    with trainer:
        standardise(lambda arrays, **how: arrays, trainer)
        results = []
        for round_ in range(2):
            anchor = {name: array + 0.01 for name, array in trainer.tensors().items()}
            trainer.load(anchor)
            results.append(trainer.train(round_, anchor))
        return trainer.tensors(), results


def chosen(draw: Any) -> TrainSettings:
    """Any [train] that the task allows in single precision."""
    optimizer = draw(st.sampled_from(["sgd", "adam", "adamw"]))
    schedule = draw(st.sampled_from(["constant", "cosine", "linear"]))
    return TrainSettings(
        lr=draw(st.floats(1e-3, 0.3)), optimizer=optimizer, schedule=schedule,
        momentum=draw(st.sampled_from([0.0, 0.5, 0.9])) if optimizer == "sgd" else 0.0,
        weight_decay=draw(st.sampled_from([0.0, 0.01, 0.2])), batch_size=draw(st.integers(0, 20)),
        local_steps=draw(st.integers(1, 7)), accumulation=draw(st.integers(1, 3)),
        clip_norm=draw(st.sampled_from([0.0, 0.05, 2.0])), warmup_steps=draw(st.integers(0, 3)),
        total_steps=0 if schedule == "constant" else draw(st.integers(4, 20)),
        optimizer_state=draw(st.sampled_from(["keep", "reset"])),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_computes_what_torch_computes_in_double_precision(data: Any) -> None:
    rows = drawn(data.draw(st.integers(0, 2**32)), data.draw(st.integers(9, 45)), data.draw(st.integers(1, 6)))
    train, proximal = chosen(data.draw), data.draw(st.sampled_from([0.0, 0.3]))
    found, results = two_rounds(numpy_trainer(rows, train, proximal=proximal))
    expected, others = two_rounds(torch_trainer(rows, train, proximal=proximal))
    close(found, expected, 1e-10)
    for one, two in zip(results, others, strict=True):
        assert (one.samples, one.steps, one.whole) == (two.samples, two.steps, two.whole)
        assert one.loss == pytest.approx(two.loss, rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 5), st.floats(0.0, 50.0))
def test_its_sums_over_held_out_rows_are_those_of_torch(seed: int, held_out: int, features: int, size: float) -> None:
    rows = drawn(seed, held_out + 5, features)
    sums = []
    for make in (numpy_trainer, torch_trainer):
        with make(rows, ADAMW, held_out=held_out) as trainer:
            model = trainer.tensors()
            model["network.weight"] += size * np.random.default_rng(seed).standard_normal((1, features))
            trainer.load(model)
            sums.append(trainer.measure())
    found, expected = sums
    for name in (POSITIVE, NEGATIVE):  # rounding may move a row to the next bin
        assert np.abs(np.cumsum(found.pop(name)) - np.cumsum(expected.pop(name))).max() <= 1
    close(dict(sorted(found.items())), dict(sorted(expected.items())), 1e-10)
    assert EXPECTED in found


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "diloco"])
def test_whole_federations_end_where_those_of_torch_do(strategy: str, name: str) -> None:
    """Standardising, three rounds of sums and the measurement, three sites, in double precision."""
    train = SETTINGS[name][0]
    tables = [drawn(site, 20 + 9 * site, 4) for site in range(3)]

    def trained(make: Any) -> tuple[Arrays, dict[str, Any]]:
        meeting = Meeting(3, rounds=3, strategy={"name": strategy, "weights": "samples"}, secure={"lane_bits": 64})

        def work(session: Session) -> tuple[Arrays, dict[str, Any]]:
            number = session.party.number
            proximal = session.agreement.strategy.proximal
            with make(tables[number - 1], train, proximal=proximal, site=f"s{number}") as trainer:
                prepare = partial(standardise, partial(Federation(session).sum, everyone=True), trainer)
                outcome = Run(session, trainer, NoCheckpoints(), Silence(), prepare=prepare).run()
            return outcome.model.whole(), outcome.metrics

        return meeting.run(work)[1]

    found, metrics = trained(numpy_trainer)
    expected, others = trained(torch_trainer)
    close(found, expected, 1e-10)
    assert np.abs(found["network.weight"]).max() > 1e-3
    assert metrics["loss"] == pytest.approx(others["loss"], rel=1e-10)
    assert metrics["auc"] == pytest.approx(others["auc"], abs=1e-10)


# --- stopped, and gone on


def after(steps: int) -> Any:
    left = iter(range(1, steps + 1))
    return lambda: next(left) == steps


def stopped(first: Any, second: Any, at: int) -> tuple[Arrays, Arrays]:
    """Each of two rounds is stopped after `at` steps under `first` and goes on under `second`."""
    tensors: Arrays = {}
    private: Arrays = {}
    for round_ in range(2):
        with first() as trainer:
            if tensors:
                trainer.load(tensors)
                trainer.restore(private)
            anchor = {name: array + np.float32(0.01) for name, array in trainer.tensors().items()}
            trainer.load(anchor)
            result = trainer.train(round_, anchor, after(at))
            assert (result.steps, result.whole) == (at, False)
            tensors, private = trainer.tensors(), trainer.private()
        with second() as trainer:
            trainer.load(tensors)
            trainer.restore(private)
            assert trainer.train(round_, anchor).whole
            tensors, private = trainer.tensors(), trainer.private()
    return tensors, private


@pytest.mark.parametrize("at", range(1, STEPS))
@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_stopped_after_any_step_ends_with_the_same_bits(name: str, at: int) -> None:
    train, proximal = SETTINGS[name]
    make = partial(numpy_trainer, drawn(1, 46, 4), train, proximal=proximal, kind=np.float32)
    tensors: Arrays = {}
    with make() as trainer:
        for round_ in range(2):
            anchor = {name: array + np.float32(0.01) for name, array in trainer.tensors().items()}
            trainer.load(anchor)
            trainer.train(round_, anchor)
        tensors, private = trainer.tensors(), trainer.private()
    found, found_private = stopped(make, make, at)
    for one, two in ((found, tensors), (found_private, private)):
        assert sorted(one) == sorted(two)
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key, strict=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_goes_on_under_the_other_backend(name: str) -> None:
    """In the middle of a round, with what the other has kept of its optimiser."""
    train, proximal = SETTINGS[name]
    plain, torch_ = (
        partial(make, drawn(1, 46, 4), train, proximal=proximal, kind=np.float32)
        for make in (numpy_trainer, torch_trainer)
    )
    alone, _ = stopped(plain, plain, 2)
    for first, second in ((plain, torch_), (torch_, plain)):
        found, _ = stopped(first, second, 2)
        close(found, alone, 1e-4 if train.optimizer != "sgd" else 1e-5)


# --- what is refused


def trainer() -> NumpyTrainer:
    return numpy_trainer(drawn(1, 46, 4), ADAMW, kind=np.float32)


def test_a_state_of_another_model_is_refused() -> None:
    with trainer() as here:
        tensors = here.tensors()
        for wrong in (
            {**tensors, "network.weight": np.zeros((1, 5), np.float32)},
            {**tensors, "network.weight": np.zeros((1, 4))},
            {**tensors, "another": np.zeros(2, np.float32)},
            {name: array for name, array in tensors.items() if name != "network.bias"},
        ):
            with pytest.raises(DataError, match="the model's"):
                here.load(wrong)
        np.testing.assert_array_equal(here.tensors()["network.weight"], tensors["network.weight"])


def test_private_state_of_another_task_is_refused() -> None:
    with trainer() as here:
        here.train(0, here.tensors())
        private = here.private()
        assert private["optimizer:network.weight:exp_avg"].dtype == np.float32
        others: list[tuple[Arrays, str]] = [
            ({name: array for name, array in private.items() if name != "position"}, "lacks the trainer's position"),
            (private | {"optimizer:a.weight:exp_avg": np.zeros(3, np.float32)}, "optimiser state for a.weight"),
            (private | {"optimizer:network.bias:exp_avg": np.zeros(3, np.float32)}, r"network.bias \[3\]"),
            (private | {"buffer:norm.count": np.zeros((), np.int64)}, "other counters"),
            (private | {"position": np.array([0, 99, 0])}, "no position 99"),
        ]
        for wrong, words in others:
            with pytest.raises(DataError, match=words):
                here.restore(wrong)
        with pytest.raises(DataError, match=r"optimiser state for a\.weight"):
            here.restore_parts({"exp_avg": lambda: {"a.weight": np.zeros(3, np.float32)}})


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_not_finite_names_the_step() -> None:
    x, y = drawn(1, 46, 4)
    x[20, 1] = np.nan
    with (
        numpy_trainer((x, y), dataclasses.replace(ADAMW, batch_size=0), kind=np.float32) as here,
        pytest.raises(DataError, match=r"the training loss is nan at step 1 \(round 3\)"),
    ):
        here.train(3, here.tensors())
    with (
        numpy_trainer(drawn(1, 46, 4), TrainSettings(lr=1e40, batch_size=0, local_steps=9), kind=np.float32) as here,
        pytest.raises(DataError, match="the training loss is"),
    ):
        here.train(0, here.tensors())


@pytest.mark.filterwarnings("error")
def test_a_score_that_is_not_finite_is_refused() -> None:
    x, y = drawn(1, 46, 4)
    x[2, 1] = np.inf
    with (
        numpy_trainer((x, y), ADAMW, kind=np.float32) as here,
        pytest.raises(DataError, match="score of a held-out row is not a finite number"),
    ):
        here.measure()
