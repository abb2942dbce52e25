"""Makes a site's torch trainer from its settings: task, data, split, model, ranks."""

from __future__ import annotations

from pathlib import Path

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import Group
from fedhpc.train.feature_agreement import require_features, require_same_features
from fedhpc.train.first_model import Drawn, FirstModel, Values
from fedhpc.train.row_check import check_rows
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.tasks.loader import TaskDataset, load_task
from fedhpc.train.test_rows import refuse_shared_rows
from fedhpc.train.trainer import TorchTrainer
from fedhpc.train.weight_files import open_weights


def open_torch_trainer(
    task: TaskSettings,
    train: TrainSettings,
    compute: ComputeSettings,
    *,
    data: Path,
    source: Path | None,
    group: Group,
    site: str,
    seed: int,
    proximal: float = 0.0,
    weights: Path | None = None,
    test: Path | None = None,
) -> TorchTrainer:
    """The trainer of `site` on its data at `data`; `source` is the file of the user's own task.

    `weights`: the folder of safetensors that the first model is read from, if task.weights_sha256 says that it is.

    Collective over the site's ranks. Raises what load_task, the task, TorchTrainer and check_rows raise, and what
    require_features raises.
    """
    loaded = load_task(task, source, site)
    dataset = TaskDataset(loaded, data, task.options, (compute.data_memory_mib << 20) // (1 + compute.workers))
    features = dataset.features
    require_features(task, features, data, site)
    test_rows = None
    if test is not None:
        test_rows = TaskDataset(loaded, test, task.options, dataset.memory_bytes)
        require_features(task, test_rows.features, test, site)
        require_same_features(features, test_rows.features, test, site)
        refuse_shared_rows(getattr(dataset.opened, "store", None), getattr(test_rows.opened, "store", None), site)
    train_rows, held_out_rows = dataset.split(task.held_out, task.split_seed)
    values: Values | None = Drawn(loaded.fill, seed, loaded.where) if loaded.fills else None
    if task.weights_sha256:
        if weights is None:
            raise ConfigError(
                f"site {site}: the first model is read from files, and the site file does not say where they lie",
                f"set weights in [data], a folder of safetensors; task.weights_sha256 is {task.weights_sha256}",
            )
        values = open_weights(weights, task.weights_sha256, group, site)
    first = FirstModel(lambda: loaded.model(task.options, seed), values, loaded.units, bf16=train.precision == "bf16")
    trainer = TorchTrainer(
        loaded, first, dataset, train_rows, held_out_rows, train, compute, group, site, seed, proximal, features,
        test_rows,
    )  # fmt: skip
    try:
        check_rows(loaded, trainer, train, seed=seed, labels=dataset.labels, standardise=task.standardise)
    except BaseException:
        trainer.close()
        raise
    return trainer
