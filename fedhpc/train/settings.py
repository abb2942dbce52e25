"""The sections [task] and [train] of federation.toml and [compute] of site.toml. Each checks itself.

[task] and [train] are hashed and signed by every site; nothing in them depends on one machine. [compute] is
private to a site, and only its thread count and device change (in the last bits) what a site computes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from fedhpc.errors import ConfigError
from fedhpc.rounds.best_round import Choice

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEFAULT_BETAS = (0.9, 0.999)
_DEFAULT_GAMMA = 0.1


@dataclass(frozen=True)
class TaskSettings:
    """[task]: the model, its loss and its metrics, and how a site's rows are split."""

    # A built-in task, or `module`: a Python file that each site reads from [data] task_source of its site.toml.
    name: Literal["logistic", "mlp", "cnn", "transformer", "module"]
    # SHA-256 (hex) of that file. Only for `module`, and required there.
    source_sha256: str = ""
    # SHA-256 (hex) over the safetensors that the first model is read from, each site's in [data] weights; empty: the
    # task draws it.
    weights_sha256: str = ""
    # What the task's functions are given: sizes, classes, number of histogram bins.
    options: dict[str, Any] = field(default_factory=dict)
    # SHA-256 (hex) of the feature names; when given, a site whose store has other features is refused.
    features_sha256: str = ""
    # Share of each site's rows that is kept from training, for measuring; 0 keeps none.
    held_out: float = 0.2
    # Every site has rows apart from these, in [data] test of its site file; the final model is measured on them.
    test: bool = False
    # Seeds the split, so that every start of the federation holds out the same rows.
    split_seed: int = 0
    # Scale every feature by the federation's mean and deviation before training (two masked sums).
    standardise: bool = False

    def __post_init__(self) -> None:
        for key in ("source_sha256", "features_sha256", "weights_sha256"):
            value = getattr(self, key)
            if value and not _SHA256.fullmatch(value):
                raise ConfigError(
                    f"task.{key} is not a SHA-256", "write 64 lower-case hexadecimal digits, as sha256sum does"
                )
        if self.name == "module" and not self.source_sha256:
            raise ConfigError(
                "task.source_sha256 is missing, and task.name is 'module'", "`sha256sum TASK.py` prints it"
            )
        if self.name != "module" and self.source_sha256:
            raise ConfigError(
                f"task.source_sha256 is given, and task.name is '{self.name}'",
                "only a task of your own has a source: set name = 'module' or remove the key",
            )
        _require(0.0 <= self.held_out < 1.0, "task.held_out", self.held_out, "at least 0 and less than 1")
        _require(self.split_seed >= 0, "task.split_seed", self.split_seed, "0 or more")


@dataclass(frozen=True)
class TrainSettings:
    """[train]: what every site does with its own rows in one round."""

    lr: float
    optimizer: Literal["adam", "adamw", "sgd"] = "sgd"
    momentum: float = 0.0  # sgd only
    weight_decay: float = 0.0
    betas: tuple[float, ...] = _DEFAULT_BETAS  # adam and adamw only
    # Rows of the whole site in one optimiser step, over all its ranks; 0 takes all rows.
    batch_size: int = 32
    # Exactly one of these two: optimiser steps, or passes over the site's training rows, in one round.
    local_steps: int = 0
    local_epochs: int = 0
    # Work through a batch in this many pieces, to save memory. The step stays the same.
    accumulation: int = 1
    # Largest norm of the gradient of one step; 0 switches clipping off.
    clip_norm: float = 0.0
    # The learning rate over the steps a site takes in all rounds: a linear rise over warmup_steps, then
    # constant, or falling to 0 at total_steps along a cosine or a line, or multiplied by gamma every so many steps.
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    warmup_steps: int = 0
    total_steps: int = 0
    step_every: int = 0
    gamma: float = _DEFAULT_GAMMA
    # bf16: forward passes under autocast; weights, gradients and sums stay float32.
    precision: Literal["float32", "bf16"] = "float32"
    # Whether momenta are kept for the next round (they belong to the site and never leave it).
    optimizer_state: Literal["keep", "reset"] = "keep"
    # A parameter that no row of a step reaches: an error, or left as it is in that step.
    unused_parameters: Literal["refuse", "allow"] = "refuse"
    # Tensors that each site trains for itself and never sends, by name or pattern; "batchnorm": all of batch norms.
    personal: tuple[str, ...] = ()
    # "best:METRIC": the model that was best by this federated metric is kept beside the newest.
    keep: str = ""
    # The sites stop after so many measured rounds without a better one; 0: they never do.
    patience: int = 0
    # By how much the metric must be better to count as such.
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _require(math.isfinite(self.lr) and self.lr > 0, "train.lr", self.lr, "positive")
        _require(0.0 <= self.momentum < 1.0, "train.momentum", self.momentum, "at least 0 and less than 1")
        for key in ("weight_decay", "clip_norm"):
            value = getattr(self, key)
            _require(math.isfinite(value) and value >= 0, f"train.{key}", value, "0 or more")
        _require(
            len(self.betas) == 2 and all(0.0 <= b < 1.0 for b in self.betas),
            "train.betas", list(self.betas), "two numbers, each at least 0 and less than 1",
        )  # fmt: skip
        for key in ("batch_size", "local_steps", "local_epochs", "warmup_steps", "total_steps", "step_every"):
            _require(getattr(self, key) >= 0, f"train.{key}", getattr(self, key), "0 or more")
        _require(self.accumulation >= 1, "train.accumulation", self.accumulation, "1 or more")
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ConfigError(
                "train needs exactly one of local_steps and local_epochs",
                "local_epochs = 1 passes over the site's rows once in each round",
            )
        self._refuse_idle_keys()
        self.choice()

    def choice(self) -> Choice | None:
        """By what the best round is chosen; None where only the newest model is kept."""
        return Choice.of(self.keep, self.patience, self.min_delta)

    def _refuse_idle_keys(self) -> None:
        """A key that changes nothing is a misunderstanding in a file that every site signs."""
        if self.optimizer != "sgd" and self.momentum:
            raise ConfigError(f"train.momentum has no effect on {self.optimizer}", "use betas, or optimizer = 'sgd'")
        if self.optimizer == "sgd" and tuple(self.betas) != _DEFAULT_BETAS:
            raise ConfigError("train.betas has no effect on sgd", "use momentum, or optimizer = 'adamw'")
        if self.schedule == "step":
            _require(self.step_every >= 1, "train.step_every", self.step_every, "1 or more for schedule = 'step'")
            _require(0.0 < self.gamma <= 1.0, "train.gamma", self.gamma, "more than 0 and at most 1")
        elif self.step_every or self.gamma != _DEFAULT_GAMMA:
            raise ConfigError(
                f"train.step_every and train.gamma have no effect on schedule = '{self.schedule}'",
                "remove them, or use 'step'",
            )
        if self.schedule in ("constant", "step"):
            if self.total_steps:
                raise ConfigError(
                    f"train.total_steps has no effect on schedule = '{self.schedule}'", "remove it, or use 'cosine'"
                )
        elif self.total_steps <= self.warmup_steps:
            raise ConfigError(
                f"train.total_steps = {self.total_steps} must be larger than "
                f"warmup_steps = {self.warmup_steps} for schedule = '{self.schedule}'",
                "it counts a site's steps over all rounds: rounds x local_steps",
            )


@dataclass(frozen=True)
class ComputeSettings:
    """[compute] of site.toml: how this site's ranks compute."""

    # auto: numpy where it does (the task logistic on CPUs), else torch: serial for one rank, ddp for more.
    backend: Literal["auto", "numpy", "serial", "ddp", "fsdp", "mpi", "horovod"] = "auto"
    # auto: a GPU if every rank of the site has one, else the CPU.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Threads of one rank. Another number changes the last bits of what a site computes.
    threads: int = 1
    # Processes that read data beside each rank (a DataLoader's workers); 0 reads in the rank itself.
    workers: int = 0
    # Of the site's rows, labels included, at each rank and its workers together, so times the ranks of a node: a store
    # that is larger is read many batches at a time.
    data_memory_mib: int = 256
    # Only algorithms that give the same bits again. Some models need false; they then run a little faster.
    deterministic: bool = True
    # Keep no activations inside the model's blocks: the backward pass computes them again. The bits stay the same.
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        _require(self.threads >= 1, "compute.threads", self.threads, "1 or more")
        _require(self.workers >= 0, "compute.workers", self.workers, "0 or more")
        _require(self.data_memory_mib >= 0, "compute.data_memory_mib", self.data_memory_mib, "0 or more")


def depends_on_seed(task: TaskSettings, train: TrainSettings, rows: int = 0) -> bool:
    """Whether a site's first update from scratch differs with the seed; `rows`: of the smallest site, 0 if not known.

    Either the first model is drawn from it, or the first batch is. Of the user's own task nothing is known about the
    model, so only batches count; a batch of all rows is the same in whatever order.
    """
    drawn = task.name in ("mlp", "cnn", "transformer")  # logistic begins with zeros
    whole = train.batch_size + (train.batch_size > 1)  # a last row alone joins the batch before it
    return drawn or (train.batch_size > 0 and not 0 < rows <= whole)


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{key} = {value} is out of range", f"it must be {rule}")
