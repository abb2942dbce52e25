"""Splits a site's rows into those it trains on and those it holds out for measuring."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.train.batches import Rows, permutation


def split_rows(n: int, held_out: float, seed: int, site: str, labels: NDArray[Any] | None = None) -> tuple[Rows, Rows]:
    """Training and held-out rows of 0..n-1, each int64 and rising; together they are all rows.

    `held_out` is the share to hold out, rounded to whole rows; 0 holds out none. With `labels` [n] the split is
    made within each class of at least two rows, so that both sides hold the class; classes of one row are split
    together as one. A group of at least two rows always has a row on each side. The same for the same arguments,
    on any machine.
    """
    if held_out == 0.0:
        return np.arange(n, dtype=np.int64), np.zeros(0, dtype=np.int64)
    order = permutation(n, seed, f"split of {site}", 0)
    group = np.zeros(n, dtype=np.int64)
    if labels is not None and n:
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        group = np.where(counts[inverse] >= 2, inverse, -1).astype(np.int64)
    out = np.zeros(n, dtype=bool)
    for value in np.unique(group):
        members = order[group[order] == value]
        if members.size >= 2:
            # floor(x + 1/2): Python's and NumPy's round go to the even neighbour, which would surprise
            count = int(np.floor(held_out * members.size + 0.5))
            out[members[: min(max(count, 1), members.size - 1)]] = True
    return np.flatnonzero(~out).astype(np.int64), np.flatnonzero(out).astype(np.int64)
