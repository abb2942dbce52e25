"""A local optimiser's state by parts: what comes back is what was there, to the next step."""

from __future__ import annotations

import pytest
import torch

from fedhpc.federation.ranges import Held
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.held_model import forms_of_model
from fedhpc.train.optimizer_state import SavedState, divide_state, read_part, write_part
from fedhpc.train.personal import mark_personal
from fedhpc.train.state import split_state, to_array


class Net(torch.nn.Module):
    """A matrix, a parameter without elements, and one without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.ones(4, 3))
        self.empty = torch.nn.Parameter(torch.empty(0, 3))
        self.scalar = torch.nn.Parameter(torch.tensor(2.0))

    def step(self, optimizer: torch.optim.Optimizer, x: float) -> None:
        optimizer.zero_grad()
        ((torch.full((2, 3), x) @ torch.cat([self.matrix, self.empty]).T).sum() * self.scalar).backward()
        optimizer.step()


def adamw(net: Net) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.1)


@pytest.mark.parametrize("personal", [(), ("matrix",)])
def test_it_goes_on_as_if_it_had_never_stopped(personal: tuple[str, ...]) -> None:
    net = Net()
    mark_personal(net, personal)
    optimizer = adamw(net)
    net.step(optimizer, 1.0)

    held = Held(SerialGroup(), forms_of_model(split_state(net)[0]), [(0, 1 if personal else 13)])
    cut, others = divide_state(net, optimizer)
    mine = {} if personal else {"exp_avg": ["matrix"], "exp_avg_sq": ["matrix"]}  # the site's own is not cut up
    assert {kind: list(of) for kind, of in cut.items()} == mine
    parts = {kind: read_part(held, tensors) for kind, tensors in cut.items()}
    arrays = {name: to_array(tensor) for name, tensor in others.items()}

    again = Net()
    again.load_state_dict(net.state_dict())
    mark_personal(again, personal)
    going_on, saved = adamw(again), SavedState(again)
    for name, array in arrays.items():
        saved.add(name, array)
    saved.load_into(going_on)
    for kind, pieces in parts.items():
        write_part(again, going_on, held, kind, pieces)

    net.step(optimizer, -0.5)
    again.step(going_on, -0.5)
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
