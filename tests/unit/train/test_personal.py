"""Personal tensors: trained and kept at the site, in no sum, back after a restart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedhpc.errors import ConfigError
from fedhpc.train.personal import mark_personal
from fedhpc.train.running import RunningStatistics
from fedhpc.train.state import split_state


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        self.head = torch.nn.Linear(4, 2)


NORM = ["body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var"]


@pytest.mark.parametrize(
    ("patterns", "personal"),
    [
        (["head.*"], ["head.weight", "head.bias"]),
        (["batchnorm"], NORM),
        (["head.bias", "batchnorm"], [*NORM, "head.bias"]),
        (["*.running_*"], ["body.1.running_mean", "body.1.running_var"]),
    ],
)
def test_what_is_shared_and_what_stays(patterns: list[str], personal: list[str]) -> None:
    model = Net()
    before = split_state(model)[0]
    mark_personal(model, patterns)
    shared, local = split_state(model)
    assert list(shared) == [name for name in before if name not in personal]
    assert [name for name, value in local.items() if value.is_floating_point()] == personal
    assert "body.1.num_batches_tracked" in local


@pytest.mark.parametrize("patterns", [["heads.*"], ["head.*", "tail"], ["*"], ["batchnorm", "*.weight", "*.bias"]])
def test_refused(patterns: list[str]) -> None:
    model = Net()
    with pytest.raises(ConfigError, match=r"train\.personal") as refused:
        mark_personal(model, patterns)
    assert refused.value.exit_code == 64
    assert len(split_state(model)[0]) == 8


def test_batchnorm_of_a_model_without() -> None:
    with pytest.raises(ConfigError, match="'batchnorm'"):
        mark_personal(torch.nn.Linear(2, 2), ["batchnorm"])


def test_own_running_statistics_are_not_averaged_over_sites_but_over_ranks() -> None:
    model = Net()
    group: Any = type("Group", (), {"size": 1, "rank": 0, "broadcast": lambda self, array: None})()
    running = RunningStatistics(model, group, "a")
    assert running.names() == {"body.1.running_mean", "body.1.running_var"}
    mark_personal(model, ["batchnorm"])
    assert running.names() == frozenset()
    assert set(running.of_leader()) == {"body.1.running_mean", "body.1.running_var"}
    assert all(isinstance(array, np.ndarray) for array in running.of_leader().values())
