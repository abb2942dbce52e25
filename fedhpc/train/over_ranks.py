"""Sums over the ranks of one site, in the clear: they share a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.mpi.collectives import Group


def add_over_ranks(group: Group, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Sums over the site's ranks of int64 and float64 `arrays`, the same bits on every rank.

    MPI only advises that an allreduce gives every rank equal bits, so floats come from the leader.
    """
    total = {name: np.array(arrays[name], order="C") for name in sorted(arrays)}
    for kind in (np.int64, np.float64):
        names = [name for name, array in total.items() if array.dtype == kind]
        if not names:
            continue
        flat = np.concatenate([total[name].reshape(-1) for name in names])
        group.sum(flat)
        group.broadcast(flat)
        start = 0
        for name in names:
            stop = start + total[name].size
            total[name] = flat[start:stop].reshape(total[name].shape).copy()
            start = stop
    return total
