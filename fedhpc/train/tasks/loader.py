"""Finds a task, and runs its functions so that an error in them says which function of which task at which site.

A user's file is read once; the bytes that were hashed are the bytes that run.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.config import read_bytes
from fedhpc.data.schema import FeatureSet
from fedhpc.data.store import MEMORY_BYTES, SiteStore
from fedhpc.errors import ConfigError, DataError, FedhpcError, PolicyError
from fedhpc.train.batches import Rows
from fedhpc.train.evaluate import EXPECTED, NEGATIVE, POSITIVE, wrong_histograms
from fedhpc.train.held_out import split_rows
from fedhpc.train.model_units import default_units
from fedhpc.train.settings import TaskSettings

_HISTOGRAMS = (POSITIVE, NEGATIVE, EXPECTED)
FUNCTIONS = ("model", "dataset", "loss", "sums")
ROWS = ("independent", "coupled")
ONE_ROW = "Expected more than 1 value per channel when training"  # torch's words, of batch norm


class Task:
    """The functions of a task, for one site. Errors inside them become ConfigError or DataError, chained.

    `rows` says what a row's loss depends on: "independent", on the row alone; "coupled", on all rows of the batch.
    """

    def __init__(self, name: str, module: types.ModuleType, source: bytes | None, where: str, site: str) -> None:
        """`source`: the file's bytes if the task is not built in; `where`: its path, for messages."""
        missing = [f for f in FUNCTIONS if not callable(getattr(module, f, None))]
        if missing:
            raise ConfigError(
                f"task {where} lacks {', '.join(f + '()' for f in missing)}",
                f"a task defines {', '.join(f + '()' for f in FUNCTIONS)}",
            )
        self.rows = getattr(module, "rows", ROWS[0])
        if not isinstance(self.rows, str):
            self.rows = ROWS[0]  # a function or table of the task's own that is called so
        if self.rows not in ROWS:
            raise ConfigError(
                f'task {where} says rows = "{self.rows}"', 'it must be "independent" or "coupled"; see docs/tasks.md'
            )
        self.name, self.site = name, site
        self.built_in = source is None
        self.fills = _asks_for(getattr(module, "fill", None), ("name", "shape", "generator"))
        """Whether it gives a first model tensor by tensor: fill(name, shape, generator)."""
        self._names_units = _asks_for(getattr(module, "fsdp_units", None), ("model",))
        self._module, self._source, self.where = module, source, where

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker of the DataLoader gets the task this way: the same bytes, run again.
        return _rebuild, (self.name, self._source, self.where, self.site)

    def require_layout(self, ranks: int, accumulation: int) -> None:
        """Raises ConfigError if the rows are coupled, and so many ranks or pieces would take a batch apart."""
        if self.rows == "coupled" and (ranks > 1 or accumulation > 1):
            many = f"{ranks} ranks" if ranks > 1 else f"train.accumulation = {accumulation}"
            raise ConfigError(
                f'site {self.site}: task {self.where} says rows = "coupled", and {many} would take a batch apart',
                "its loss needs the whole batch in one pass: one rank for the site, train.accumulation = 1",
            )

    def model(self, options: Mapping[str, Any], seed: int) -> torch.nn.Module:
        """The model, drawn with `seed` on the CPU: all sites start equal. Torch's own generator is left alone."""
        with self.blame("model", ConfigError), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self._module.model(dict(options))
        if not isinstance(model, torch.nn.Module):
            raise ConfigError(f"model() of task {self.where} returned {type(model).__name__}, not a torch Module")
        return model if any(p.is_meta for p in model.parameters()) else model.cpu()

    def fill(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """The first value of the parameter `name`, drawn from `generator` on the CPU. Only where `fills`."""
        with self.blame("fill", ConfigError), torch.no_grad():
            value: torch.Tensor = self._module.fill(name, shape, generator)
        return value

    def units(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The parts of `model` that are gathered, or computed again, one at a time: fsdp_units(), else its blocks."""
        if not self._names_units:
            return default_units(model)
        with self.blame("fsdp_units", ConfigError):
            units = list(self._module.fsdp_units(model))
        inside = {id(module) for module in model.modules()}
        if not all(id(unit) in inside for unit in units):
            raise ConfigError(
                f"fsdp_units() of task {self.where} must return modules of the model that it is given",
                "for example list(model.blocks)",
            )
        return units

    def dataset(self, path: Path, options: Mapping[str, Any]) -> Any:
        """The site's data at `path`, opened."""
        with self.blame("dataset", DataError):
            dataset = self._module.dataset(path, dict(options))
            len(dataset)
        return dataset

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The mean loss over the rows of `batch`, a scalar."""
        with self.blame("loss", DataError):
            loss = self._module.loss(model, batch)
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            raise ConfigError(f"loss() of task {self.where} must return one scalar tensor: the mean over the rows")
        return loss

    def predict(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Scores [m] or [m, k] of the rows of `batch`: predict() of the task, else probabilities from model(x)."""
        own = getattr(self._module, "predict", None)
        with self.blame("predict" if callable(own) else "model", DataError):
            if callable(own):
                scores = own(model, batch)
            elif self.built_in and self.name in ("logistic", "mlp", "cnn"):
                logits = model(batch[0]).double()
                scores = torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)
            else:
                raise ConfigError(
                    f"task {self.where} does not say what the score of a row is",
                    "add predict(model, batch) to it, which gives a tensor [rows] or [rows, scores]",
                )
        if not isinstance(scores, torch.Tensor) or scores.ndim not in (1, 2):
            raise ConfigError(f"predict() of task {self.where} must return a tensor [rows] or [rows, scores]")
        return scores

    def sums(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Sums over the rows of `batch`, by name."""
        with self.blame("sums", DataError):
            sums = self._module.sums(model, batch)
        if (
            not isinstance(sums, dict)
            or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in sums.items())
            or "n" not in sums
            or sums["n"].numel() != 1
        ):
            raise ConfigError(
                f"sums() of task {self.where} must return tensors by name, and among them the scalar 'n'",
                "n is the number of rows in the batch: torch.tensor(len(y))",
            )
        counts = {name: sums[name].detach().cpu().double().numpy() for name in _HISTOGRAMS if name in sums}
        if wrong := "" if self.built_in else wrong_histograms(counts):
            raise ConfigError(f"sums() of task {self.where}: {wrong}", "see docs/tasks.md, metrics of two classes")
        return sums

    @contextmanager
    def blame(self, function: str, kind: type[FedhpcError]) -> Iterator[None]:
        """What goes wrong inside is an error of `kind` that names the task's `function`."""
        try:
            yield
        except FedhpcError:
            raise
        except Exception as error:
            detail = " ".join(str(error).split())[:300]
            hint = "the traceback above shows the line"
            if isinstance(error, torch.cuda.OutOfMemoryError):
                hint = "the GPU's memory is full: a larger train.accumulation takes smaller pieces, with the same steps"
            elif ONE_ROW in detail:
                hint = "batch norm learns nothing from one row: give each pass two or more (train.batch_size)"
            raise kind(
                f"site {self.site}: {function}() of task {self.where} failed: {type(error).__name__}: {detail}", hint
            ) from error


def _asks_for(function: Any, names: tuple[str, ...]) -> bool:
    """Whether `function` is one, of just these arguments: a task may well use the name for something else."""
    return isinstance(function, types.FunctionType) and tuple(inspect.signature(function).parameters) == names


class TaskDataset(torch.utils.data.Dataset[Any]):
    """A task's dataset that can be sent to a DataLoader's worker: it opens its files again in every process.

    Open files, HDF5 above all, must not cross into another process.
    """

    def __init__(self, task: Task, path: Path, options: Mapping[str, Any], memory_bytes: int = MEMORY_BYTES) -> None:
        """`memory_bytes`: of the rows that the dataset's `store`, a SiteStore, has in memory in each process."""
        self.task, self.path, self.options, self.memory_bytes = task, path, dict(options), memory_bytes
        self._opened: Any = None
        self._split: tuple[float, int] | None = None

    @property
    def opened(self) -> Any:
        """The task's own dataset, opened in this process, and split as it was in the first."""
        if self._opened is None:
            self._opened = self.task.dataset(self.path, self.options)
            if isinstance(store := getattr(self._opened, "store", None), SiteStore):
                store.memory_bytes = self.memory_bytes
            if self._split is not None and hasattr(self._opened, "held_out_split"):
                self._opened.held_out_split(*self._split, self.task.site)
        return self._opened

    def split(self, held_out: float, seed: int) -> tuple[Rows, Rows]:
        """Training and held-out rows, int64 each: by the dataset's own `held_out_split`, or row by row (split_rows)."""
        opened = self.opened
        if not hasattr(opened, "held_out_split"):
            return split_rows(len(opened), held_out, seed, self.task.site, self.labels)
        self._split = (held_out, seed)
        with self.task.blame("held_out_split", DataError):
            training, held = (np.asarray(rows) for rows in opened.held_out_split(held_out, seed, self.task.site))
            for rows in (training, held):
                if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
                    raise ValueError(f"row numbers are a list of integers, and not {rows.dtype} {list(rows.shape)}")
            both = np.concatenate([training, held])
            if both.size and (both.min() < 0 or both.max() >= len(opened) or np.unique(both).size < both.size):
                raise ValueError(f"each of the {len(opened)} rows is on one side, once, or left out")
        return training.astype(np.int64), held.astype(np.int64)

    @property
    def labels(self) -> NDArray[Any] | None:
        """The label of every row [n], where the task's dataset has them."""
        return self.opened.labels() if hasattr(self.opened, "labels") else None

    @property
    def measure_rows(self) -> int:
        """As many rows at most go through sums() at once."""
        with self.task.blame("measure_rows", ConfigError):
            rows = int(getattr(self.opened, "measure_rows", sys.maxsize))
            if rows < 1:
                raise ValueError(f"{rows} rows at once")
        return rows

    @property
    def features(self) -> FeatureSet | None:
        """What the columns mean, if the task's dataset has a `store` that says so (fedhpc.data.store.SiteStore)."""
        store = getattr(self.opened, "store", None)
        return getattr(store, "feature_set", None)

    def __getstate__(self) -> dict[str, Any]:
        # A site's store crosses by itself (it opens its file anew); a user's class does not: its module has no file
        # that a worker could import.
        return self.__dict__ if self.task.built_in else {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self.opened)

    def __getitem__(self, row: int) -> Any:
        return self.opened[row]

    def rows(self, rows: NDArray[np.int64]) -> Any:
        """The batch (x, y) of `rows` [m]: by the dataset's own `rows`, or collated."""
        if hasattr(self.opened, "rows"):
            return self.opened.rows(rows)
        return torch.utils.data.default_collate([self.opened[int(row)] for row in rows])

    def read_ahead(self, plan: Sequence[Rows]) -> Iterator[Any]:
        """The batch of each of `plan`, in order: by the dataset's own `read_ahead`, or one after the other."""
        if hasattr(self.opened, "read_ahead"):
            return iter(self.opened.read_ahead(plan))
        return (self.rows(rows) for rows in plan)


def load_task(settings: TaskSettings, source: Path | None = None, site: str = "serial") -> Task:
    """The task that [task] names; `source` is the site's [data] task_source, for `name = "module"`.

    Raises PolicyError if the file is not the one whose SHA-256 the federation agreed on, ConfigError if it cannot
    be read, cannot be run, or lacks a function.
    """
    if settings.name != "module":
        return _rebuild(settings.name, None, settings.name, site)
    if source is None:
        raise ConfigError(
            f"site {site}: the federation's task is a file of its own, and site.toml does not say where it lies",
            f"set task_source in [data]; its SHA-256 is {settings.source_sha256}",
        )
    data = read_bytes(source)
    found = hashlib.sha256(data).hexdigest()
    if found != settings.source_sha256:
        raise PolicyError(
            f"site {site}: {source} is not the task the federation agreed on: its SHA-256 is {found}",
            f"the federation's is {settings.source_sha256}; read the right file before you run it",
        )
    return _rebuild("module", data, str(source), site)


def _rebuild(name: str, source: bytes | None, where: str, site: str) -> Task:
    """A built-in task, or the one that the checked bytes `source` define."""
    if source is None:
        return Task(name, importlib.import_module(f"fedhpc.train.tasks.{name}"), None, where, site)
    module = types.ModuleType(f"fedhpc_task_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = where
    # Registered before it runs, as an import would: dataclasses look their module up by name.
    sys.modules[module.__name__] = module
    try:
        # Not an open door: these bytes have the SHA-256 that every site signed. The file's folder is not put on
        # sys.path, because a file imported from there would not have been checked.
        exec(compile(source, where, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except Exception as error:
        del sys.modules[module.__name__]
        raise ConfigError(
            f"site {site}: task {where} cannot be run: {type(error).__name__}: {error}",
            "a task is one file; it can import what is installed, not its neighbours",
        ) from error
    return Task(name, module, source, where, site)
