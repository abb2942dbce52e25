"""Runs on every rank of test_unused.py: what the rows of some ranks do not reach, in fedhpc's loop and in one's own."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from train_fakes import make_task, make_trainer, rows

from fedhpc.errors import ConfigError, FedhpcError
from fedhpc.mpi import collectives
from fedhpc.train.backends.open_backend import open_backend
from fedhpc.train.own_loop import OwnLoopBackend
from fedhpc.train.row_check import check_rows
from fedhpc.train.settings import ComputeSettings, TrainSettings

WIDTH = 600  # parameters of more than a MiB: several of DDP's buckets, some of them on their way when one is missing
SGD = TrainSettings(optimizer="sgd", lr=0.002, momentum=0.9, batch_size=8, local_steps=6)
ADAMW = TrainSettings(optimizer="adamw", lr=0.001, weight_decay=0.1, batch_size=8, local_steps=6)


class Experts(torch.nn.Module):
    """Each row goes to one of two experts, by its first feature; a third one never gets any."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(5, WIDTH)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 1) for _ in range(3))
        self.deep = torch.nn.Linear(WIDTH, WIDTH)
        self.auxiliary = torch.nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.deep(torch.tanh(self.first(x))))
        chosen = (x[:, 0] > 1.0).long()
        y = torch.zeros(len(x))
        for number in set(chosen.tolist()):
            y = y + torch.where(chosen == number, self.experts[number](hidden)[:, 0], 0.0)
        return y, self.auxiliary(hidden)


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(batch[0])[0], batch[1] / 10)


def task(**functions: Any) -> Any:
    return make_task(**({"loss": loss, "sums": lambda m, b: {"n": torch.tensor(len(b[1]))}} | functions))


def site(group: Any, settings: TrainSettings, *, frozen: bool = False, proximal: float = 0.0, **functions: Any) -> Any:
    torch.manual_seed(0)
    model = Experts()
    if frozen:
        for module in (model.experts[2], model.auxiliary):
            module.requires_grad_(False)
    return make_trainer(settings, group=group, model=model, task=task(**functions), proximal=proximal)


def trained(group: Any, settings: TrainSettings, rounds: int = 2, **more: Any) -> dict[str, np.ndarray]:
    with site(group, settings, **more) as trainer:
        for round_ in range(1, rounds + 1):
            trainer.train(round_, trainer.tensors())
        return trainer.tensors()


def refused(group: Any, settings: TrainSettings, **more: Any) -> str:
    try:
        trained(group, settings, **more)
    except ConfigError as error:
        return error.what
    return "no error"


def same(group: Any, words: str) -> str:
    assert {*group.gather_bytes(words.encode())} == {words.encode()}, words
    return words


def main(out: Path) -> None:
    from mpi4py import MPI

    group = collectives.MpiGroup(MPI.COMM_WORLD, "site a")
    alone = collectives.SerialGroup("site a")

    # Refused with the same words on every rank and on one; also with accumulation, and where nothing is reached.
    for settings in (SGD, dataclasses.replace(ADAMW, accumulation=3)):
        expected = refused(alone, settings)
        assert expected.startswith("site a: step 1 (round 1) leaves parameters without a gradient: experts."), expected
        assert "auxiliary.weight" in expected
        assert same(group, refused(group, settings)) == expected
    detached = {"loss": lambda model, batch: loss(model, batch).detach()}
    assert same(group, refused(group, SGD, **detached)) == refused(alone, SGD, **detached)
    uncalled = {"loss": lambda model, batch: batch[1].mean()}
    assert same(group, refused(group, SGD, **uncalled)) == refused(alone, SGD, **uncalled)

    # Some ranks' rows reach an expert, those of others do not, in other steps no rank's: as on one rank.
    reached = refused(alone, SGD, frozen=True)
    assert "experts." in reached, "the test needs a step in which no row goes to an expert"
    assert same(group, refused(group, SGD, frozen=True)) == reached
    allow = {"unused_parameters": "allow"}
    for settings, proximal in (
        (dataclasses.replace(SGD, **allow), 0.2),
        (dataclasses.replace(ADAMW, **allow, accumulation=2, batch_size=7), 0.0),
        (dataclasses.replace(SGD, **allow, batch_size=2), 0.0),
    ):
        together, expected = trained(group, settings, proximal=proximal), trained(alone, settings, proximal=proximal)
        for name, value in expected.items():
            np.testing.assert_allclose(together[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
        start = site(alone, settings).tensors()
        for name in () if proximal else ("experts.2.weight", "auxiliary.bias"):
            np.testing.assert_array_equal(together[name], start[name])
        assert (together["experts.1.weight"] != start["experts.1.weight"]).any()
    whole = dataclasses.replace(SGD, batch_size=0)  # all rows: every expert gets some, if not on every rank
    expected = trained(alone, whole, frozen=True)
    for name, value in trained(group, whole, frozen=True).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, atol=2e-5, err_msg=name)

    # An embedding with sparse gradients, in the rows of one rank.
    class Sparse(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = torch.nn.Embedding(4, 3, sparse=True), torch.nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            hidden = self.linear(x)
            return ((hidden + self.table((x[:, 0] > 0).long()) if group.rank == 0 else hidden).sum(1),)

    torch.manual_seed(0)
    with make_trainer(dataclasses.replace(SGD, momentum=0.0), group=group, model=Sparse(), task=task()) as trainer:
        before = trainer.tensors()["table.weight"]
        trainer.train(1, trainer.tensors())
        after = trainer.tensors()["table.weight"]
    assert (before[:2] != after[:2]).any()
    assert len({*group.gather_bytes(after.tobytes())}) == 1

    # A loop of one's own.
    x, y = rows(12).tensors
    mine = slice(group.rank * 4, group.rank * 4 + 4)
    x[:, 0] = torch.tensor([0.0, 2.0, 0.0]).repeat_interleave(4)  # the second expert's rows are those of rank 1 alone
    backend = OwnLoopBackend(open_backend(ComputeSettings(device="cpu"), group), group.label, "allow")
    torch.manual_seed(0)
    model = backend.wrap(Experts())
    loss(model, (x[mine], y[mine])).backward()
    torch.manual_seed(0)
    plain = Experts()
    seen = slice(0, 4 * group.size)
    loss(plain, (x[seen], y[seen])).backward()

    def compare() -> None:
        for (name, one), two in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None:
                np.testing.assert_allclose(two.grad.numpy(), one.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)

    compare()
    assert model.module.auxiliary.weight.grad is None
    # Once more, in two halves of which only the last averages.
    model.zero_grad(set_to_none=True)
    for k in (0, 2):
        half = slice(mine.start + k, mine.start + k + 2)
        with backend.averaging(model, now=k == 2):
            (loss(model, (x[half], y[half])) / 2).backward()
    compare()
    # A gradient within the loss gives none to parameters, and nothing is averaged at its end.
    for one, part in ((model, mine), (plain, seen)):
        one.zero_grad(set_to_none=True)
        inputs = x[part].clone().requires_grad_(True)
        value = one(inputs)[0]
        (slope,) = torch.autograd.grad(value.sum(), inputs, create_graph=True)
        (value.square().mean() + slope.square().mean()).backward()
    compare()
    backend.close()

    backend = OwnLoopBackend(open_backend(ComputeSettings(device="cpu"), group), group.label, "refuse")
    model = backend.wrap(Experts())
    try:
        loss(model, (x[mine], y[mine])).backward()
        words = "no error"
    except ConfigError as error:
        words = error.what
    assert words.startswith("site a: backward() leaves parameters without a gradient: experts."), words
    assert ("experts.1.weight" in words) == (group.rank != 1)
    backend.close()

    # A coupled loss, and batch norm that is left one row: found by all ranks, or by one of them for all.
    def norm(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        score = model(batch[0])[0]
        return (score - score.mean()).square().mean()

    def fails_here(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if group.rank == 1 and len(batch[1]) < 20:
            raise ValueError("only here")
        return loss(model, batch)

    for function, words in ((norm, "is not the mean over rows"), (fails_here, "has no value for a part")):
        looked = task(loss=function)
        looked.built_in = False
        with make_trainer(SGD, group=group, model=Experts(), task=looked) as trainer:
            try:
                check_rows(looked, trainer, SGD, seed=0)
                found = "no error"
            except FedhpcError as error:
                found = error.what
        assert words in same(group, found), found
    coupled = task(rows="coupled")
    try:
        make_trainer(SGD, group=group, model=Experts(), task=coupled)
        found = "no error"
    except ConfigError as error:
        found = error.what
    assert f'says rows = "coupled", and {group.size} ranks' in same(group, found)

    few = TrainSettings(lr=0.01, batch_size=2 * group.size - 1, local_steps=2)
    looked = make_task()
    looked.built_in = False
    with make_trainer(few, group=group, task=looked) as trainer:
        try:
            check_rows(looked, trainer, few, seed=0)
            found = "no error"
        except ConfigError as error:
            found = error.what
    assert "batch norm cannot learn from one row" in same(group, found)

    # 33 rows in batches of 16: the last row joins the batch before it, on any number of ranks.
    last = TrainSettings(lr=0.01, batch_size=16, local_epochs=1, accumulation=2)
    with make_trainer(last, group=group, n=33, held_out=0) as trainer:
        assert trainer.train(1, trainer.tensors()).steps == 2
    if group.rank == 0:
        out.write_text("all equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
