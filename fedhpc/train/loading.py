"""Reads batches: rows of a dataset as tensors, in this process or in worker processes.

Workers are spawned, never forked: a fork after MPI_Init, or with an HDF5 file open, corrupts both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from fedhpc.train.batches import Rows, derive_key


def fetch(dataset: Any, rows: Rows) -> Any:
    """The batch (x, y) of `rows` int64 [m]: by `dataset.rows(rows)` where it has that, else row by row."""
    if hasattr(dataset, "rows"):
        return dataset.rows(rows)
    return default_collate([dataset[int(row)] for row in rows])


def fetch_each(dataset: Any, plan: Sequence[Rows]) -> Iterator[Any]:
    """The batch of each of `plan`, in order: by `dataset.read_ahead(plan)` where it has that."""
    if hasattr(dataset, "read_ahead"):
        return iter(dataset.read_ahead(plan))
    return (fetch(dataset, rows) for rows in plan)


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in it on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, list | tuple):
        return tuple(to_device(item, device) for item in batch)
    if isinstance(batch, dict):
        return {key: to_device(item, device) for key, item in batch.items()}
    return batch


class Reader:
    """Gives the batches of a list of row vectors, in order."""

    def __init__(self, dataset: Any, workers: int, seed: bytes, pin: bool) -> None:
        """`workers` 0 reads in this process; `seed` keys what a dataset draws at random in a worker."""
        self._dataset, self._seed = dataset, seed
        self._plan: list[tuple[bytes, Rows]] = []
        self._loader: DataLoader[Any] | None = None
        if workers:
            # Nothing starts before the first iteration. The loader's own generator only seeds what `_ByRows`
            # seeds again; given one, it leaves torch's default generator alone, which the model's dropout uses.
            self._loader = DataLoader(
                _ByRows(dataset), sampler=_Plan(self._plan), batch_size=None, num_workers=workers,
                multiprocessing_context="spawn", persistent_workers=True, pin_memory=pin,
                generator=torch.Generator(),
            )  # fmt: skip

    def read(self, rows: Sequence[Rows], first: int) -> Iterator[Any]:
        """A batch for each vector of `rows`; `first` numbers them over the whole training."""
        if self._loader is None:
            return fetch_each(self._dataset, rows)
        self._plan[:] = [(derive_key("fedhpc worker v1", self._seed.hex(), first + i), r) for i, r in enumerate(rows)]
        return iter(self._loader)

    def close(self) -> None:
        """End the workers."""
        self._loader = None


class _Plan(torch.utils.data.Sampler[Any]):
    """What a DataLoader hands to its workers, one entry after the other; filled again for every round."""

    def __init__(self, plan: list[tuple[bytes, Rows]]) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[Any]:
        return iter(self._plan)

    def __len__(self) -> int:
        return len(self._plan)


class _ByRows(Dataset[Any]):
    """A dataset whose index is (seed, rows). Seeding per batch makes draws independent of the workers' number."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: tuple[bytes, Rows]) -> Any:
        seed, rows = index
        if get_worker_info() is not None:
            torch.manual_seed(int.from_bytes(seed[:7], "little"))
            np.random.seed(np.frombuffer(seed, dtype="<u4"))
            random.seed(seed)
        return fetch(self._dataset, rows)
