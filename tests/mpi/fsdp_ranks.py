"""Runs on every rank of test_fsdp.py: one site whose ranks hold rows of the model each."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from train_fakes import make_task, make_trainer

from fedhpc.errors import ConfigError
from fedhpc.federation.ranges import Held
from fedhpc.mpi import collectives
from fedhpc.mpi.arrays import from_leader
from fedhpc.train.first_model import Drawn, FirstModel
from fedhpc.train.row_check import check_rows
from fedhpc.train.settings import ComputeSettings, TrainSettings

SGD = TrainSettings(optimizer="sgd", lr=0.01, momentum=0.9, batch_size=8, local_steps=8)
ADAMW = TrainSettings(
    optimizer="adamw", lr=0.005, weight_decay=0.05, batch_size=7, local_steps=6, accumulation=3, clip_norm=0.5
)


class Block(torch.nn.Module):
    def __init__(self, width: int, rare: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.gain = torch.nn.Parameter(torch.empty(1))
        self.nothing = torch.nn.Parameter(torch.empty(7, 0))
        self.rare = torch.nn.Parameter(torch.empty(2)) if rare else None

    def forward(self, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(self.linear(x)) * self.gain + self.nothing.sum()
        if self.rare is not None and (inputs[:, 0] > 1.2).any():  # only some rows reach it
            x = x + self.rare.sum() * (inputs[:, 0] > 1.2)[:, None]
        return x


class Tower(torch.nn.Module):
    """Blocks, a [1] parameter, one of no elements, tied weights, batch norm, a frozen table, a buffer that is drawn."""

    def __init__(self, norm: bool = False, rare: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(5, 11)
        self.blocks = torch.nn.ModuleList(Block(11, rare) for _ in range(2))
        self.norm = torch.nn.BatchNorm1d(11) if norm else torch.nn.Identity()
        self.drop = torch.nn.Dropout(dropout)
        self.leave = torch.nn.Linear(5, 11, bias=False)
        self.leave.weight = self.enter.weight
        self.out = torch.nn.Linear(5, 1)
        self.frozen = torch.nn.Parameter(torch.ones(3, 2), requires_grad=False)
        self.register_buffer("shift", torch.randn(11))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x) + self.shift * self.frozen.mean()
        for block in self.blocks:
            h = block(h, x)
        return self.out(self.drop(self.norm(h)) @ self.leave.weight)[:, 0]


def fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith(("norm.weight", "frozen")):
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * 0.3


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1] / 10)


def sums(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    return {"n": torch.tensor(len(batch[1])), "loss": ((model(batch[0]) - batch[1] / 10) ** 2).sum()}


def first(bf16: bool = False, **model: Any) -> FirstModel:
    def make() -> torch.nn.Module:
        torch.manual_seed(3)
        return Tower(**model)

    return FirstModel(make, Drawn(fill, 3, "task.py"), bf16=bf16)


def site(group: Any, settings: TrainSettings, backend: str, *, proximal: float = 0.0, again: bool = False,
         n: int = 53, held_out: int = 10, **model: Any) -> Any:  # fmt: skip
    compute = ComputeSettings(backend=backend, device="cpu", activation_checkpointing=again)  # type: ignore[arg-type]
    task = make_task(loss=loss, sums=sums)
    task.built_in = False
    return make_trainer(
        settings, group=group, model=first(settings.precision == "bf16", **model), task=task, proximal=proximal,
        compute=compute, n=n, held_out=held_out,
    )  # fmt: skip


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays.values()])


def digest(arrays: dict[str, np.ndarray]) -> bytes:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())).digest()


def same(group: Any, data: bytes) -> bytes:
    assert {*group.gather_bytes(data)} == {data}
    return data


def trained(group: Any, settings: TrainSettings, backend: str, rounds: int = 2, **more: Any) -> dict[str, np.ndarray]:
    with site(group, settings, backend, **more) as trainer:
        for round_ in range(1, rounds + 1):
            trainer.load(trainer.tensors())
            trainer.measure()
            trainer.train(round_, trainer.tensors())
        return trainer.tensors()


def away(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    """Relative to the size of the whole vector."""
    assert list(one) == list(two)
    return float(np.linalg.norm(flat(one) - flat(two)) / np.linalg.norm(flat(two)))


def check_start(group: Any, alone: Any) -> None:
    for model in ({}, {"norm": True}):
        with site(group, SGD, "fsdp", **model) as trainer, site(alone, SGD, "serial", **model) as other:
            ours, theirs = trainer.tensors(), other.tensors()
            assert "leave.weight" not in ours, "tied weights are one tensor"
            same(group, digest(ours))
            assert digest(ours) == digest(theirs)
            measured, expected = trainer.measure(), other.measure()
            assert measured["n"] == expected["n"] == 10
            np.testing.assert_allclose(measured["loss"], expected["loss"], rtol=1e-5)
            # After a pass without a backward pass parameters are whole; what is written must still arrive.
            changed = {name: array + 1 for name, array in trainer.tensors().items()}
            assert digest(trainer.tensors()) == digest(theirs)
            trainer.load(changed)
            trainer.measure()
            assert digest(trainer.tensors()) == digest(changed)
            shard = trainer.model.enter.weight.to_local()
            assert shard.shape[0] < 11
            check_rows(trainer._task, trainer, SGD, seed=0)
            assert digest(trainer.tensors()) == digest(changed)


def check_steps(group: Any, alone: Any) -> None:
    for name, settings, bound, more in (
        ("sgd", SGD, 1e-6, {}),
        ("adamw, accumulated, clipped", ADAMW, 1e-4, {}),
        ("fedprox, computed again", dataclasses.replace(SGD, momentum=0.0, clip_norm=0.1), 1e-6,
         {"proximal": 0.3, "again": True}),
        ("empty shares, momenta dropped",
         dataclasses.replace(SGD, batch_size=2, accumulation=2, optimizer_state="reset"), 1e-6, {}),
        ("rows that leave out a parameter",
         dataclasses.replace(SGD, unused_parameters="allow", batch_size=5), 1e-6, {"rare": True}),
    ):  # fmt: skip
        ours = trained(group, settings, "fsdp", **more)
        same(group, digest(ours))
        theirs = trained(alone, settings, "serial", **more)
        assert away(ours, theirs) < bound, (name, away(ours, theirs))
        if not name.startswith("fedprox"):
            plain = trained(group, settings, "mpi", **more)
            same(group, digest(plain))
            assert away(plain, theirs) < bound, (name, away(plain, theirs))
        if name == "sgd":
            assert away(trained(group, settings, "ddp"), theirs) < bound
            assert digest(trained(group, settings, "fsdp", again=True)) == digest(ours), "the same bits again"
    low = dataclasses.replace(SGD, precision="bf16")
    ours, theirs = trained(group, low, "fsdp"), trained(alone, low, "serial")
    assert away(ours, theirs) < 2e-2, away(ours, theirs)


def pieces_of(group: Any, forms: Any) -> Held:
    """The model in equal numbers of elements, as sums cut it."""
    total = sum(form.size for form in forms.values())
    at = [total * rank // group.size for rank in range(group.size + 1)]
    return Held(group, forms, list(pairwise(at)))


def check_going_on(group: Any, alone: Any) -> None:
    """Kept whole or in parts, at any step: the same ranks go on to the same bits, others go on."""
    model = {"norm": True, "dropout": 0.2}
    settings = dataclasses.replace(ADAMW, clip_norm=0.0)
    with site(group, settings, "fsdp", **model) as trainer:
        trainer.train(1, trainer.tensors())
        tensors, private = trainer.tensors(), trainer.private()
        assert group.rank or private["optimizer:enter.weight:exp_avg"].shape == (11, 5)
        held = pieces_of(group, trainer.forms())
        trainer.hold(held)
        rest, parts = trainer.private_in_parts()
        assert list(parts) == ["exp_avg", "exp_avg_sq"]
        cut = {kind: read() for kind, read in parts.items()}
        mine = held.pieces(tensors)
        trainer.hold(Held(group, held.forms))
        kept: list[Any] = []

        def at_step() -> bool:
            kept.append((trainer.tensors(), trainer.private()))
            return len(kept) == 3

        assert not trainer.train(2, trainer.tensors(), at_step).whole
        assert trainer.train(2, trainer.tensors()).whole
        expected = digest(trainer.tensors())

    def again(trainer: Any) -> None:
        trainer.restore_parts({kind: partial(dict, pieces) for kind, pieces in cut.items()})

    for case in ("whole", "within a round", "in parts"):
        with site(group, settings, "fsdp", **model) as trainer:
            begin = kept[1] if case == "within a round" else (tensors, private)
            if case == "in parts":
                trainer.hold(held)
                trainer.load(mine)
                trainer.restore(rest if group.rank == 0 else {})
                again(trainer)
                trainer.hold(Held(group, held.forms))
            else:
                trainer.load(begin[0])
                trainer.restore(begin[1] if group.rank == 0 else {})
            trainer.train(2, trainer.tensors())
            assert digest(trainer.tensors()) == expected, case
    # To a backend whose ranks have all of it, and to one rank and back.
    with site(group, settings, "ddp", **model) as trainer:
        trainer.hold(held)
        trainer.load(mine)
        trainer.restore(rest if group.rank == 0 else {})
        again(trainer)
        for name, array in trainer.private().items():
            np.testing.assert_array_equal(array, private[name], err_msg=name)
    whole = from_leader(group, private)
    with site(alone, settings, "serial", **model) as other:
        other.load(tensors)
        other.restore(whole)
        restored = other.private()
        for name in whole:
            if name.startswith("optimizer:"):
                np.testing.assert_array_equal(restored[name], whole[name])
        other.train(2, other.tensors())
        moved = other.tensors(), other.private()
    with site(group, settings, "fsdp", **model) as trainer:
        trainer.load(moved[0])
        trainer.restore(moved[1])
        for name, array in trainer.private().items():
            if name.startswith("optimizer:"):
                np.testing.assert_array_equal(array, moved[1][name])
        trainer.train(3, trainer.tensors())


def words(make: Any) -> str:
    try:
        make()
    except ConfigError as error:
        return f"{error.what} | {error.hint}"
    return "no error"


def check_refusals(group: Any) -> None:
    class Scalar(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

    compute = ComputeSettings(backend="fsdp", device="cpu")
    scalar = FirstModel(Scalar, Drawn(fill, 3, "task.py"))
    wrong = FirstModel(lambda: torch.nn.Linear(2, 2), Drawn(lambda n, s, g: torch.ones(3), 3, "task.py"))
    for model, said in (
        (scalar, "site a: the model's scale is a scalar"),
        (torch.nn.Linear(5, 1), "the task only makes whole models | add fill(name, shape, generator)"),
        (wrong, "fill() of task task.py gave [3] for weight"),
    ):
        found = words(lambda model=model: make_trainer(SGD, group=group, model=model, compute=compute))
        assert said in found, found
        assert not torch.distributed.is_initialized()
    left = dataclasses.replace(SGD, batch_size=5)
    told = words(lambda: trained(group, left, "fsdp", rare=True))
    assert "leaves parameters without a gradient: blocks.0.rare, blocks.1.rare" in told, told
    same(group, told.encode())


def main(out: Path) -> None:
    from mpi4py import MPI

    group = collectives.MpiGroup(MPI.COMM_WORLD, "site a")
    alone = collectives.SerialGroup("site a")
    check_start(group, alone)
    check_steps(group, alone)
    check_going_on(group, alone)
    check_refusals(group)
    if group.rank == 0:
        out.write_text("all equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
