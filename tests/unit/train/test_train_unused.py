"""A parameter that no row of a step reaches is refused by name, or left as it is; also on one rank."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch
from train_fakes import make_task, make_trainer

import fedhpc
from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.backends.serial import SerialBackend
from fedhpc.train.own_loop import OwnLoopBackend
from fedhpc.train.settings import TrainSettings
from fedhpc.train.trainer import CHECK_STEPS

SGD = TrainSettings(optimizer="sgd", lr=0.01, batch_size=8, local_steps=4)
ALLOW = dataclasses.replace(SGD, unused_parameters="allow")


class Branches(torch.nn.Module):
    """`body` and `head` always, `late` from the calls on that `when` says, `dead` never; `tied` is `head`'s weight."""

    def __init__(self, when: Any = lambda call: False) -> None:
        super().__init__()
        self.body = torch.nn.Linear(5, 4)
        self.head = torch.nn.Linear(4, 1)
        self.late = torch.nn.Linear(4, 1)
        self.dead = torch.nn.Linear(4, 2)
        self.tied = self.head.weight
        self.when, self.calls = when, 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        hidden = torch.tanh(self.body(x))
        y = self.head(hidden)[:, 0]
        if self.when(self.calls):
            y = y + self.late(hidden)[:, 0]
        return y, self.dead(hidden)


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(batch[0])[0], batch[1])


TASK = {"loss": loss, "sums": lambda model, batch: {"n": torch.tensor(len(batch[1]))}}


def train(
    settings: TrainSettings, model: torch.nn.Module, rounds: int = 1, proximal: float = 0.0, **functions: Any
) -> Any:
    with make_trainer(settings, model=model, task=make_task(**TASK | functions), proximal=proximal) as trainer:
        before = trainer.tensors()
        for round_ in range(1, rounds + 1):
            trainer.train(round_, trainer.tensors())
        return before, trainer.tensors()


@pytest.mark.parametrize("proximal", [0.0, 0.5])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_is_refused_by_name_with_two_ways_out(optimizer: str, accumulation: int, proximal: float) -> None:
    settings = dataclasses.replace(SGD, optimizer=optimizer, accumulation=accumulation)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        train(settings, Branches(lambda call: True), proximal=proximal)
    assert caught.value.what == "site a: step 1 (round 1) leaves parameters without a gradient: dead.weight, dead.bias"
    assert "requires_grad_(False)" in caught.value.hint
    assert '[train] unused_parameters = "allow"' in caught.value.hint


def test_a_frozen_one_and_a_shared_one_are_fine() -> None:
    model = Branches(lambda call: True)
    model.dead.requires_grad_(False)
    before, after = train(SGD, model)
    assert all((before[name] != after[name]).any() for name in ("tied", "late.bias"))
    assert "head.weight" not in before, "one tensor of two names is shared once"


@pytest.mark.parametrize("at", [2, 3, CHECK_STEPS, CHECK_STEPS + 2])
def test_one_that_a_later_step_leaves_out_is_told_with_that_step(at: int) -> None:
    settings = dataclasses.replace(SGD, local_steps=CHECK_STEPS + 5)
    model = Branches(lambda call: call != at)
    model.dead.requires_grad_(False)
    with pytest.raises(
        ConfigError, match=rf"step {at} \(round 1\) leaves parameters without a gradient: late\.weight, late\.bias$"
    ):
        train(settings, model)


def test_one_piece_of_a_step_that_reaches_it_is_enough() -> None:
    """So accumulation refuses what one pass over the batch refuses, and no more."""
    model = Branches(lambda call: call % 2 == 1)
    model.dead.requires_grad_(False)
    before, after = train(dataclasses.replace(SGD, accumulation=2), model)
    assert (before["late.weight"] != after["late.weight"]).any()


def test_one_that_is_allowed_stays_as_it_is_like_in_a_plain_loop() -> None:
    settings = dataclasses.replace(ALLOW, optimizer="adamw", weight_decay=0.1)
    before, after = train(settings, Branches(lambda call: call in (2, 3)), rounds=2)
    for name in ("dead.weight", "dead.bias"):
        np.testing.assert_array_equal(before[name], after[name])
    for name in ("late.weight", "tied", "body.bias"):
        assert (before[name] != after[name]).any()


def test_a_loss_without_any_gradient_is_told_or_does_nothing() -> None:
    functions = {"loss": lambda model, batch: loss(model, batch).detach()}
    with pytest.raises(ConfigError, match=r"and 3 more; the loss does not depend on the model$"):
        train(SGD, Branches(), **functions)
    before, after = train(ALLOW, Branches(), **functions)
    assert all((before[name] == after[name]).all() for name in before)


def own_loop(unused_parameters: Any) -> OwnLoopBackend:
    return OwnLoopBackend(SerialBackend(torch.device("cpu")), "site a", unused_parameters)


def test_a_loop_of_ones_own_on_one_rank() -> None:
    x, y = torch.ones(3, 5), torch.ones(3)
    backend = own_loop("refuse")
    model = backend.wrap(Branches())
    with pytest.raises(ConfigError) as caught:
        loss(model, (x, y)).backward()
    assert (
        caught.value.what
        == "site a: backward() leaves parameters without a gradient: late.weight, late.bias, dead.weight, dead.bias"
    )
    assert 'site_backend(fed, unused_parameters="allow")' in caught.value.hint
    with torch.no_grad():
        loss(model, (x, y))
    for module in (model.late, model.dead):
        module.requires_grad_(False)
    model = backend.wrap(model)
    for _ in range(2):  # the second time gradients are added up
        loss(model, (x, y)).backward()
    backend.close()
    model.dead.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    loss(model, (x, y)).backward()  # nobody looks any more
    model = own_loop("allow").wrap(Branches())
    loss(model, (x, y)).backward()
    assert model.dead.weight.grad is None


def test_the_ways_out_of_a_loop_of_ones_own() -> None:
    session: Any = types.SimpleNamespace(party=types.SimpleNamespace(site=SerialGroup("site a")))
    federation = fedhpc.Federation(session)
    x, y = torch.ones(3, 5), torch.ones(3)
    with pytest.raises(ConfigError, match=r"site a: backward\(\) leaves parameters without a gradient: late\.weight"):
        loss(fedhpc.site_backend(federation, device="cpu").wrap(Branches()), (x, y)).backward()
    backend = fedhpc.site_backend(federation, device="cpu", unused_parameters="allow")
    loss(backend.wrap(Branches()), (x, y)).backward()
    with pytest.raises(ConfigError, match="'maybe'"):
        fedhpc.site_backend(federation, unused_parameters="maybe")  # type: ignore[arg-type]


def test_a_gradient_penalty_in_a_loop_of_ones_own_is_no_step() -> None:
    model = Branches(lambda call: True)
    model.dead.requires_grad_(False)
    model = own_loop("refuse").wrap(model)
    x = torch.ones(3, 5, requires_grad=True)
    y = model(x)[0]
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (y.mean() + slope.square().mean()).backward()
    assert model.head.weight.grad is not None


def test_a_loop_of_ones_own_sees_outputs_of_any_form() -> None:
    @dataclasses.dataclass
    class Answer:
        scores: dict[str, Any]

    class Formed(Branches):
        def forward(self, x: torch.Tensor) -> Any:
            y, extra = super().forward(x)
            return Answer({"y": [y], "more": (extra, None)})

    model = own_loop("refuse").wrap(Formed())
    with pytest.raises(ConfigError, match=r"late\.weight"):
        model(torch.ones(3, 5)).scores["y"][0].sum().backward()


def test_a_loop_of_ones_own_sees_through_reentrant_checkpoints() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(5, 5) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=True)
            return x.sum()

    model = own_loop("refuse").wrap(Checkpointed())
    model(torch.ones(2, 5, requires_grad=True)).backward()
    assert all(p.grad is not None for p in model.parameters())
