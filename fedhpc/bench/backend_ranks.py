"""Every rank of `fedhpc bench backends` runs this; rank 0 prints what one backend takes.

The first site has the ranks and the backend that are measured; a second one of a single rank takes part in its sums.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from fedhpc.bench.memory import clear_peak, peak_bytes, resident_bytes
from fedhpc.bench.rehearsal import Stage, set_stage
from fedhpc.mpi.collectives import Group
from fedhpc.rounds.loop import Run
from fedhpc.rounds.null_objects import Silence
from fedhpc.train.backends.open_backend import open_backend
from fedhpc.train.batches import Batches, share
from fedhpc.train.checkpoint_files import Hdf5Checkpoints
from fedhpc.train.first_model import Drawn, FirstModel
from fedhpc.train.optimise import build_optimizer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.tasks.loader import TaskDataset, load_task
from fedhpc.train.trainer import TorchTrainer

ROUNDS = 2
SEED = 1
_FEDERATION = f'rounds = {ROUNDS}\nseed = {SEED}\n[strategy]\nname = "diloco"\n'
_MOVES = 3  # times that a model is moved out of the backend and back


@dataclass(frozen=True)
class Case:
    """What is measured."""

    backend: str
    ranks: int  # of the first site
    store: str  # a token store
    options: dict[str, Any]  # of the task `transformer`
    windows: int  # that a rank takes in an optimiser step
    steps: int  # optimiser steps in a round, and between two looks at the clock
    alternations: int  # of fedhpc's loop and the plain one; 0: measure memory and moves instead


class Site:
    """What a trainer of this rank's site is made of."""

    def __init__(self, case: Case, group: Group, backend: str) -> None:
        """`backend`: one of ComputeSettings."""
        settings = TaskSettings("transformer", options=case.options)
        self.group = group
        self.task = load_task(settings, None, group.label)
        self.dataset = TaskDataset(self.task, Path(case.store), case.options)
        batch = group.size * case.windows
        self.train = TrainSettings(lr=1e-3, optimizer="adamw", batch_size=batch, local_steps=case.steps)
        self.compute = ComputeSettings(backend=backend)  # type: ignore[arg-type]
        self.rows = np.arange(len(self.dataset), dtype=np.int64)
        task = self.task
        self.first = FirstModel(lambda: task.model(case.options, SEED), Drawn(task.fill, SEED, task.where), task.units)

    def trainer(self) -> TorchTrainer:
        """A trainer, as `open_trainer` makes it."""
        held_out = self.rows[:0]
        return TorchTrainer(
            self.task, self.first, self.dataset, self.rows, held_out, self.train, self.compute, self.group, "site", SEED
        )

    def plain(self) -> Plain:
        """The same model, data and optimiser in a loop of a user's own."""
        return Plain(self)


class Plain:
    """What a user would write around a backend."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._backend = open_backend(site.compute, site.group)
        self._model = self._backend.build(site.first)
        self._wrapped = self._backend.wrap(self._model)
        self._optimizer = build_optimizer(self._model, site.train)
        self._batches = Batches(site.rows, site.train.batch_size, SEED, "site")

    def train(self, times: int = 1) -> None:
        """As many optimiser steps as a round has, with each row `times` in its batch."""
        site = self._site
        self._model.train()
        for _ in range(site.train.local_steps):
            rows = np.repeat(share(self._batches.next(), site.group.rank, site.group.size), times)
            self._optimizer.zero_grad(set_to_none=True)
            with self._backend.averaging(self._wrapped, now=True):
                site.task.loss(self._wrapped, site.dataset.rows(rows)).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def close(self) -> None:
        """Leave the process group."""
        self._backend.close()


class Losses(Silence):
    """Keeps this site's training loss of the last round."""

    loss = 0.0

    @override
    def round_done(self, record: Mapping[str, Any]) -> None:
        self.loss = record.get("train_loss", self.loss)  # the final model's record has none


def measure(case: Case) -> None:
    """Run the case; rank 0 prints one JSON object."""
    if case.alternations:
        found = _speed(case, set_stage([case.ranks]).place.site)
    else:
        found = _memory(case, set_stage([case.ranks, 1]))
    if found:
        print(json.dumps(found))


def _memory(case: Case, stage: Stage) -> dict[str, Any]:
    """Peaks of a first model, of training, and of rounds that sum over both sites; times of moves and steps."""
    measured, group = stage.place.number == 1, stage.place.site
    backend = case.backend if measured else "serial"
    _import_all(case, group, backend)
    site = Site(case, group, backend)
    baseline = resident_bytes()
    clear_peak()
    trainer = site.trainer()
    first = peak_bytes() - baseline
    sizes = [p.numel() * p.element_size() for p in trainer.model.parameters()]
    _end(trainer)
    del trainer
    step_s, plain_peak = _plain_steps(site) if measured else (0.0, 0)
    trainer, losses = site.trainer(), Losses()
    session = stage.session(stage.party("pairwise", more=_FEDERATION))
    clear_peak()
    store = Hdf5Checkpoints(Path(case.store).parent / f"checkpoints-{case.backend}" / session.site)
    outcome = Run(session, trainer, store, losses).run()
    round_peak = peak_bytes()
    moves_s = _move_seconds(trainer, group)
    sha256 = outcome.model.sha256()
    # The other site trains alone: what both hold in the end has come through the sums.
    hashes = stage.world.group.gather_bytes(sha256.encode())
    verified = len(set(hashes)) == 1 and math.isfinite(losses.loss)
    _end(trainer)
    peaks = [json.loads(b) for b in group.gather_bytes(json.dumps([first, round_peak - plain_peak]).encode())]
    if stage.world.group.rank:
        return {}
    return {
        "model_bytes": sum(sizes),
        "largest_tensor_over_v": max(sizes) / sum(sizes),
        "init_peak_over_v": max(p[0] for p in peaks) / sum(sizes),
        "added_bytes": max(p[1] for p in peaks),
        "added_over_v": max(p[1] for p in peaks) / sum(sizes),
        "added_over_v_of_ranks": [p[1] / sum(sizes) for p in peaks],
        "moves_s": moves_s,
        "step_s": step_s,
        "loss": losses.loss,
        "bytes_up": outcome.bytes_per_round,
        "model_sha256": sha256,
        "verified": verified,
    }


def _speed(case: Case, group: Group) -> dict[str, Any]:
    """Samples for each second of processor time of all ranks, in fedhpc's loop and in a plain one, in turn."""
    site = Site(case, group, case.backend)
    turns = [_turn(case, site) for _ in range(case.alternations)]
    params = sum(p.numel() for p in site.task.model(case.options, SEED).parameters()) if group.rank == 0 else 0
    if group.rank:
        return {}
    samples = case.steps * site.train.batch_size
    ours, plain, step_s = (statistics.median(getattr(t, n) for t in turns) for n in ("cpu_s", "plain_cpu_s", "step_s"))
    over = [turn.plain_cpu_s / turn.cpu_s for turn in turns]
    return {
        "params": params,
        "samples_per_cpu_s": samples / ours,
        "plain_samples_per_cpu_s": samples / plain,
        "speed_over_plain": statistics.median(over),
        "speed_over_plain_of_turns": over,
        "speed_step_s": step_s,
        "repeats": [vars(turn) | {"speed_over_plain": turn.plain_cpu_s / turn.cpu_s} for turn in turns],
    }


@dataclass(frozen=True)
class Turn:
    """A round of fedhpc's loop, and as many steps of a plain one; processor time and memory are those of all ranks."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    verified: bool
    plain_cpu_s: float
    step_s: float  # of the plain loop


def _turn(case: Case, site: Site) -> Turn:
    trainer = site.trainer()
    trainer.train(1, {})
    clear_peak()
    losses: list[float] = []
    begun = time.perf_counter()
    ours = _processor_seconds(site.group, lambda: losses.append(trainer.train(2, {}).loss))
    wall_s = time.perf_counter() - begun
    peaks = [int(b) for b in site.group.gather_bytes(str(peak_bytes()).encode())]
    _end(trainer)
    plain = site.plain()
    plain.train()
    begun = time.perf_counter()
    theirs = _processor_seconds(site.group, plain.train)
    step_s = (time.perf_counter() - begun) / case.steps
    plain.close()
    return Turn(wall_s, ours, sum(peaks), math.isfinite(losses[0]), theirs, step_s)


def _import_all(case: Case, group: Group, backend: str) -> None:
    """Train a tiny model: libraries that are loaded when they are first used are in the baseline."""
    tiny = case.options | {"width": 16, "layers": 2, "heads": 2}
    trainer = Site(replace(case, options=tiny, steps=1), group, backend).trainer()
    trainer.train(1, {})
    _end(trainer)


def _end(trainer: TorchTrainer) -> None:
    trainer.close()
    trainer.model.zero_grad(set_to_none=True)
    gc.collect()


def _plain_steps(site: Site) -> tuple[float, int]:
    """(seconds of an optimiser step, peak of steps as fedhpc's trainer takes them), without a federation.

    The trainer passes a row that is alone twice (train/batches.py).
    """
    plain = site.plain()
    plain.train()  # the optimiser has its state after the first step
    site.group.barrier()
    begun = time.perf_counter()
    plain.train()
    site.group.barrier()
    seconds = (time.perf_counter() - begun) / site.train.local_steps
    clear_peak()
    plain.train(times=2)
    peak = peak_bytes()
    plain.close()
    del plain
    gc.collect()
    return seconds, peak


def _move_seconds(trainer: TorchTrainer, group: Group) -> float:
    """What this rank holds of the model, out of the backend and back: the median."""
    held, times = trainer.tensors(), []
    for _ in range(_MOVES):
        group.barrier()
        begun = time.perf_counter()
        trainer.read(held)
        trainer.load(held)
        group.barrier()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _processor_seconds(group: Group, action: Callable[[], object]) -> float:
    """Of all threads of all ranks."""
    group.barrier()
    begun = time.process_time()
    action()
    spent = time.process_time() - begun
    return float(sum(json.loads(b) for b in group.gather_bytes(json.dumps(spent).encode())))


if __name__ == "__main__":
    measure(Case(**json.loads(sys.argv[1])))
