"""The trainer is a plain PyTorch loop, to the last bit; and a restored run is an unbroken one, to the last bit."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from train_fakes import Net, loss, make_task, make_trainer, rows

from fedhpc.errors import ConfigError, DataError
from fedhpc.train.batches import Batches
from fedhpc.train.learning_rate import learning_rate
from fedhpc.train.randomness import rank_seed
from fedhpc.train.settings import TrainSettings
from fedhpc.train.trainer import TorchTrainer

ADAMW = TrainSettings(optimizer="adamw", lr=0.01, weight_decay=0.02, batch_size=8, local_steps=7)


def equal(one: dict, two: dict) -> None:
    assert list(one) == list(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name, strict=True)


@pytest.mark.parametrize("proximal", [0.0, 0.5])
@pytest.mark.parametrize(
    "settings",
    [
        ADAMW,
        TrainSettings(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=0, local_epochs=3, clip_norm=0.5),
        TrainSettings(
            optimizer="adamw", lr=0.01, batch_size=8, local_steps=7, schedule="cosine", warmup_steps=3, total_steps=25
        ),
        TrainSettings(optimizer="adamw", lr=0.01, batch_size=8, local_steps=7, precision="bf16"),
        TrainSettings(
            optimizer="adam",
            lr=0.01,
            weight_decay=0.1,
            batch_size=8,
            local_steps=7,
            schedule="step",
            step_every=5,
            gamma=0.5,
            warmup_steps=2,
        ),
        TrainSettings(optimizer="adamw", lr=0.01, batch_size=8, local_steps=7, optimizer_state="reset"),
    ],
)
def test_equals_a_plain_loop_to_the_last_bit(settings: TrainSettings, proximal: float) -> None:
    torch.manual_seed(3)
    model = Net()
    data = rows()
    batches = Batches(np.arange(10, 53), settings.batch_size, 11, "a")
    with make_trainer(settings, proximal=proximal) as trainer:
        equal(trainer.tensors(), {k: v.numpy() for k, v in model.state_dict().items() if v.is_floating_point()})
        torch.manual_seed(rank_seed(11, "a", 0))
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[settings.optimizer]
        extra = {"weight_decay": settings.weight_decay}
        if settings.momentum:
            extra["momentum"] = settings.momentum
        step = 0
        for round_ in range(3):
            if round_ == 0 or settings.optimizer_state == "reset":
                optimizer = kind(model.parameters(), lr=settings.lr, **extra)
            anchor = [p.detach().clone() for p in model.parameters()]
            losses = []
            model.train()
            for _ in range(settings.local_steps or settings.local_epochs * batches.steps_per_epoch):
                chosen = torch.from_numpy(batches.next())
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                    value = loss(model, (data.tensors[0][chosen], data.tensors[1][chosen]))
                value.backward()
                if proximal:
                    for p, a in zip(model.parameters(), anchor, strict=True):
                        p.grad += proximal * (p.detach() - a)
                if settings.clip_norm:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                optimizer.param_groups[0]["lr"] = learning_rate(settings, step)
                optimizer.step()
                losses.append(value.item())
                step += 1
            result = trainer.train(round_, trainer.tensors())
            assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)
            assert (result.samples, result.steps) == (43, len(losses))
            equal(trainer.tensors(), {k: v.numpy() for k, v in model.state_dict().items() if v.is_floating_point()})


def test_what_is_the_sites_own_is_trained_and_stays() -> None:
    """Another global model comes and goes; beside it the own layers go on, also in a run that is restored."""
    settings = dataclasses.replace(ADAMW, personal=("b.*", "batchnorm"))
    shared = ["feature_mean", "feature_scale", "a.weight", "a.bias"]
    own = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "b.weight", "b.bias"]

    def own_of(trainer: TorchTrainer) -> dict[str, np.ndarray]:
        return {name: trainer.model.state_dict()[name].numpy().copy() for name in own}

    with make_trainer(settings, proximal=0.1) as whole:
        first = own_of(whole)
        assert list(whole.tensors()) == list(whole.forms()) == shared
        assert whole.averaged() == {"feature_mean", "feature_scale"}
        whole.train(0, whole.tensors())
        trained = own_of(whole)
        assert all((trained[name] != first[name]).any() for name in own)
        other = {name: array + np.float32(0.5) for name, array in whole.tensors().items()}
        whole.load(other)
        equal(own_of(whole), trained)
        private = {k: v.copy() for k, v in whole.private().items()}
        whole.train(1, other)
        expected = own_of(whole), whole.tensors()
    with make_trainer(settings, proximal=0.1) as again:
        again.load(other)
        again.restore(private)
        equal(own_of(again), trained)
        again.train(1, other)
        equal(own_of(again), expected[0])
        equal(again.tensors(), expected[1])
    with pytest.raises(ConfigError, match="nothing in the model is called 'c"):
        make_trainer(dataclasses.replace(ADAMW, personal=("c.*",)))


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_restored_run_equals_an_unbroken_one(momentum: float | None) -> None:
    settings = (
        ADAMW
        if momentum is None
        else TrainSettings(optimizer="sgd", lr=0.01, momentum=momentum, batch_size=8, local_steps=7)
    )
    with make_trainer(settings) as whole:
        for round_ in range(3):
            whole.train(round_, whole.tensors())
        tensors, private = whole.tensors(), {k: v.copy() for k, v in whole.private().items()}
        torch.rand(5)  # what the process draws elsewhere does not matter
        whole.measure()
        for round_ in range(3, 6):
            whole.train(round_, whole.tensors())
        expected, expected_private = whole.tensors(), whole.private()
    assert all(isinstance(v, np.ndarray) and v.dtype != object for v in private.values())
    with make_trainer(settings) as again:
        again.load(tensors)
        again.restore(private)
        for round_ in range(3, 6):
            again.train(round_, again.tensors())
        equal(again.tensors(), expected)
        equal(again.private(), expected_private)
    assert expected_private["buffer:norm.num_batches_tracked"] == 42
    for lost in ("random", "position", "optimizer:b.bias:" + ("exp_avg" if momentum is None else "momentum_buffer")):
        # The test can fail: without any one part, the continued run differs.
        fresh = make_trainer(settings).private()
        damaged = {k: (fresh.get(k, np.zeros_like(v)) if k == lost else v) for k, v in private.items()}
        with make_trainer(settings) as wrong:
            wrong.load(tensors)
            wrong.restore(damaged)
            wrong.train(3, wrong.tensors())
            assert any(
                (wrong.tensors()[k] != v).any() for k, v in _after_round_three(settings, tensors, private).items()
            )


def _after_round_three(settings: TrainSettings, tensors: dict, private: dict) -> dict:
    with make_trainer(settings) as trainer:
        trainer.load(tensors)
        trainer.restore(private)
        trainer.train(3, trainer.tensors())
        return trainer.tensors()


def test_restore_refuses_what_does_not_fit() -> None:
    with make_trainer(ADAMW) as trainer:
        trainer.train(0, trainer.tensors())
        private = trainer.private()
        with pytest.raises(DataError, match="lacks the trainer's position"):
            trainer.restore({})
        with pytest.raises(DataError, match="position 99"):
            trainer.restore(private | {"position": np.array([0, 99, 7])})
        with pytest.raises(DataError, match=r"optimiser state for c\.weight"):
            trainer.restore(private | {"optimizer:c.weight:exp_avg": np.zeros(3)})
        with pytest.raises(DataError, match="other counters"):
            trainer.restore({k: v for k, v in private.items() if not k.startswith("buffer:")})


def test_another_number_of_ranks_draws_anew_but_goes_on() -> None:
    with make_trainer(ADAMW) as trainer:
        trainer.train(0, trainer.tensors())
        private = trainer.private()
        doubled = private | {"random": np.repeat(private["random"], 2, axis=0)}
        trainer.restore(doubled)
        assert (trainer.private()["random"] != private["random"]).any()
        np.testing.assert_array_equal(trainer.private()["position"], private["position"])


def test_reset_keeps_no_optimiser_state() -> None:
    with make_trainer(
        TrainSettings(optimizer="adamw", lr=0.01, batch_size=8, local_steps=2, optimizer_state="reset")
    ) as trainer:
        trainer.train(0, trainer.tensors())
        assert not [name for name in trainer.private() if name.startswith("optimizer:")]


def test_accumulation_does_not_change_the_step() -> None:
    results = []
    for accumulation in (1, 3, 50):
        settings = TrainSettings(optimizer="sgd", lr=0.05, batch_size=8, local_steps=6, accumulation=accumulation)
        with make_trainer(settings, model={"dropout": 0.0, "norm": False}) as trainer:
            result = trainer.train(0, trainer.tensors())
            results.append((trainer.tensors(), result.loss))
    for tensors, mean in results[1:]:
        assert mean == pytest.approx(results[0][1], rel=1e-6)
        for name, value in tensors.items():
            np.testing.assert_allclose(value, results[0][0][name], rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_names_site_and_step() -> None:
    calls = []

    def explode(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
        calls.append(1)
        return loss(model, batch) * (math.inf if len(calls) == 5 else 1.0)

    trainer = make_trainer(ADAMW, task=make_task(loss=explode))
    with pytest.raises(DataError, match="site a: the training loss is inf at step 5 "):
        trainer.train(0, trainer.tensors())


def test_shared_state_dtypes_and_load() -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w32 = torch.nn.Parameter(torch.ones(2, 3))
            self.w64 = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.w16 = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
            self.register_buffer("running", torch.zeros(4))
            self.register_buffer("count", torch.zeros(2, dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0] * (self.w32.sum() + self.w64.sum().float() + self.w16.sum().float())

    with make_trainer(ADAMW, model=Mixed()) as trainer:
        tensors = trainer.tensors()
        kinds = {k: (v.dtype.name, v.shape) for k, v in tensors.items()}
        assert kinds == {
            "w32": ("float32", (2, 3)), "w64": ("float64", (2,)), "w16": ("float32", (2,)),
            "running": ("float32", (4,)),
        }  # fmt: skip
        assert all(v.flags.c_contiguous for v in tensors.values())
        assert trainer.averaged() == {"running"}
        changed = {k: v + np.dtype(v.dtype).type(0.5) for k, v in tensors.items()}
        for value in changed.values():
            value.setflags(write=False)
        trainer.load(changed)
        equal(trainer.tensors(), changed)
        trainer.train(0, changed)
        private = trainer.private()
        trainer.train(1, changed)
        after = trainer.tensors()
        assert private["optimizer:w16:exp_avg"].dtype == np.int16  # the bits of bfloat16
        with make_trainer(ADAMW, model=Mixed()) as again:
            again.load(changed)
            again.train(0, changed)
            again.restore(private)
            again.train(1, changed)
            equal(again.tensors(), after)
        for bad in (
            {k: v for k, v in changed.items() if k != "w16"},
            changed | {"more": np.zeros(1, dtype=np.float32)},
            changed | {"w32": np.ones((3, 2), dtype=np.float32)},
            changed | {"w64": np.ones(2, dtype=np.float32)},
        ):
            with pytest.raises(DataError, match="the model"):
                trainer.load(bad)


def test_models_that_cannot_be_trained_or_averaged_are_refused() -> None:
    class Complex(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(1, 1)
            self.register_buffer("phase", torch.zeros(1, dtype=torch.complex64))

    with pytest.raises(ConfigError, match="phase"):
        make_trainer(ADAMW, model=Complex())
    with pytest.raises(ConfigError, match="no parameter"):
        make_trainer(ADAMW, model=torch.nn.Identity())


def test_measure_has_the_same_names_over_no_rows() -> None:
    with make_trainer(ADAMW) as some, make_trainer(ADAMW, held_out=0) as none:
        full, empty = some.measure(), none.measure()
        assert {k: (v.dtype, v.shape) for k, v in full.items()} == {k: (v.dtype, v.shape) for k, v in empty.items()}
        assert {k: v.dtype.name for k, v in full.items()} == {
            "close": "int64", "error": "float64", "loss": "float64", "n": "int64",
        }  # fmt: skip
        assert full["n"] == 10
        assert all(not v.any() for v in empty.values())
        x, y = (t[:10] for t in rows().tensors)
        some.model.eval()
        assert full["loss"] == pytest.approx(((some.model(x) - y) ** 2).sum().item(), rel=1e-6)
        assert none.summarise(empty)["loss"] is None


def test_learning_rate() -> None:
    cosine = TrainSettings(lr=2.0, local_steps=1, schedule="cosine", warmup_steps=3, total_steps=11)
    assert [learning_rate(cosine, s) for s in (0, 1, 2, 3)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(cosine, 7) == pytest.approx(1.0)
    assert learning_rate(cosine, 11) == learning_rate(cosine, 99) == 0.0
    linear = TrainSettings(lr=2.0, local_steps=1, schedule="linear", total_steps=10)
    assert [learning_rate(linear, s) for s in (0, 5, 10)] == [2.0, 1.0, 0.0]
    assert learning_rate(TrainSettings(lr=2.0, local_steps=1), 10**9) == 2.0
