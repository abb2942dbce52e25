"""An exported torch model over the rows of a store: on the CPU, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.train.exported import ROWS, Exported, Scores, refuse_other_tensors
from fedhpc.train.feature_agreement import require_features
from fedhpc.train.loading import fetch
from fedhpc.train.measure import measured
from fedhpc.train.state import floating, read_shared, write_shared
from fedhpc.train.tasks.loader import TaskDataset, load_task

_CPU = torch.device("cpu")


class TorchScorer:
    """Scores are the model's own outputs, turned into probabilities: of one column by the logistic function, of
    several by softmax. A task of one's own gives them itself: predict(model, batch), a tensor [m] or [m, k]."""

    def __init__(self, exported: Exported, data: Path, source: Path | None) -> None:
        self._task = load_task(exported.task, source, "")
        self._model = self._task.model(exported.task.options, 0)
        tensors = floating(self._model)
        refuse_other_tensors(exported.path, exported.tensors, read_shared(tensors))
        write_shared(tensors, exported.tensors)
        self._model.eval()
        self._dataset = TaskDataset(self._task, data, exported.task.options)
        store: Any = getattr(self._dataset.opened, "store", None)
        self._store = store if isinstance(store, SiteStore) else None
        require_features(exported.task, self._dataset.features, data, "")
        self.n = len(self._dataset)

    def scores(self) -> Iterator[tuple[NDArray[np.uint8], Scores]]:
        """Raises ConfigError where the rows have no identifiers, or the task does not say what a score is."""
        if self._store is None:
            raise ConfigError(
                "the rows of this data have no identifiers, so no score can be given a row",
                "`fedhpc evaluate` measures the model on them",
            )
        with torch.no_grad():
            for start in range(0, self.n, ROWS):
                rows = np.arange(start, min(start + ROWS, self.n))
                scores = self._task.predict(self._model, fetch(self._dataset, rows))
                array = scores.reshape(len(rows), -1).to(torch.float64).numpy()
                yield self._store.row_ids(slice(start, start + len(rows))), array

    def sums(self) -> Tensors:
        """The task's sums over all rows."""
        rows = np.arange(self.n)
        return measured(self._task, self._model, self._dataset, rows, rows, _CPU)
