"""One site's local training: the loop that turns the round's model into the site's.

TorchTrainer implements fedhpc.train.site_trainer.SiteTrainer. Every rank of the site makes every call; results are
equal on all of them. With one rank and `optimizer_state = "keep"` it computes, bit for bit, what a plain PyTorch
loop over the same batches computes.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.data.schema import FeatureSet
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import Forms, Held
from fedhpc.mpi.arrays import each_from_leader
from fedhpc.mpi.collectives import Group
from fedhpc.rounds.interfaces import AtStep, LocalResult, Parts
from fedhpc.train import evaluate
from fedhpc.train.backends.open_backend import open_backend
from fedhpc.train.batches import Batches, Piece, Rows, derive_key, pieces, share
from fedhpc.train.dealt_rows import from_rows, local_part
from fedhpc.train.first_model import FirstModel
from fedhpc.train.held_model import forms_of_model, read_pieces, read_shards, write_pieces, write_shards
from fedhpc.train.learning_rate import learning_rate
from fedhpc.train.loading import Reader, fetch, to_device
from fedhpc.train.measure import measured
from fedhpc.train.model_scaling import ModelScaling
from fedhpc.train.model_units import compute_again, separable
from fedhpc.train.optimise import build_optimizer
from fedhpc.train.optimizer_state import SavedState, divide_state, optimizer_arrays, read_part, write_part
from fedhpc.train.over_ranks import add_over_ranks
from fedhpc.train.personal import mark_personal
from fedhpc.train.randomness import RankRandom, rank_seed
from fedhpc.train.running import RunningStatistics
from fedhpc.train.settings import ComputeSettings, TrainSettings
from fedhpc.train.shards import model_shards
from fedhpc.train.site_trainer import SiteTrainer
from fedhpc.train.state import split_state, to_array, to_tensor, write_shared
from fedhpc.train.tasks.loader import Task
from fedhpc.train.unused import UnusedParameters, trained
from fedhpc.train.within_round import WithinRound, sum_of_finite

CHECK_STEPS = 64  # the loss is looked at this often: each look waits for the device and for all ranks


class TorchTrainer(SiteTrainer):
    """A model, a site's rows, and how to train on them."""

    def __init__(
        self,
        task: Task,
        first: FirstModel,
        dataset: Any,
        train_rows: Rows,
        held_out_rows: Rows,
        settings: TrainSettings,
        compute: ComputeSettings,
        group: Group,
        site: str,
        seed: int,
        proximal: float = 0.0,
        features: FeatureSet | None = None,
        test_rows: Any = None,
    ) -> None:
        """`first`: the model that all sites begin from; made here, on the trainer's device.

        `train_rows` and `held_out_rows` int64: rows of `dataset` (len, and items or `rows`), all readable on every
        rank. `proximal` is FedProx's mu. `features`: what the columns of the site's store mean, where it has such a
        list. `test_rows`: a data set like `dataset`, for the final model alone. Collective over the site: joins its
        ranks' process group.
        """
        self.site, self.group = site, group
        self.dataset, self.train_rows, self.held_out_rows = dataset, train_rows, held_out_rows
        self.features, self._test_rows = features, test_rows
        self._task, self._settings, self._proximal, self._seed = task, settings, proximal, seed
        task.require_layout(group.size, settings.accumulation)
        self._batches = Batches(train_rows, settings.batch_size, seed, site)
        _configure(compute)
        self._backend = open_backend(compute, group)
        self.device = self._backend.device
        try:
            self._begin(first, compute)
        except BaseException:
            self._backend.close()
            raise

    def _begin(self, first: FirstModel, compute: ComputeSettings) -> None:
        """Make the model and what is kept beside it."""
        settings, group, site, seed = self._settings, self.group, self.site, self._seed
        self.model = self._backend.build(first)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ConfigError(f"task {self._task.name}: the model has no parameter to train", "check model()")
        split_state(self.model)
        if compute.activation_checkpointing:
            compute_again(separable(self.model, first.units(self.model)))
        self._wrapped = self._backend.wrap(self.model)
        self._set_personal()
        self._running = RunningStatistics(self.model, group, site)
        self._unused = UnusedParameters(self.model, group, site, allowed=settings.unused_parameters == "allow")
        self._optimizer = build_optimizer(self.model, settings)
        self._random = RankRandom(rank_seed(seed, site, group.rank), self.device)
        worker_seed = derive_key("fedhpc workers of v1", seed, site, group.rank)
        self._reader = Reader(self.dataset, compute.workers, worker_seed, self.device.type == "cuda")
        self._step = 0  # optimiser steps in all rounds
        self._within: WithinRound | None = None
        self._held: Held | None = None

    def _set_personal(self) -> None:
        """What stays at the site; before that all of the model was the leader's. Raises ConfigError."""
        if not self._settings.personal:
            return
        if self._backend.sharded:
            raise ConfigError(
                f"site {self.site}: train.personal, and compute.backend deals the model out over the ranks",
                "use backend = 'ddp' or 'serial' at this site",
            )
        mark_personal(self.model, self._settings.personal)

    @override
    def train(self, round_: int, anchor: Mapping[str, NDArray[Any]], at_step: AtStep = lambda: False) -> LocalResult:
        """One round from the loaded state; `anchor` is the round's global state, used when proximal > 0.

        Raises DataError, on every rank, if the training loss of a step is not finite.
        """
        started = time.perf_counter()
        settings = self._settings
        # Step 1. The round's batches, and this rank's pieces of each; without the steps done in an earlier job.
        steps = settings.local_steps or settings.local_epochs * self._batches.steps_per_epoch
        within = self._within = WithinRound.enter(self._within, round_, steps, self._batches, self.site)
        plan, first_piece = self._plan(steps, within.steps)
        batches = self._reader.read([piece.rows for step in plan for piece in step], first_piece)
        # Step 2. An optimiser, old or new, and the point that FedProx pulls to.
        self.settle()
        if settings.optimizer_state == "reset" and not within.steps:
            self._optimizer = build_optimizer(self.model, settings)
        pulled = self._proximal_terms(anchor)
        losses = within.losses = torch.zeros(steps, dtype=torch.float64, device=self.device)
        self.model.train()
        with self._random.active():
            first_step = within.steps
            for k, step in enumerate(plan, start=first_step):
                # Step 3. The gradient of the mean loss over the site's whole batch.
                self._add_gradients(step, batches, losses[k])
                # Step 4. What no row reaches; FedProx, clipping, learning rate, step.
                self._unused.settle(self._backend.unreached(self._wrapped), self._step)
                self._take_step(pulled)
                # Step 5. Now and then, all ranks look at the loss together.
                within.steps = k + 1
                if k == first_step:
                    self._unused.look(round_)
                if (k + 1) % CHECK_STEPS == 0 or k + 1 == steps:
                    self._look(within)
                # Step 6. Between steps the work may be kept, or stopped.
                if k + 1 < steps and at_step():
                    break
        self._look(within)
        whole = within.steps == steps
        if whole:
            self._within = None
            self._running.settle()
        seconds = time.perf_counter() - started
        return LocalResult(self.train_rows.size, within.steps, within.loss / within.steps, seconds, whole=whole)

    def _plan(self, steps: int, done: int) -> tuple[list[list[Piece]], int]:
        """This rank's pieces of each step that is left of a round's `steps`, of which `done` are done.

        Second the number of the first of them, counted over all rounds: it seeds the data workers.
        """
        settings, group = self._settings, self.group
        twice = settings.batch_size != 1 and self._task.rows == "independent"
        equally = self._backend.sharded  # every pass gathers parameters, so all ranks make equally many
        plan = [
            pieces(self._batches.next(), group.rank, group.size, settings.accumulation, twice, equally)
            for _ in range(steps)
        ]
        return plan[done:], self._step - done + sum(map(len, plan[:done]))

    def _add_gradients(self, step: list[Piece], batches: Iterator[Any], loss_of_step: torch.Tensor) -> None:
        """Set every gradient to that of the mean loss over one batch; add this rank's part to `loss_of_step` []."""
        self._optimizer.zero_grad(set_to_none=True)
        for piece in step:
            batch = to_device(next(batches), self.device)
            with self._backend.averaging(self._wrapped, now=piece.last):
                with self._precision():
                    loss = self._task.loss(self._wrapped, batch)
                if loss.requires_grad:
                    (loss * piece.weight).backward()  # type: ignore[no-untyped-call]
            if piece.part:
                loss_of_step += loss.detach().double() * piece.part

    def _precision(self, applies: bool = True) -> torch.autocast:
        """Forward passes in the precision of [train]. Sharded parameters are gathered in it, also for measuring."""
        enabled = applies and self._settings.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _take_step(self, pulled: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """One step of the local optimiser; `pulled` as `_proximal_terms` gives it."""
        for parameter, target in pulled:
            pull = (local_part(parameter) - target) * self._proximal
            if parameter.grad is None:
                parameter.grad = from_rows(parameter, pull)
            else:
                local_part(parameter.grad).add_(pull)
        if self._settings.clip_norm:
            self._backend.clip(self.model, self._settings.clip_norm)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = learning_rate(self._settings, self._step)
        self._optimizer.step()
        self._step += 1

    def settle(self) -> None:
        """Before the parameters of `model` are read or changed from outside."""
        self._backend.settled(self.model)

    @override
    def forms(self) -> Forms:
        return forms_of_model(split_state(self.model)[0])

    @override
    def hold(self, held: Held) -> None:
        self._held = held

    @override
    def tensors(self) -> Tensors:
        pieces = self._holding().empty()
        self.read(pieces)
        return pieces

    @override
    def read(self, into: Tensors) -> None:
        self.settle()
        held = self._holding()
        if self._backend.sharded:
            read_shards(held, model_shards(self.model), into)
        else:
            read_pieces(split_state(self.model)[0], held, into)
        if self._within is not None and not held.replicated:  # ranks see their own rows; the leader's statistics count
            shared = self._running.names()
            for name, array in self._running.of_leader().items():
                if name in shared:
                    np.copyto(into[name], held.piece(name, array))

    def _holding(self) -> Held:
        return Held(self.group, self.forms()) if self._held is None else self._held

    @override
    def averaged(self) -> frozenset[str]:
        """Returns the floating buffers."""
        return self._running.names()

    @override
    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Raises DataError if names, shapes or dtypes differ."""
        self.settle()
        shared, held = split_state(self.model)[0], self._holding()
        if self._backend.sharded:
            write_shards(held, model_shards(self.model), tensors)
        elif held.replicated:
            write_shared(shared, tensors)
        else:
            write_pieces(held, shared, tensors)

    @override
    def measure(self) -> Tensors:
        """The task's sums over the held-out rows, each rank over its share."""
        return self._measure(self.dataset, self.held_out_rows)

    @override
    def measure_test(self) -> Tensors:
        if self._test_rows is None:
            return {}
        return self._measure(self._test_rows, np.arange(len(self._test_rows), dtype=np.int64))

    def _measure(self, dataset: Any, rows: Rows) -> Tensors:
        mine = share(rows, self.group.rank, self.group.size)
        sharded = self._backend.sharded
        most = -(-rows.size // self.group.size) if sharded else 0
        # Without rows of its own a rank measures training rows, for names and shapes, and counts nothing.
        if not rows.size:
            dataset = self.dataset
        with self._random.active(), self._precision(sharded):
            sums = measured(self._task, self.model, dataset, mine, self.train_rows, self.device, most)
        return add_over_ranks(self.group, sums)

    @override
    def summarise(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
        return evaluate.summarise(sums)

    @override
    def private(self) -> dict[str, NDArray[Any]]:
        """Names: `position`, `random`, `optimizer:…`, `buffer:…`; optimiser state as the leader has it, there alone.

        Within a round also where it stands, and the running statistics of each rank, which differ until its end.
        """
        arrays = self._position()
        if self._keeps_optimizer:
            state = optimizer_arrays(self.model, self._optimizer, self.group)
            arrays |= {f"optimizer:{name}": array for name, array in state.items()}
        return arrays

    @override
    def private_in_parts(self) -> tuple[dict[str, NDArray[Any]], Parts]:
        held = self._holding()
        if held.replicated or not self._keeps_optimizer:
            return self.private(), {}
        arrays = self._position()
        cut, others = divide_state(self.model, self._optimizer)
        arrays |= {f"optimizer:{name}": to_array(tensor) for name, tensor in others.items()}
        return arrays, {kind: partial(read_part, held, tensors) for kind, tensors in cut.items()}

    @property
    def _keeps_optimizer(self) -> bool:
        return self._settings.optimizer_state == "keep" or self._within is not None

    def _position(self) -> dict[str, NDArray[Any]]:
        """The private state without the optimiser's. Collective."""
        self.settle()
        position = [self._batches.epoch, self._batches.offset, self._step]
        states = self.group.gather_bytes(self._random.state().tobytes())
        arrays: dict[str, NDArray[Any]] = {
            "position": np.array(position, dtype=np.int64),
            "random": np.frombuffer(b"".join(states), dtype=np.uint8).reshape(len(states), -1).copy(),
        }
        if self._within is not None:
            self._look(self._within)
            arrays |= self._within.arrays() | {"round:running": self._running.of_ranks()}
        return arrays | {f"buffer:{name}": to_array(value) for name, value in split_state(self.model)[1].items()}

    @override
    def restore(self, private: Mapping[str, NDArray[Any]]) -> None:
        """Only the leader's `private` counts; it is sent to the other ranks.

        On another number of ranks, or another kind of device, the random states start anew from seed, rank and
        step. Raises DataError if it does not fit the model or the data.
        """
        self.settle()
        arrays: dict[str, NDArray[Any]] = {}
        saved_state = SavedState(self.model)
        for name, array in each_from_leader(self.group, private):  # large ones are not there at once
            if name.startswith("optimizer:"):
                saved_state.add(name.removeprefix("optimizer:"), array)
            else:
                arrays[name] = array
        missing = [name for name in ("position", "random") if name not in arrays]
        if missing:
            raise DataError(f"site {self.site}: the checkpoint lacks the trainer's {missing[0]}", "use an older one")
        epoch, offset, step = (int(v) for v in arrays["position"])
        self._batches.seek(epoch, offset)
        self._step = step
        self._within = WithinRound.from_arrays(arrays)
        if self._within is not None:
            self._running.restore(arrays["round:running"])
        states, rank = arrays["random"], self.group.rank
        if len(states) == self.group.size and self._random.fits(states[rank]):
            self._random.set_state(states[rank])
        else:
            self._random = RankRandom(rank_seed(self._seed, self.site, rank, step), self.device)
        self._optimizer = build_optimizer(self.model, self._settings)
        saved_state.load_into(self._optimizer)
        counters, saved = split_state(self.model)[1], _under("buffer:", arrays)
        if {n: tuple(v.shape) for n, v in counters.items()} != {n: v.shape for n, v in saved.items()}:
            raise DataError(
                f"site {self.site}: the checkpoint has other counters than the model", "does it belong to another task?"
            )
        with torch.no_grad():
            for name, value in counters.items():
                value.copy_(to_tensor(saved[name], value.dtype))

    @override
    def restore_parts(self, parts: Parts) -> None:
        """Raises DataError if they are of another model."""
        for kind, read in parts.items():
            write_part(self.model, self._optimizer, self._holding(), kind, read())

    @override
    def scaling(self) -> ModelScaling:
        return ModelScaling(self.model)

    @override
    def inputs(self, rows: Rows) -> NDArray[np.float64]:
        x = fetch(self.dataset, rows)[0]
        if isinstance(x, torch.Tensor):
            return x.to("cpu", torch.float64, copy=True).numpy(force=True)
        return np.array(x, dtype=np.float64)

    @override
    def close(self) -> None:
        """End the data workers and leave the process group."""
        self._reader.close()
        self._wrapped = self.model  # nothing of the process group may outlive it here
        self._backend.close()

    def _proximal_terms(self, anchor: Mapping[str, NDArray[Any]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Parameters and what they are pulled to: the gradient of mu/2 ||w - anchor||^2 is mu (w - anchor)."""
        if not self._proximal:
            return []
        shared = split_state(self.model)[0]
        parameters = {name: parameter for name, parameter in trained(self.model).items() if name in shared}
        held = self._holding()
        if self._backend.sharded:
            shards = [shard for shard in model_shards(self.model) if shard.name in parameters]
            pulled = [dataclasses.replace(shard, local=torch.empty_like(shard.local)) for shard in shards]
            write_shards(held, pulled, anchor)
            return [(parameters[shard.name], shard.local) for shard in pulled]
        targets = {name: torch.empty_like(parameter, requires_grad=False) for name, parameter in parameters.items()}
        write_pieces(held, targets, anchor)
        return [(parameters[name], target) for name, target in targets.items()]

    def _look(self, within: WithinRound) -> None:
        """Add up the losses of the steps since the last look. Collective."""
        if within.losses is not None and within.steps > within.looked:
            self._unused.look(within.round_)
            mine = within.losses[within.looked : within.steps].cpu().numpy()
            whole = add_over_ranks(self.group, {"loss": mine})["loss"]
            within.loss += sum_of_finite(whole, self.site, self._step - whole.size + 1, within.round_)
            within.looked = within.steps


def _configure(compute: ComputeSettings) -> None:
    """Process-wide settings of torch that decide the bits of a result."""
    torch.set_num_threads(compute.threads)
    if compute.deterministic:
        # cuBLAS reads this once, when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(compute.deterministic)
    torch.backends.cudnn.benchmark = False


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
