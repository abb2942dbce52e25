"""A script's sum that ranks hold in parts is kept whole by the leader, and given back in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from thread_ranks import run_ranks

from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.sums.over_relay.kept_vector import give_parts, whole_at_leader

LAYOUT = Layout([Tensor("a", "float32", (100,)), Tensor("b", "float64", (3,))], salted=True)


@pytest.mark.parametrize("cuts", [(64,), (0, 160), (16, 64, 160)])
def test_there_and_back(cuts: tuple[int, ...]) -> None:
    data = np.random.default_rng(1).integers(0, 256, LAYOUT.nbytes, dtype=np.uint8)
    ends = [0, *cuts, LAYOUT.nbytes]

    def work(site: Any) -> None:
        part = ends[site.rank], ends[site.rank + 1]
        vector = Vector(LAYOUT, part)
        vector.buffer[:] = data[slice(*part)]
        whole = whole_at_leader(site, vector)
        if site.rank == 0:
            assert whole.whole().tobytes() == data.tobytes()
        vector.buffer[:] = 0
        give_parts(site, vector, whole)
        assert vector.buffer.tobytes() == data[slice(*part)].tobytes()

    run_ranks(len(cuts) + 1, work)
