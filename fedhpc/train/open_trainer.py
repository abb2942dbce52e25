"""Makes a site's trainer from its settings: with NumPy alone where that does, else with torch, which is imported then.

Torch takes many ranks a minute from a parallel file system, and most mistakes in the files are found before.
"""

from __future__ import annotations

from pathlib import Path

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import Group
from fedhpc.train.linear.without_torch import trains_with_numpy
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.site_trainer import SiteTrainer
from fedhpc.train.test_rows import require_agreed


def open_trainer(
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
) -> SiteTrainer:
    """The trainer of `site` on its data at `data`; `source` is the file of the user's own task.

    `test`: the store of the site's test rows, where the federation has them.
    `weights`: the folder of safetensors that the first model is read from, if task.weights_sha256 says that it is.
    Collective over the site's ranks. Raises ConfigError where torch is needed and missing, and what `trains_with_numpy`
    and the opener that it chooses raise.
    """
    require_agreed(task, test, site)
    if trains_with_numpy(task, train, compute):
        from fedhpc.train.linear.open_numpy_trainer import open_numpy_trainer

        return open_numpy_trainer(
            task, train, compute, data=data, group=group, site=site, seed=seed, proximal=proximal, test=test
        )
    try:
        from fedhpc.train.open_torch_trainer import open_torch_trainer
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise ConfigError(
            f"site {site}: the task {task.name} trains with torch, which is not installed here",
            "pip install 'fedhpc[train]', with the Python of the job",
        ) from missing

    return open_torch_trainer(
        task, train, compute, data=data, source=source, group=group, site=site, seed=seed, proximal=proximal,
        weights=weights, test=test,
    )  # fmt: skip
