"""Some rows of a site, whole and in parts that are as unlike each other as its labels allow."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from fedhpc.train.batches import Rows
from fedhpc.train.loading import fetch, to_device

_ODD_ABOVE = 9  # rows; of fewer, one would be alone
FEWEST = 4  # two parts of two rows
_PROBED = 8
_MAX_BYTES = 256 << 20  # of a batch, unless so few rows are larger


@dataclass(frozen=True)
class Sample:
    """A batch on the device, and the same rows as smaller batches, with the number of rows of each."""

    whole: Any
    parts: list[tuple[int, Any]]


def take_apart(dataset: Any, rows: Rows, labels: NDArray[Any] | None, most: int, device: torch.device) -> Sample | None:
    """Up to `most` of `rows`, of all classes of `labels` [rows of the dataset] if there are any.

    None for too few rows.
    """
    if labels is not None:
        labels = np.asarray(labels)
        if labels.ndim == 1:
            rows = _of_all_classes(rows, labels)
        else:
            labels = None
    if rows.size < FEWEST:
        return None
    probed = rows[: min(_PROBED, most)]
    row_bytes = _nbytes(fetch(dataset, probed)) / probed.size
    chosen = rows[: min(most, max(_PROBED, int(_MAX_BYTES / max(row_bytes, 1.0))))]
    n = chosen.size
    batch = to_device(fetch(dataset, chosen), device)
    order = _by_label(batch, None if labels is None else labels[chosen], n)
    cuts = [0, n // 4, n // 2, n] if n >= 2 * FEWEST else [0, n // 2, n]
    if n > _ODD_ABOVE:
        cuts[1] |= 1  # a part of an odd length breaks up pairs of neighbours
    spans = [order[a:b] for a, b in itertools.pairwise(cuts)]
    try:
        return Sample(_take(batch, order, n), [(span.size, _take(batch, span, n)) for span in spans])
    except TypeError:
        return Sample(batch, [(span.size, to_device(fetch(dataset, chosen[span]), device)) for span in spans])


def _nbytes(batch: Any) -> int:
    return sum(int(getattr(leaf, "nbytes", 0)) for leaf in pytree.tree_leaves(batch))


def _of_all_classes(rows: Rows, labels: NDArray[Any]) -> Rows:
    """`rows` in another order: the first of each class, then the second of each, and so on."""
    order = np.argsort(labels[rows], kind="stable")
    values = labels[rows[order]]
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    turn = np.empty(rows.size, dtype=np.int64)
    turn[order] = np.arange(rows.size) - np.repeat(first, np.diff(np.append(first, rows.size)))
    return rows[np.argsort(turn, kind="stable")]


def _by_label(batch: Any, labels: NDArray[Any] | None, n: int) -> Rows:
    """An order of the rows of `batch` that gives parts of it few classes each."""
    y = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    if labels is None and isinstance(y, torch.Tensor) and y.shape in ((n,), (n, 1)):
        labels = y.detach().cpu().double().numpy().reshape(n)
    return np.arange(n) if labels is None else np.argsort(labels, kind="stable")


def _take(batch: Any, rows: Rows, n: int) -> Any:
    """`rows` of a batch of `n`. Raises TypeError where it does not show its rows."""
    if isinstance(batch, torch.Tensor) and batch.ndim and len(batch) == n:
        return batch[torch.from_numpy(rows).to(batch.device)]
    if isinstance(batch, np.ndarray) and batch.ndim and len(batch) == n:
        return batch[rows]
    if isinstance(batch, dict):
        return {key: _take(value, rows, n) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        try:
            return tuple(_take(item, rows, n) for item in batch)
        except TypeError:
            if len(batch) == n:  # one item a row
                return tuple(batch[row] for row in rows)
            raise
    raise TypeError(f"no rows in {type(batch).__name__}")
