"""Checks at the start that a task's loss is the mean over rows, and its sums are sums over rows.

Ranks, accumulation and passes over held-out rows take a batch apart. Where a row's loss depends on other rows (Cox,
contrastive, ranking; a mean weighted by the batch's own weights) that would silently be another loss. So some rows
go through loss() and sums() whole and in parts, with the first model and with one beside it: many losses are alike
where all weights are zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.errors import ConfigError, FedhpcError
from fedhpc.mpi.together import together
from fedhpc.train.batches import Rows, permutation
from fedhpc.train.loading import fetch, to_device
from fedhpc.train.row_sample import Sample, take_apart
from fedhpc.train.settings import TrainSettings
from fedhpc.train.tasks.loader import ONE_ROW, Task
from fedhpc.train.trainer import TorchTrainer
from fedhpc.train.untouched import draw_from, move_beside, standardise_by, untouched

ROWS, FEW = 64, 8  # that go through loss() and sums() at most; where so many do not fit
DRAWS = 24  # of a loss that draws at random: compared on average
_DEVIATIONS = 8.0  # standard errors of that average; a larger difference is not chance
# Relative differences that rounding may make: on a CPU; with the short floats that GPUs convolve in; in 16 bits.
_ALIKE, _ALIKE_GPU, _ALIKE_16_BITS = 1e-4, 2e-3, 3e-2
_MOVED = 4  # counts that rounding may move, of a row from one bin to the next two
_MOVED_GPU = 0.5  # the share of a histogram; its bins are finer than short floats
_TINY = 1e-10

_RESTING = (  # attention and recurrent layers have a dropout of their own
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.MultiheadAttention,
    torch.nn.RNNBase,
)


def check_rows(
    task: Task,
    trainer: TorchTrainer,
    settings: TrainSettings,
    *,
    seed: int,
    labels: NDArray[Any] | None = None,
    standardise: bool = False,
) -> None:
    """Refuse a task whose rows are coupled and which does not say so. Collective over the site.

    `labels` [rows of the dataset], where it has them, bring rows of all classes into the check. Raises ConfigError, on
    every rank. A site with fewer than four training rows, and a loss that has no finite value yet, cannot be looked at.
    """
    if task.built_in or task.rows == "coupled":
        return
    trainer.settle()

    def look() -> None:
        with untouched(trainer.model, trainer.device):
            _refuse_one_row(task, trainer, settings)
            rows = trainer.train_rows[permutation(trainer.train_rows.size, seed, trainer.site, 0)]
            _look(task, trainer, settings, rows, labels, standardise)

    together(trainer.group, look)


def _look(
    task: Task,
    trainer: TorchTrainer,
    settings: TrainSettings,
    rows: Rows,
    labels: NDArray[Any] | None,
    standardise: bool,
) -> None:
    sample = take_apart(trainer.dataset, rows, labels, ROWS, trainer.device)
    if sample is None:
        return
    if standardise:
        standardise_by(trainer.model, sample.whole)
    losses = _working_losses(task, trainer, settings, sample.whole)
    if not losses:  # fewer rows may fit into memory
        sample = take_apart(trainer.dataset, rows, labels, FEW, trainer.device) or sample
        losses = _working_losses(task, trainer, settings, sample.whole)
    for _ in range(2):
        for loss in losses:
            _compare_loss(task, loss, sample)
        _compare_sums(task, trainer.model, trainer.device, sample)
        trainer.settle()
        move_beside(trainer.model)


@dataclass(frozen=True)
class _Loss:
    """A task's loss without a step: batch norm keeps its statistics, dropout drops nothing."""

    task: Task
    model: torch.nn.Module
    device: torch.device
    training: bool  # else in evaluation; some terms, and some models' losses, are there only in training
    gradients: bool  # some losses take gradients themselves
    bf16: bool  # some models need it

    def __call__(self, batch: Any, draw: int = 1) -> float:
        """Raises what Task.loss raises."""
        self.model.train(self.training)
        for module in self.model.modules():
            if isinstance(module, _RESTING):
                module.eval()
        draw_from(draw)
        with (
            torch.set_grad_enabled(self.gradients),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            return float(self.task.loss(self.model, batch).detach())

    @property
    def alike(self) -> float:
        """The relative difference that rounding may make."""
        narrow = self.bf16 or any(p.element_size() <= 2 for p in self.model.parameters())
        return _ALIKE_16_BITS if narrow else _alike(self.device)


def _working_losses(task: Task, trainer: TorchTrainer, settings: TrainSettings, whole: Any) -> list[_Loss]:
    """The loss in evaluation and in training, where it has a value; if in neither, training says what is wrong."""
    found = {}
    for training, gradients in itertools.product((False, True), (False, True)):
        for bf16 in (False, True) if settings.precision == "bf16" else (False,):
            loss = _Loss(task, trainer.model, trainer.device, training, gradients, bf16)
            if training not in found and _works(loss, whole):
                found[training] = loss
    return list(found.values())


def _works(loss: _Loss, whole: Any) -> bool:
    try:
        loss(whole)
    except FedhpcError:
        return False
    return True


def _compare_loss(task: Task, loss: _Loss, sample: Sample) -> None:
    whole, parts = sample.whole, sample.parts
    try:
        first, second = loss(whole), loss(whole, 2)
    except FedhpcError:
        return  # of a model that is not trained
    if not math.isfinite(first) or not math.isfinite(second):
        return
    n = sum(rows for rows, _ in parts)

    def of_parts(draw: int) -> float:
        try:
            return sum(loss(part, draw) * rows / n for rows, part in parts)
        except FedhpcError as error:
            raise _coupled_loss(task, "has no value for a part of the rows") from error

    together = of_parts(1)
    if not math.isfinite(together):
        raise _coupled_loss(task, "has no finite value for a part of the rows")
    within = loss.alike * max(abs(first), abs(together)) + _TINY
    difference = abs(first - together)
    if abs(first - second) > 0.01 * within:  # it draws at random
        draws = np.array([loss(whole, 2 * k) - of_parts(2 * k + 1) for k in range(DRAWS)])
        if not np.isfinite(draws).all():
            return
        difference = abs(float(draws.mean()))
        within += _DEVIATIONS * float(draws.std(ddof=1)) / math.sqrt(DRAWS)
    if difference > within:
        raise _coupled_loss(task, "is not the mean over rows: a batch gives another value than its parts on average")


def _compare_sums(task: Task, model: torch.nn.Module, device: torch.device, sample: Sample) -> None:
    model.eval()
    narrow = any(p.element_size() <= 2 for p in model.parameters())
    alike = _ALIKE_16_BITS if narrow else _alike(device)

    def sums(batch: Any, draw: int = 1) -> dict[str, torch.Tensor]:
        draw_from(draw)
        with torch.no_grad():
            found = task.sums(model, batch)
        return {name: value.detach().cpu().reshape(() if name == "n" else value.shape) for name, value in found.items()}

    try:
        first, second = sums(sample.whole), sums(sample.whole, 2)
    except FedhpcError:
        return  # measuring says what is wrong
    try:
        of_parts = [sums(part) for _, part in sample.parts]
    except FedhpcError as error:
        raise _coupled_sums(task, "has no value for a part of the rows") from error
    if any(_shapes(part) != _shapes(first) for part in of_parts):
        raise ConfigError(
            f"sums() of task {task.where} gives other names or shapes for another batch",
            "names, shapes and dtypes must be the same for every batch; see docs/tasks.md",
        )
    for name, value in first.items():
        here, again = value.double(), second[name].double()
        together = torch.stack([part[name].double() for part in of_parts]).sum(dim=0)
        drawn = not torch.allclose(here, again, rtol=0.01 * alike, atol=_TINY)
        if drawn or not bool(torch.isfinite(here).all()):
            continue
        within = alike * max(float(here.abs().sum()), float(together.abs().sum())) + _TINY
        if not value.is_floating_point():
            within += _MOVED
            if value.numel() > 1 and device.type != "cpu":
                within += _MOVED_GPU * float(here.abs().sum())
        if name == "n":
            within = 0.0
        if not float((here - together).abs().sum()) <= within:
            raise _coupled_sums(task, f"gives {name!r} of a batch that is not the sum over its parts")


def _alike(device: torch.device) -> float:
    return _ALIKE if device.type == "cpu" else _ALIKE_GPU


def _shapes(sums: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in sums.items()}


def _refuse_one_row(task: Task, trainer: TorchTrainer, settings: TrainSettings) -> None:
    """Refuse a model that cannot learn from one row, if the settings (not the number of rows) leave one to a pass."""
    passes = trainer.group.size * settings.accumulation
    if not 0 < settings.batch_size < min(2 * passes, trainer.train_rows.size + 1):
        return
    trainer.model.train()
    try:
        with torch.no_grad():
            task.loss(trainer.model, to_device(fetch(trainer.dataset, trainer.train_rows[:1]), trainer.device))
    except FedhpcError as error:
        if ONE_ROW not in error.what:
            return
        raise ConfigError(
            f"site {trainer.site}: batch norm cannot learn from one row, and batch_size = {settings.batch_size} over "
            f"{trainer.group.size} ranks with accumulation = {settings.accumulation} leaves one to a pass",
            "two or more rows for each: a larger train.batch_size, fewer ranks, or a smaller train.accumulation",
        ) from error


def _coupled_loss(task: Task, what: str) -> ConfigError:
    return ConfigError(
        f"site {task.site}: loss() of task {task.where} {what}; with more ranks or accumulation it is another loss",
        "return the mean over rows, divided by their number (not by weights or counts of the batch); a loss over rows "
        'together (Cox, contrastive, ranking) says rows = "coupled" in the task\'s file and trains on one rank without '
        "accumulation: docs/tasks.md",
    )


def _coupled_sums(task: Task, what: str) -> ConfigError:
    return ConfigError(
        f"site {task.site}: sums() of task {task.where} {what}; held-out rows are measured in parts",
        'return sums over rows; a measure of all rows together (a concordance index) needs rows = "coupled" in the '
        "task's file, which gives sums() all held-out rows of the site at once: docs/tasks.md",
    )
