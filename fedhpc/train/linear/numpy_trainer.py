"""One site's local training of the task `logistic` without torch.

NumpyTrainer takes the steps that TorchTrainer takes (trainer.py), with the same batches, and keeps the same private
state, so a run goes on under either. Arithmetic is float64; tensors are float32, as they travel.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import Forms, Held, forms_of
from fedhpc.mpi.arrays import from_leader
from fedhpc.mpi.collectives import Group
from fedhpc.rounds.interfaces import AtStep, LocalResult, Parts
from fedhpc.train import evaluate
from fedhpc.train.batches import Batches, Rows, share
from fedhpc.train.class_rows import ClassRows
from fedhpc.train.held_arrays import read_arrays, write_arrays
from fedhpc.train.learning_rate import learning_rate
from fedhpc.train.linear.logistic_model import (
    BIAS,
    BUFFERS,
    MEAN,
    PARAMETERS,
    SCALE,
    WEIGHT,
    first_tensors,
    held_out_sums,
    loss_and_gradient,
)
from fedhpc.train.linear.numpy_optimizer import CUT_AS_THE_PARAMETER, NumpyOptimizer, clip
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.over_ranks import add_over_ranks
from fedhpc.train.settings import TrainSettings
from fedhpc.train.site_trainer import Floats, SiteTrainer
from fedhpc.train.within_round import WithinRound, sum_of_finite

MEASURE_ROWS = 1024  # read at once


class NumpyTrainer(SiteTrainer):
    """Logistic regression on a site's rows, each rank on its share of every batch."""

    def __init__(
        self,
        options: LogisticOptions,
        dataset: ClassRows,
        train_rows: Rows,
        held_out_rows: Rows,
        settings: TrainSettings,
        group: Group,
        site: str,
        seed: int,
        proximal: float = 0.0,
        kind: type[np.floating[Any]] = np.float32,
        test_rows: ClassRows | None = None,
    ) -> None:
        """As TorchTrainer; `kind`: the dtype of the model's tensors. No call into MPI is made."""
        self.site, self.group = site, group
        self.train_rows, self.held_out_rows = train_rows, held_out_rows
        self.features = dataset.store.feature_set
        self._options, self._dataset, self._settings, self._proximal = options, dataset, settings, proximal
        self._test_rows = test_rows
        self._batches = Batches(train_rows, settings.batch_size, seed, site)
        self.model = first_tensors(options.features, kind)
        self._optimizer = self._new_optimizer()
        self._step = 0  # optimiser steps in all rounds
        self._within: WithinRound | None = None
        self._held: Held | None = None

    def _new_optimizer(self) -> NumpyOptimizer:
        return NumpyOptimizer({name: self.model[name] for name in PARAMETERS}, self._settings)

    @override
    def train(self, round_: int, anchor: Mapping[str, NDArray[Any]], at_step: AtStep = lambda: False) -> LocalResult:
        """One round from the loaded state; `anchor` is the round's global state, used when proximal > 0.

        Raises DataError, on every rank, if the training loss of a step is not finite.
        """
        started = time.perf_counter()
        settings = self._settings
        steps = settings.local_steps or settings.local_epochs * self._batches.steps_per_epoch
        within = self._within = WithinRound.enter(self._within, round_, steps, self._batches, self.site)
        batches = [self._batches.next() for _ in range(steps)][within.steps :]
        plan = [self._pieces(batch) for batch in batches]
        read = iter(self._dataset.read_ahead([rows for pieces in plan for rows in pieces]))
        if settings.optimizer_state == "reset" and not within.steps:
            self._optimizer = self._new_optimizer()
        pulled = self._targets(anchor)
        for batch, pieces in zip(batches, plan, strict=True):
            # The sums of all ranks, the loss among them: what is not finite is seen at once, by all.
            total = np.zeros(self._options.features + 2)
            for _ in pieces:
                total += loss_and_gradient(self.model, *next(read))
            self._add_over_site(total)
            total /= batch.size
            within.loss += sum_of_finite(total[-1:], self.site, self._step + 1, round_)
            self._take_step(total, pulled)
            within.steps = within.looked = within.steps + 1
            if within.steps < steps and at_step():
                break
        whole = within.steps == steps
        if whole:
            self._within = None
        seconds = time.perf_counter() - started
        return LocalResult(self.train_rows.size, within.steps, within.loss / within.steps, seconds, whole=whole)

    def _pieces(self, batch: Rows) -> list[Rows]:
        """This rank's share of `batch` [m], in as many pieces as [train] accumulation says, or fewer."""
        mine = share(batch, self.group.rank, self.group.size)
        many = self._settings.accumulation
        return [rows for rows in (share(mine, i, many) for i in range(many)) if rows.size]

    def _add_over_site(self, total: Floats) -> None:
        """Sum over the site's ranks, in place; every rank gets the leader's bits, which MPI only advises."""
        if self.group.size > 1:
            self.group.sum(total)
            self.group.broadcast(total)

    def _take_step(self, total: Floats, pulled: Mapping[str, NDArray[Any]]) -> None:
        """One step of the local optimiser; `total` as `loss_and_gradient` gives it, of the mean loss."""
        gradients = {WEIGHT: total[:-2].reshape(1, -1).copy(), BIAS: total[-2:-1].copy()}
        for name, target in pulled.items():  # of mu/2 ||w - anchor||^2 the gradient is mu (w - anchor)
            gradients[name] += self._proximal * (self.model[name].astype(np.float64) - target)
        if self._settings.clip_norm:
            clip(gradients, self._settings.clip_norm)
        self._optimizer.step(gradients, learning_rate(self._settings, self._step))
        self._step += 1

    def _targets(self, anchor: Mapping[str, NDArray[Any]]) -> Tensors:
        """What the parameters are pulled to, whole; nothing without FedProx. Collective over the site."""
        if not self._proximal:
            return {}
        targets = {name: np.empty_like(array) for name, array in self.model.items()}
        write_arrays(self._holding(), targets, anchor)
        return {name: targets[name] for name in PARAMETERS}

    @override
    def forms(self) -> Forms:
        return forms_of(self.model)

    @override
    def hold(self, held: Held) -> None:
        self._held = held

    def _holding(self) -> Held:
        return Held(self.group, self.forms()) if self._held is None else self._held

    @override
    def tensors(self) -> Tensors:
        return self._holding().pieces(self.model)

    @override
    def read(self, into: Tensors) -> None:
        read_arrays(self.model, self._holding(), into)

    @override
    def averaged(self) -> frozenset[str]:
        """Returns the mean and scale of the features."""
        return frozenset(BUFFERS)

    @override
    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Raises DataError if names, shapes or dtypes differ."""
        for name, tensor in tensors.items():
            if name in self.model and tensor.dtype != self.model[name].dtype:
                raise DataError(
                    f"the model's {name} is {self.model[name].dtype}, and the given state holds {tensor.dtype}",
                    "the checkpoint or the other sites have another task or other options",
                )
        write_arrays(self._holding(), self.model, tensors)

    @override
    def measure(self) -> Tensors:
        """The sums over the held-out rows, each rank over its share."""
        return self._measure(self._dataset, self.held_out_rows)

    @override
    def measure_test(self) -> Tensors:
        if self._test_rows is None:
            return {}
        return self._measure(self._test_rows, np.arange(len(self._test_rows), dtype=np.int64))

    def _measure(self, dataset: ClassRows, rows: Rows) -> Tensors:
        mine = share(rows, self.group.rank, self.group.size)
        plan = [mine[start : start + MEASURE_ROWS] for start in range(0, max(mine.size, 1), MEASURE_ROWS)]
        sums: Tensors = {}
        for x, y in dataset.read_ahead(plan):
            for name, value in held_out_sums(self.model, x, y, self._options.bins).items():
                sums[name] = sums[name] + value if name in sums else value
        return add_over_ranks(self.group, sums)

    @override
    def summarise(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
        return evaluate.summarise(sums)

    @override
    def private(self) -> dict[str, NDArray[Any]]:
        """Names: `position`, `random` (without bytes: nothing is drawn), `optimizer:…`; `round…` within a round."""
        arrays = self._position()
        if self._keeps_optimizer and self.group.rank == 0:
            arrays |= {f"optimizer:{name}": array for name, array in self._optimizer.arrays().items()}
        return arrays

    @override
    def private_in_parts(self) -> tuple[dict[str, NDArray[Any]], Parts]:
        held = self._holding()
        if held.replicated or not self._keeps_optimizer:
            return self.private(), {}
        state = self._optimizer.state
        arrays = self._position() | {
            f"optimizer:{name}:{key}": array.copy()
            for name, values in state.items()
            for key, array in values.items()
            if key not in CUT_AS_THE_PARAMETER
        }
        kinds = {key for values in state.values() for key in values if key in CUT_AS_THE_PARAMETER}
        whole = {kind: {name: values[kind] for name, values in state.items()} for kind in sorted(kinds)}
        return arrays, {kind: partial(_pieces_of, held, tensors) for kind, tensors in whole.items()}

    @property
    def _keeps_optimizer(self) -> bool:
        return self._settings.optimizer_state == "keep" or self._within is not None

    def _position(self) -> dict[str, NDArray[Any]]:
        """The private state without the optimiser's."""
        position = [self._batches.epoch, self._batches.offset, self._step]
        arrays: dict[str, NDArray[Any]] = {
            "position": np.array(position, dtype=np.int64),
            "random": np.zeros((self.group.size, 0), dtype=np.uint8),
        }
        if self._within is not None:  # as a torch model's buffers, here the same on all ranks
            running = np.concatenate([self.model[name].view(np.uint8) for name in sorted(BUFFERS)])
            arrays |= self._within.arrays() | {"round:running": np.tile(running, (self.group.size, 1))}
        return arrays

    @override
    def restore(self, private: Mapping[str, NDArray[Any]]) -> None:
        """Only the leader's `private` counts; it is sent to the other ranks.

        Random states that a torch trainer kept are left out. Raises DataError if it does not fit the model or the data.
        """
        arrays = from_leader(self.group, private)
        if "position" not in arrays:
            raise DataError(f"site {self.site}: the checkpoint lacks the trainer's position", "use an older one")
        counters = [name for name in arrays if name.startswith("buffer:")]
        if counters:
            raise DataError(
                f"site {self.site}: the checkpoint has other counters than the model", "does it belong to another task?"
            )
        epoch, offset, step = (int(v) for v in arrays["position"])
        self._batches.seek(epoch, offset)
        self._step = step
        self._within = WithinRound.from_arrays(arrays)
        self._optimizer = self._new_optimizer()
        prefix = "optimizer:"
        self._optimizer.load({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})

    @override
    def restore_parts(self, parts: Parts) -> None:
        """Raises DataError if they are of another model."""
        for kind, read in parts.items():
            pieces = read()
            if other := sorted(pieces.keys() - set(PARAMETERS)):
                raise DataError(
                    f"the checkpoint has optimiser state for {other[0]}, which this model does not train",
                    "the checkpoint belongs to another task",
                )
            held = self._holding().of(pieces)
            whole = {name: np.zeros_like(self.model[name]) for name in held.forms}
            write_arrays(held, whole, pieces)
            for name, array in whole.items():
                self._optimizer.state.setdefault(name, {})[kind] = array

    @override
    def scaling(self) -> ArrayScaling:
        return ArrayScaling(self.model)

    @override
    def inputs(self, rows: Rows) -> Floats:
        return np.asarray(self._dataset.rows(rows)[0], dtype=np.float64)

    @override
    def close(self) -> None:
        self._dataset.store.close()


class ArrayScaling:
    """feature_mean and feature_scale of the model `tensors`, which are changed in place."""

    def __init__(self, tensors: Tensors) -> None:
        self._mean, self._scale = tensors[MEAN], tensors[SCALE]
        self.shape: tuple[int, ...] = self._mean.shape
        self.kind = str(self._mean.dtype)
        self.largest = float(np.finfo(self._mean.dtype).max)

    def as_held(self, values: Floats) -> Floats:
        """`values` as the tensors hold them, in their dtype."""
        with np.errstate(over="ignore"):  # a mean beyond it is told by name
            return values.astype(self._mean.dtype).astype(np.float64)

    def set(self, mean: Floats, scale: Floats) -> None:
        """Replace both."""
        self._mean[...], self._scale[...] = mean, scale


def _pieces_of(held: Held, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
    """Of optimiser state by parameter, what `held` gives this rank."""
    some = held.of(tensors)
    return some.pieces({name: tensors[name] for name in some.forms})
