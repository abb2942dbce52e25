"""A task's sums over one rank's held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.train.batches import Rows
from fedhpc.train.loading import fetch, to_device
from fedhpc.train.tasks.loader import Task

MEASURE_ROWS = 1024  # in one call of sums(), unless it couples rows or the dataset says fewer


def measured(
    task: Task,
    model: torch.nn.Module,
    dataset: Any,
    rows: Rows,
    instead: Rows,
    device: torch.device,
    most_rows: int = 0,
) -> dict[str, NDArray[Any]]:
    """Sums of `model` over `rows` int64 [m] of `dataset`: int64 and float64 arrays by name.

    Without rows they are zeros, of the names and shapes that rows of `instead` give. Where rows are coupled all of them
    go into one call, and have to fit into memory.
    """
    step = (
        min(MEASURE_ROWS, getattr(dataset, "measure_rows", MEASURE_ROWS))
        if task.rows == "independent"
        else max(rows.size, 1)
    )
    shown = 1 if task.rows == "independent" else MEASURE_ROWS  # sums over pairs may have no value for one row
    sums: dict[str, NDArray[Any]] = {}
    model.eval()
    with torch.no_grad():
        for start in range(0, max(rows.size, most_rows, 1), step):
            counts = start < rows.size
            chosen = rows[start : start + step] if counts else instead[:shown]
            for name, value in task.sums(model, to_device(fetch(dataset, chosen), device)).items():
                kind = np.float64 if value.is_floating_point() else np.int64
                array = value.detach().cpu().to(torch.float64 if kind is np.float64 else torch.int64).numpy()
                array = array.reshape(()) if name == "n" else array
                sums[name] = sums.get(name, np.zeros_like(array)) + (array if counts else np.zeros_like(array))
    return {name: np.asarray(value) for name, value in sums.items()}
