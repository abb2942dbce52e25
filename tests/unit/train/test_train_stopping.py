"""A round that is stopped after any step and goes on in another process ends with the same bits as one that is not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from train_fakes import Net, loss, make_task, make_trainer, rows

from fedhpc.errors import DataError
from fedhpc.rounds.interfaces import LocalResult
from fedhpc.train.settings import ComputeSettings, TrainSettings
from fedhpc.train.trainer import CHECK_STEPS, TorchTrainer
from fedhpc.train.within_round import WithinRound

Arrays = dict[str, np.ndarray]
STEPS = 6
ADAMW = TrainSettings(optimizer="adamw", lr=0.01, weight_decay=0.02, batch_size=8, local_steps=STEPS)
MOMENTUM = TrainSettings(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=8, local_steps=STEPS, clip_norm=0.5)
SETTINGS: dict[str, tuple[TrainSettings, float]] = {
    "adamw": (ADAMW, 0.0),
    "momentum": (MOMENTUM, 0.0),
    "plain sgd": (dataclasses.replace(MOMENTUM, momentum=0.0), 0.0),
    "reset": (dataclasses.replace(ADAMW, optimizer_state="reset"), 0.0),
    "reset momentum": (dataclasses.replace(MOMENTUM, optimizer_state="reset"), 0.0),
    "accumulation": (dataclasses.replace(ADAMW, accumulation=3), 0.0),
    "bf16": (dataclasses.replace(ADAMW, precision="bf16"), 0.0),
    "schedule": (dataclasses.replace(ADAMW, schedule="cosine", warmup_steps=4, total_steps=15), 0.0),
    "fedprox": (ADAMW, 0.5),
    "epochs": (dataclasses.replace(ADAMW, local_steps=0, local_epochs=1), 0.0),
}


def equal(one: Arrays, two: Arrays) -> None:
    assert sorted(one) == sorted(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name, strict=True)


def copied(arrays: Arrays) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


def after(steps: int) -> Callable[[], bool]:
    """at_step that stops once so many of its calls have been made."""
    left = iter(range(1, steps + 1))
    return lambda: next(left) == steps


class Rounds:
    """Rounds of a site: the same model as the global one, moved by a constant, begins each of them."""

    def __init__(self, make: Callable[[], TorchTrainer], rounds: int = 2) -> None:
        self.make, self.rounds = make, rounds

    def unbroken(self) -> tuple[Arrays, Arrays, list[LocalResult]]:
        results = []
        with self.make() as trainer:
            for round_ in range(self.rounds):
                anchor = self.anchor(trainer)
                trainer.load(anchor)
                trainer.measure()
                results.append(trainer.train(round_, anchor))
            return trainer.tensors(), copied(trainer.private()), results

    def stopped(self, at: int, again: int = 0) -> tuple[Arrays, Arrays, list[LocalResult]]:
        """Every round is stopped after `at` steps, and, if `again`, once more after that many further ones."""
        tensors: Arrays | None = None
        private: Arrays = {}
        results = []
        for round_ in range(self.rounds):
            with self.make() as trainer:
                if tensors is not None:
                    trainer.load(tensors)
                    trainer.restore(private)
                anchor = self.anchor(trainer)
                trainer.load(anchor)
                trainer.measure()
                result = trainer.train(round_, anchor, after(at))
                assert (result.steps, result.whole) == (at, False)
                tensors, private = copied(trainer.tensors()), copied(trainer.private())
            for more in [again] if again else []:
                with self.make() as trainer:
                    trainer.load(tensors)
                    trainer.restore(private)
                    result = trainer.train(round_, anchor, after(more))
                    assert (result.steps, result.whole) == (at + more, False)
                    tensors, private = copied(trainer.tensors()), copied(trainer.private())
            with self.make() as trainer:
                trainer.load(tensors)
                trainer.restore(private)
                results.append(trainer.train(round_, anchor))
                assert results[-1].whole
                tensors, private = copied(trainer.tensors()), copied(trainer.private())
        assert tensors is not None
        return tensors, private, results

    @staticmethod
    def anchor(trainer: TorchTrainer) -> Arrays:
        return {name: array + np.float32(0.01) for name, array in trainer.tensors().items()}

    def compare(self, at: int, again: int = 0) -> None:
        tensors, private, results = self.unbroken()
        found, found_private, found_results = self.stopped(at, again)
        equal(found, tensors)
        equal(found_private, private)
        for one, two in zip(found_results, results, strict=True):
            assert (one.samples, one.steps, one.whole) == (two.samples, two.steps, True)
            assert one.loss == pytest.approx(two.loss, rel=1e-12)


@pytest.mark.parametrize("at", range(1, STEPS))
@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_stopped_after_any_step_ends_with_the_same_bits(name: str, at: int) -> None:
    settings, proximal = SETTINGS[name]
    if name == "epochs":
        assert STEPS == 43 // 8 + 1  # as many steps as the others have
    Rounds(lambda: make_trainer(settings, proximal=proximal)).compare(at)


def test_it_may_be_stopped_again_and_again() -> None:
    for at, again in ((1, 1), (2, 3), (4, 1)):
        Rounds(lambda: make_trainer(ADAMW)).compare(at, again)


class Noisy(torch.utils.data.Dataset):
    """Augments its rows at random, as datasets do in workers."""

    def __init__(self) -> None:
        self.data = rows()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Any:
        x, y = self.data[row]
        return x + torch.randn(5) + np.float32(np.random.standard_normal()), y


@pytest.mark.parametrize("accumulation", [1, 2])
def test_workers_draw_for_the_rest_of_the_round_what_they_would_have_drawn(accumulation: int) -> None:
    settings = dataclasses.replace(ADAMW, local_steps=3, accumulation=accumulation)
    make = lambda: make_trainer(settings, dataset=Noisy(), compute=ComputeSettings(device="cpu", workers=1))  # noqa: E731
    Rounds(make, rounds=1).compare(2)


def test_what_is_kept_on_the_way_is_where_it_stands() -> None:
    """`tensors` and `private` taken at a step, without stopping, change nothing, and the round goes on from them."""
    tensors, private, results = Rounds(lambda: make_trainer(ADAMW), rounds=1).unbroken()
    kept: list[tuple[Arrays, Arrays]] = []
    with make_trainer(ADAMW) as trainer:
        anchor = Rounds.anchor(trainer)
        trainer.load(anchor)
        trainer.measure()

        def keep() -> bool:
            kept.append((copied(trainer.tensors()), copied(trainer.private())))
            return False

        assert trainer.train(0, anchor, keep).loss == pytest.approx(results[0].loss, rel=1e-12)
        equal(trainer.tensors(), tensors)
        equal(trainer.private(), private)
    assert len(kept) == STEPS - 1
    for k, (now, own) in enumerate(kept, start=1):
        with make_trainer(ADAMW) as again:
            again.load(now)
            again.restore(own)
            result = again.train(0, anchor)
            assert (result.steps, result.whole) == (STEPS, True), k
            equal(again.tensors(), tensors)


@pytest.mark.parametrize("lost", ["position", "random", "round", "optimizer:b.bias:exp_avg"])
def test_every_part_of_what_is_kept_matters(lost: str) -> None:
    """Else equal bits would show nothing."""
    settings = SETTINGS["schedule"][0]
    tensors, _, _ = Rounds(lambda: make_trainer(settings), rounds=1).unbroken()
    with make_trainer(settings) as trainer:
        anchor = Rounds.anchor(trainer)
        trainer.load(anchor)
        trainer.train(0, anchor, after(3))
        now, own = copied(trainer.tensors()), copied(trainer.private())
    fresh = make_trainer(settings).private()
    if lost == "round":
        damaged = {name: array for name, array in own.items() if not name.startswith("round")}
    else:
        damaged = own | {lost: fresh.get(lost, np.zeros_like(own[lost]))}
    with make_trainer(settings) as again:
        again.load(now)
        again.restore(damaged)
        again.train(0, anchor)
        assert any((again.tensors()[name] != tensors[name]).any() for name in tensors)


def test_nothing_of_a_round_stays_when_it_is_whole() -> None:
    with make_trainer(dataclasses.replace(ADAMW, optimizer_state="reset")) as trainer:
        trainer.train(0, trainer.tensors(), after(2))
        names = set(trainer.private())
        assert {"round", "round:loss", "round:running", "optimizer:b.bias:exp_avg"} <= names
        trainer.restore(copied(trainer.private()))
        trainer.train(0, trainer.tensors())
        assert not [name for name in trainer.private() if name.startswith(("round", "optimizer"))]


def test_the_last_step_is_no_place_to_stop() -> None:
    calls: list[int] = []

    def at_step() -> bool:
        calls.append(len(calls))
        return False

    with make_trainer(ADAMW) as trainer:
        assert trainer.train(0, trainer.tensors(), at_step).whole
    assert len(calls) == STEPS - 1
    with make_trainer(dataclasses.replace(ADAMW, local_steps=1)) as trainer:
        assert trainer.train(0, trainer.tensors(), lambda: True).whole


def test_the_loss_of_a_stopped_round_is_the_mean_of_its_steps() -> None:
    """Over more steps than are looked at together, stopped on both sides of such a look."""
    settings = dataclasses.replace(ADAMW, local_steps=CHECK_STEPS + 10)
    with make_trainer(settings) as trainer:
        whole = trainer.train(0, trainer.tensors())
    losses: list[float] = []

    def recording(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        value = loss(model, batch)
        losses.append(value.item())
        return value

    for at in (CHECK_STEPS - 1, CHECK_STEPS, CHECK_STEPS + 1):
        losses.clear()
        with make_trainer(settings, task=make_task(loss=recording)) as trainer:
            anchor = trainer.tensors()
            part = trainer.train(0, anchor, after(at))
            assert part.loss == pytest.approx(np.mean(losses), rel=1e-12)
            kept = copied(trainer.tensors()), copied(trainer.private())
        with make_trainer(settings) as again:
            again.load(kept[0])
            again.restore(kept[1])
            result = again.train(0, anchor)
        assert result.loss == pytest.approx(whole.loss, rel=1e-12)
        assert result.steps == settings.local_steps


def test_a_loss_that_is_not_finite_is_not_kept() -> None:
    """A round stopped right after it still says at which step; the step counts over all rounds."""
    calls: list[int] = []

    def explode(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return loss(model, batch) * (math.nan if len(calls) == 2 else 1.0)

    with (
        make_trainer(ADAMW, task=make_task(loss=explode)) as trainer,
        pytest.raises(DataError, match="the training loss is nan at step 2 "),
    ):
        trainer.train(0, trainer.tensors(), after(3))
    calls.clear()
    with (
        make_trainer(ADAMW, task=make_task(loss=explode)) as trainer,
        pytest.raises(DataError, match="the training loss is nan at step 2 "),
    ):
        trainer.train(0, trainer.tensors(), lambda: bool(trainer.private()) and False)


def test_work_of_another_round_or_length_is_refused() -> None:
    with make_trainer(ADAMW) as trainer:
        trainer.train(4, trainer.tensors(), after(3))
        private = copied(trainer.private())
    with make_trainer(ADAMW) as trainer:
        trainer.restore(private)
        with pytest.raises(DataError, match="step 3 of round 4, now it is round 5 with 6 steps"):
            trainer.train(5, trainer.tensors())
    with make_trainer(dataclasses.replace(ADAMW, local_steps=3)) as trainer:
        trainer.restore(private)
        with pytest.raises(DataError, match="now it is round 4 with 3 steps"):
            trainer.train(4, trainer.tensors())
    with make_trainer(ADAMW, model=Net(norm=False)) as trainer, pytest.raises(DataError, match="to another model"):
        trainer.restore(private)


@pytest.mark.parametrize(
    "arrays",
    [
        {"round": np.array([1, 2, 3, 4])},
        {"round:loss": np.array([1.0])},
        {"round": np.array([1, 2, 3]), "round:loss": np.array([1.0])},
        {"round": np.array([1, 2, 3, 4, 5]), "round:loss": np.array([1.0])},
        {"round": np.array([1, 2, 3, 4]), "round:loss": np.array([])},
        {"round": np.array(4), "round:loss": np.array([1.0])},
    ],
)
def test_half_of_a_place_is_refused(arrays: Arrays) -> None:
    with pytest.raises(DataError, match="at which step"):
        WithinRound.from_arrays(arrays)


def test_a_place_comes_back() -> None:
    assert WithinRound.from_arrays({}) is None
    place = WithinRound(7, 3, 12, steps=5, loss=0.1 + 0.2)
    again = WithinRound.from_arrays(place.arrays())
    assert again == dataclasses.replace(place, looked=5)


def test_running_statistics_of_another_number_of_ranks_are_the_leaders() -> None:
    with make_trainer(ADAMW) as trainer:
        anchor = trainer.tensors()
        trainer.train(0, anchor, after(3))
        now, own = copied(trainer.tensors()), copied(trainer.private())
    doubled = own | {"round:running": np.repeat(own["round:running"], 2, axis=0) * 0}
    with make_trainer(ADAMW) as again:
        again.load(now)
        again.restore(doubled)
        equal(again.tensors(), now)
    with make_trainer(ADAMW) as again:
        again.load(anchor)
        again.restore(own)
        np.testing.assert_array_equal(again.tensors()["norm.running_mean"], now["norm.running_mean"])
        assert (again.tensors()["a.weight"] != now["a.weight"]).any()  # the parameters come by `load`
