"""What `fed.sync` reads of a model that a script has dealt out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from thread_ranks import run_ranks

from fedhpc.federation.ranges import Held
from fedhpc.train.own_shards import OwnShards


def test_running_statistics_are_the_leaders_on_all_ranks() -> None:
    """Each rank saw other rows, and each would give the piece that it holds."""

    def work(site: Any) -> tuple[list[Any], torch.Tensor]:
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(4))
        model[0].running_mean.fill_(10.0 + site.rank)
        model[0].running_var.fill_(20.0 + site.rank)
        shards = OwnShards(model)
        held = Held(site, shards.forms(), [(0, 9), (9, 11), (11, 16)])  # weight, bias, mean, variance
        into = held.empty()
        shards.read(held, into)
        return [into["0.running_mean"], into["0.running_var"]], model[0].running_mean

    found = run_ranks(3, work)
    assert np.concatenate([mean for (mean, _), _ in found]).tolist() == [10.0] * 4
    assert np.concatenate([variance for (_, variance), _ in found]).tolist() == [20.0] * 4
    assert all(mean.tolist() == [10.0] * 4 for _, mean in found)
