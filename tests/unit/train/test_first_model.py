"""A first model made tensor by tensor: by name and seed, never whole, with the buffers that model() gave it."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from fedhpc.errors import ConfigError
from fedhpc.train.first_model import Drawn, FirstModel
from fedhpc.train.model_units import compute_again, default_units, separable
from fedhpc.train.tasks.loader import Task


class Net(torch.nn.Module):
    """Blocks of which the last is tied to the outside, a list in a list, a drawn buffer, a counter."""

    def __init__(self) -> None:
        super().__init__()
        own = torch.nn.Parameter(torch.randn(4, 3))
        self.first, self.again = own, own  # shared before it is registered
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(3))
        self.blocks[0].inner = torch.nn.ModuleList([torch.nn.Linear(3, 3)])
        self.head = torch.nn.Linear(3, 3)
        self.head.weight = self.blocks[2].weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("phases", torch.rand(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.norm(self.head(x) * torch.cos(self.phases))


def fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def first(fill: Any = fill, make: Any = Net, seed: int = 3) -> FirstModel:
    def drawn() -> torch.nn.Module:
        torch.manual_seed(1)
        return make()

    return FirstModel(drawn, Drawn(fill, seed, "task.py"))


def test_an_outline_has_buffers_and_ties_but_no_values() -> None:
    outline = first().outline()
    assert all(p.is_meta for p in outline.parameters())
    assert outline.first is outline.again
    assert outline.head.weight is outline.blocks[2].weight
    torch.manual_seed(1)
    assert not outline.phases.is_meta
    assert torch.nn.Linear(2, 2).weight.is_cpu, "other models are made as ever"


def test_values_follow_from_seed_and_name_alone() -> None:
    whole, twice = first().whole(), first().whole()
    for (name, one), two in zip(whole.state_dict().items(), twice.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert whole.first is whole.again
    assert whole.norm.running_var.tolist() == [1.0, 1.0, 1.0]
    assert whole.norm.num_batches_tracked.item() == 0
    assert len({p.flatten()[0].item() for p in whole.parameters()}) == len(list(whole.parameters()))
    assert not torch.equal(first(seed=4).whole().first, whole.first)
    asked: list[str] = []

    def remember(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        asked.append(name)
        return fill(name, shape, generator)

    # The order in which tensors are asked for does not matter, and another model with such a name begins alike.
    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Parameter(torch.empty(4, 3))

    assert torch.equal(first(remember, Part).whole().first, whole.first)
    assert asked == ["first"]


def test_what_cannot_be_filled_is_refused() -> None:
    class Derived(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("norm", self.weight.detach().norm())

    with pytest.raises(ConfigError, match="the model's buffer norm is made from parameters"):
        first(make=Derived).whole()
    for value, found in ((torch.ones(3, 4), r"\[3, 4\]"), (None, "NoneType")):
        with pytest.raises(ConfigError, match=rf"fill\(\) of task task\.py gave {found} for first"):
            first(lambda name, shape, generator, value=value: value).whole()


def make_task(**functions: Any) -> Task:
    module = types.ModuleType("a_task")
    module.__dict__.update(dict.fromkeys(("model", "dataset", "loss", "sums"), lambda *_: None) | functions)
    return Task("module", module, b"", "task.py", "a")


def test_a_task_fills_if_it_says_so_in_these_words() -> None:
    assert make_task(fill=fill).fills
    for other in (lambda name, shape: None, 7, lambda x, y, z: None, torch.nn.Linear):
        assert not make_task(fill=other).fills

    def broken(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        raise KeyError(name)

    with pytest.raises(ConfigError, match=r"site a: fill\(\) of task task\.py failed: KeyError: 'w'"):
        make_task(fill=broken).fill("w", (1,), torch.Generator())


def test_units_are_blocks_or_what_the_task_names() -> None:
    model = Net()
    inner = model.blocks[0].inner[0]
    assert default_units(model) == [*model.blocks, inner]
    apart = separable(model, default_units(model))
    assert set(apart) == {model.blocks[0], model.blocks[1], inner}, "what is tied to the outside stays with the root"
    assert apart.index(inner) < apart.index(model.blocks[0])
    assert separable(model, [model]) == []
    assert make_task().units(model) == default_units(model)
    assert make_task(fsdp_units=lambda model: [model.head]).units(model) == [model.head]
    for wrong in (lambda model: [torch.nn.Linear(1, 1)], lambda model: None):
        with pytest.raises(ConfigError, match="fsdp_units"):
            make_task(fsdp_units=wrong).units(model)


def test_a_buffer_that_blocks_share_stays_shared() -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.arange(6.0)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))
            for block in self.blocks:
                block.register_buffer("table", table)

    one, two = first(make=Shared).whole().blocks
    assert one.table is two.table
    assert one.table.tolist() == list(range(6))


def test_lists_of_lists_have_their_inner_blocks_as_units() -> None:
    inner = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    named = torch.nn.ModuleDict({"a": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    model = torch.nn.Sequential(torch.nn.ModuleList([inner, named]))
    assert default_units(model) == [*inner, *named["a"]]


def test_running_statistics_are_not_counted_twice() -> None:
    block = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match="keeps running statistics"):
        compute_again([block])
    compute_again([torch.nn.Sequential(torch.nn.BatchNorm1d(3, track_running_stats=False))])


def test_activations_are_computed_again_to_the_same_bits() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))

    def gradients(again: bool) -> list[torch.Tensor]:
        model = first().whole()
        model.blocks[1] = torch.nn.Sequential(model.blocks[1], torch.nn.Dropout(0.5))
        if again:
            compute_again(separable(model, default_units(model)))
            assert list(model.state_dict()) == names
        names[:] = list(model.state_dict())
        torch.manual_seed(7)
        model(x).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    names: list[str] = []
    for one, two in zip(gradients(again=False), gradients(again=True), strict=True):
        assert torch.equal(one, two)
