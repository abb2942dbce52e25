"""Makes the trainer that needs no torch: options, data, split."""

from __future__ import annotations

from pathlib import Path

from fedhpc.config import read_section
from fedhpc.errors import DataError
from fedhpc.mpi.collectives import Group
from fedhpc.train.class_rows import ClassRows
from fedhpc.train.feature_agreement import require_features, require_same_features
from fedhpc.train.held_out import split_rows
from fedhpc.train.linear.numpy_trainer import NumpyTrainer
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.test_rows import refuse_shared_rows


def open_numpy_trainer(
    task: TaskSettings,
    train: TrainSettings,
    compute: ComputeSettings,
    *,
    data: Path,
    group: Group,
    site: str,
    seed: int,
    proximal: float = 0.0,
    test: Path | None = None,
) -> NumpyTrainer:
    """The trainer of `site` on its store at `data`.

    Raises ConfigError for other options, DataError for a store that does not fit them or the agreed features.
    """
    options = read_section(LogisticOptions, task.options, "task.options")
    dataset = ClassRows(data, options.features, 2)
    test_rows = None
    try:
        store = dataset.store
        store.memory_bytes = compute.data_memory_mib << 20
        if test is not None:
            test_rows = ClassRows(test, options.features, 2)
            require_same_features(store.feature_set, test_rows.store.feature_set, test, site)
            refuse_shared_rows(store, test_rows.store, site)
        if store.feature_set.row_shape != (options.features,):
            raise DataError(
                f"site {site}: {data} has rows of the shape {list(store.feature_set.row_shape)}, and the task logistic "
                "takes a row of numbers",
                "ingest them as columns, or use another task",
            )
        require_features(task, store.feature_set, data, site)
        rows, held_out = split_rows(len(dataset), task.held_out, task.split_seed, site, dataset.labels)
        return NumpyTrainer(options, dataset, rows, held_out, train, group, site, seed, proximal, test_rows=test_rows)
    except BaseException:
        dataset.store.close()
        if test_rows is not None:
            test_rows.store.close()
        raise
