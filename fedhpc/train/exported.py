"""An exported model in use, in one process: the scores of a store's rows, and its metrics on them.

What the model is stands in the file's header, which `fedhpc export` writes: [task] of its federation. The
standardisation is in the model. The task `logistic` needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhpc.config import parse_toml, read_bytes, read_section
from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.train.class_rows import ClassRows
from fedhpc.train.feature_agreement import require_features
from fedhpc.train.linear.logistic_model import first_tensors, held_out_sums, logits_of_rows, probability
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.settings import TaskSettings
from fedhpc.train.start_file import read_start_file

TASK = "task"
"""In a file's header: [task] of its federation, as JSON."""
ROWS = 4096  # read at once
_LARGEST_FEDERATION = 16 << 20

Scores = NDArray[np.float64]


class Scorer(Protocol):
    """A model and the rows of a store."""

    n: int

    def scores(self) -> Iterator[tuple[NDArray[np.uint8], Scores]]:
        """(row ids [m, 32], probabilities [m, 1] of class 1, or [m, classes]), in the order of the store."""
        ...

    def sums(self) -> Tensors:
        """The task's sums over all rows (evaluate.summarise)."""
        ...


@dataclass(frozen=True)
class Exported:
    """A model file."""

    path: Path
    task: TaskSettings
    tensors: Tensors


def read_exported(path: Path, federation: Path | None = None) -> Exported:
    """The model in `path`; `federation`: where [task] is read from, for a file that does not say it.

    Raises ConfigError where nothing says what the model is, DataError for a file that is no safetensors file.
    """
    file = read_start_file(path)
    if federation is not None:
        whole = parse_toml(read_bytes(federation, _LARGEST_FEDERATION), str(federation))
        return Exported(path, read_section(TaskSettings, whole.get("task", {}), "task"), file.tensors)
    try:
        table = json.loads(file.metadata.get(TASK, "null"))
    except ValueError:
        raise DataError(f"{path}: what its header says of the task is no JSON", "export the model again") from None
    if table is None:
        raise ConfigError(
            f"{path} does not say what model it holds", "give its federation's file: --federation federation.toml"
        )
    return Exported(path, read_section(TaskSettings, table, "task"), file.tensors)


def open_scorer(exported: Exported, data: Path, source: Path | None = None) -> Scorer:
    """The model over the store at `data`; `source`: the file of a task of one's own.

    Raises ConfigError, DataError for another model than the task builds, or a store with other features.
    """
    if exported.task.name == "logistic":
        return _Linear(exported, data)
    try:
        from fedhpc.train.exported_torch import TorchScorer
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise ConfigError(
            f"the task {exported.task.name} needs torch, which is not installed here", "pip install 'fedhpc[train]'"
        ) from missing
    return TorchScorer(exported, data, source)


def refuse_other_tensors(path: Path, tensors: Tensors, built: Mapping[str, NDArray[Any]]) -> None:
    """DataError that names the first tensor of `path` that is not as the task builds it."""
    for name, wanted in built.items():
        found = tensors.get(name)
        if found is None:
            raise DataError(
                f"{path} lacks the tensor {name} of this task's model",
                "with [train] personal a site's own tensors are in `fedhpc export --site NAME` only",
            )
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            raise DataError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}, in this task's model it is {wanted.dtype} "
                f"{list(wanted.shape)}",
                "the file is of another federation, or the task's options are others",
            )
    if more := sorted(tensors.keys() - built.keys()):
        raise DataError(f"{path} also has the tensor {more[0]}, which this task's model lacks", "it is of another task")


class _Linear:
    """Logistic regression."""

    def __init__(self, exported: Exported, data: Path) -> None:
        self._options = read_section(LogisticOptions, exported.task.options, "task.options")
        refuse_other_tensors(exported.path, exported.tensors, first_tensors(self._options.features))
        self._rows = ClassRows(data, self._options.features, 2)
        self._store: SiteStore = self._rows.store
        require_features(exported.task, self._store.feature_set, data, self._store.site)
        self._tensors, self.n = exported.tensors, len(self._rows)

    def scores(self) -> Iterator[tuple[NDArray[np.uint8], Scores]]:
        plan = [np.arange(start, min(start + ROWS, self.n)) for start in range(0, self.n, ROWS)]
        for rows, (x, _) in zip(plan, self._rows.read_ahead(plan), strict=True):
            ids = self._store.row_ids(slice(int(rows[0]), int(rows[-1]) + 1))
            yield ids, probability(logits_of_rows(self._tensors, x))[:, None]

    def sums(self) -> Tensors:
        plan = [np.arange(start, min(start + ROWS, self.n)) for start in range(0, self.n, ROWS)]
        total: Tensors = {}
        for x, y in self._rows.read_ahead(plan):
            for name, value in held_out_sums(self._tensors, x, y, self._options.bins).items():
                total[name] = total[name] + value if name in total else value
        return total
