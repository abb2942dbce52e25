"""Shards of a model read and written by what ranks hold for the sums, in whatever order the tensors are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from thread_ranks import run_ranks

from fedhpc.federation.ranges import Held, forms_of
from fedhpc.train.held_model import read_shards, write_shards
from fedhpc.train.shards import Shard

MODEL = {"weight": np.arange(12, dtype=np.float32).reshape(6, 2), "bias": np.arange(5.0), "a": np.float32([7, 8])}


def test_there_and_back_in_another_order() -> None:
    def work(site: Any) -> None:
        held = Held(site, forms_of(MODEL), [(0, 9), (9, 19)])
        shards = []
        for name, whole in MODEL.items():  # half of the rows each
            half = -(-len(whole) // 2)
            rows = whole[:half] if site.rank == 0 else whole[half:]
            start = 0 if site.rank == 0 else half * (whole.nbytes // len(whole))
            local = torch.zeros(rows.shape, dtype=getattr(torch, whole.dtype.name))
            shards.append(Shard(name, whole.shape, whole.dtype.name, start, start + rows.nbytes, local))
        pieces = held.pieces(MODEL)
        write_shards(held, shards, dict(sorted(pieces.items())))
        for shard in shards:
            written = MODEL[shard.name].tobytes()[shard.start : shard.stop]
            assert shard.local.numpy().tobytes() == written
        into = {name: np.zeros_like(pieces[name]) for name in reversed(pieces)}
        read_shards(held, shards, into)
        assert {name: array.tobytes() for name, array in into.items()} == {n: p.tobytes() for n, p in pieces.items()}

    run_ranks(2, work)
