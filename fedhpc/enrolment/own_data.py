"""A federation in one MPI job from people's own CSV files: keys, stores, site files and what the sites agree on.

Everything is made in a folder beside the one that was asked for, which then takes its name: a mistake in the third
file leaves nothing behind.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.agreement.roster import check_name
from fedhpc.data.csv_file import CsvFile
from fedhpc.data.ingest import Ingested, ingest_csv
from fedhpc.data.recipe import Recipe, read_recipe
from fedhpc.data.rowkey import create_key, read_key
from fedhpc.data.spelling import visible
from fedhpc.data.store import SiteStore
from fedhpc.enrolment.scaffold import NewSite, Plan, write_federation
from fedhpc.errors import ConfigError, DataError, PolicyError, StorageError

ROUNDS = 20
_MOST_CLASSES = 1000
_STRATEGY = """\
name = "fedavg"
weights = "samples\""""
_TASK = """\
name = "{name}"
standardise = true           # with the federation's own mean and variance, masked sums themselves
held_out = 0.2
split_seed = 0
features_sha256 = "{features_sha256}"
options = {{ {options} }}"""
_LOGISTIC = """\
optimizer = "sgd"
lr = 0.5
weight_decay = 0.002
batch_size = 0               # all rows of the site
local_steps = 2"""
_MLP = """\
optimizer = "adamw"
lr = 0.003
weight_decay = 0.01
batch_size = 32
local_epochs = 1"""


@dataclass(frozen=True)
class Made:
    """What was made of each site's file, and of all of them."""

    sites: Mapping[str, Ingested]
    ranks: Mapping[str, int]
    task: str
    features: int
    features_sha256: str

    def facts(self, directory: Path) -> dict[str, Any]:
        """For programs; counts only."""
        return {
            "directory": str(directory),
            "task": self.task,
            "features": self.features,
            "features_sha256": self.features_sha256,
            "ranks": sum(self.ranks.values()),
            "sites": {name: self._site(name) for name in self.sites},
        }

    def _site(self, name: str) -> dict[str, Any]:
        done = self.sites[name]
        facts = {"rows": done.rows_kept, "read": done.rows_read, "dropped": done.dropped, "filled": done.filled}
        return facts | {"ranks": self.ranks[name]}


def write_own_federation(
    directory: Path, csv_files: Mapping[str, Path], recipe_file: Path, *, ranks: Mapping[str, int], rounds: int = ROUNDS
) -> Made:
    """Make `directory` from one CSV file for each site, in the order of the roster.

    Raises ConfigError for names, ranks, a recipe that cannot be used or a folder that is not empty; DataError for files
    that do not fit the recipe, all that is wrong with their columns at once; StorageError.
    """
    _refuse(directory, csv_files)
    recipe = read_recipe(recipe_file)
    _compare_headers(csv_files, recipe)
    new = directory.parent / f".{directory.name}.{os.getpid()}.new"
    try:
        try:
            new.mkdir(mode=0o700, parents=True)
            made = _fill(new, csv_files, recipe, recipe_file, ranks, rounds)
            if directory.is_dir():
                directory.rmdir()  # it is empty
            new.rename(directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot make {directory}: {error.strerror}", "choose another folder") from None
    return made


def _refuse(directory: Path, csv_files: Mapping[str, Path]) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not an empty folder", "choose another one; nothing was changed")
    if len(csv_files) < 3:
        raise PolicyError(
            f"{len(csv_files)} sites: a sum of two shows each the other's numbers",
            "three sites and more; two that accept that say so in [secure] accept_two_sites of federation.toml",
        )
    for name in csv_files:
        check_name(name, "site")


def _compare_headers(csv_files: Mapping[str, Path], recipe: Recipe) -> None:
    """DataError that names every column of the recipe that a file lacks, and what it may be called there."""
    lines = []
    for name, path in csv_files.items():
        try:
            with path.open("rb") as file:
                header = CsvFile(path, file, recipe.source).header()
        except FileNotFoundError:
            raise DataError(f"site {name}: {path} does not exist", "check the path") from None
        wanted = {visible(column) for column in recipe.columns()}
        left = [column for column in header if column not in wanted]
        for column in recipe.columns():
            if visible(column) not in header:
                near = difflib.get_close_matches(visible(column), left, n=1, cutoff=0.4)
                lines.append(f"{name}: no column '{column}'" + (f", but '{near[0]}'" if near else ""))
    if lines:
        raise DataError(
            f"the recipe does not fit {len(lines)} column{'s' if len(lines) > 1 else ''}: {'; '.join(lines)}",
            "the sites agree on one name for a column: rename it in the file, or in the recipe for all",
        )


def _fill(
    new: Path,
    csv_files: Mapping[str, Path],
    recipe: Recipe,
    recipe_file: Path,
    ranks: Mapping[str, int],
    rounds: int,
) -> Made:
    create_key(new / "row-id.key")
    key = read_key(new / "row-id.key")
    (new / "data").mkdir()
    shutil.copyfile(recipe_file, new / "recipe.toml")
    done: dict[str, Ingested] = {}
    for name, path in csv_files.items():
        try:
            done[name] = ingest_csv(path, recipe, new / "data" / f"{name}.h5", site=name, key=key)
        except DataError as error:
            raise DataError(f"site {name}: {error.what}", error.hint) from None
    stores = {name: new / "data" / f"{name}.h5" for name in csv_files}
    task, options, train, features, sha256 = _task(list(stores.values()), recipe)
    plan = Plan(
        name="own",
        rounds=rounds,
        seed=0,
        strategy=_STRATEGY,
        task=_TASK.format(name=task, features_sha256=sha256, options=options),
        train=train,
    )
    write_federation(new, plan, {name: NewSite(stores[name], ranks[name], "cpu") for name in csv_files})
    return Made(done, ranks, task, features, sha256)


def _task(stores: Sequence[Path], recipe: Recipe) -> tuple[str, str, str, int, str]:
    """(task, its options, [train], features, their hash): by what the label is at all sites together."""
    labels: set[int] = set()
    for path in stores:
        with SiteStore.open(path, scan=False) as store:
            features, sha256 = len(store.feature_names), store.feature_sha256
            values = np.unique(store.labels())
            if values.dtype.kind == "f":
                raise ConfigError(
                    f"the label '{recipe.label.column}' is a number, and the built-in tasks tell classes apart",
                    "above = … in [label] makes two classes of it; or write a task of your own (docs/tasks.md)",
                )
            labels.update(int(value) for value in values)
    if not all(0 <= value < _MOST_CLASSES for value in labels):
        raise ConfigError(
            f"the label '{recipe.label.column}' is no class: it has negative or very large numbers",
            "classes = { … } or above = … in [label] says what is a class",
        )
    classes = max(labels) + 1
    if classes <= 2:
        if len(labels) < 2:
            raise DataError(
                f"all rows of all sites have the same label '{recipe.label.column}'", "is [label] above right?"
            )
        return "logistic", f"features = {features}", _LOGISTIC, features, sha256
    return "mlp", f"features = {features}, classes = {classes}", _MLP, features, sha256
