"""What the main loop is handed, in memory: a trainer of two tensors, checkpoints, an outbox and a life by script."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from held_fakes import HeldTensors

from fedhpc.federation.checkpoint import Checkpoint, StoredState, Tensors
from fedhpc.federation.held_stream import LoadedState
from fedhpc.federation.life import Stage
from fedhpc.federation.ranges import Held
from fedhpc.rounds.interfaces import AtStep, LocalResult, LocalWork
from fedhpc.rounds.null_objects import Endless
from fedhpc.train import evaluate

STEPS = 4


class Trainer(HeldTensors):
    """A model of two tensors with a momentum; every step depends on all steps before it."""

    def __init__(self, site: int) -> None:
        self.site = site
        self.now: Tensors = {"w": np.zeros(5, np.float32), "running": np.zeros(2, np.float32)}
        self.momentum = np.zeros(5, np.float32)
        self.steps = 0  # in all rounds
        self.here = 0  # in this process
        self.at: list[int] = []  # round and step within it, while a round is under way
        self.measurements = 0

    def averaged(self) -> frozenset[str]:
        return frozenset({"running"})

    def train(self, round_: int, anchor: Mapping[str, Any], at_step: AtStep = lambda: False) -> LocalResult:
        self.at = self.at or [round_, 0]
        assert self.at[0] == round_
        while self.at[1] < STEPS:
            noise = np.random.default_rng([self.site, self.steps]).standard_normal(5).astype(np.float32)
            self.momentum = np.float32(0.9) * self.momentum + noise + np.float32(0.1) * self.now["w"]
            self.now["w"] = self.now["w"] - np.float32(0.1) * self.momentum
            self.now["running"] = np.float32(0.5) * self.now["running"] + noise[:2]
            self.steps, self.here, self.at[1] = self.steps + 1, self.here + 1, self.at[1] + 1
            if self.at[1] < STEPS and at_step():
                return LocalResult(7 + self.site, self.at[1], 0.5, 0.0, whole=False)
        self.at = []
        return LocalResult(7 + self.site, STEPS, 0.5, 0.0)

    def measure(self) -> Tensors:
        self.measurements += 1
        return {"n": np.array(self.site), "total": np.array(float(self.now["w"].sum()))}

    def measure_test(self) -> Tensors:
        return {}

    def summarise(self, sums: Mapping[str, Any]) -> dict[str, float | None]:
        return evaluate.summarise(sums)

    def private(self) -> dict[str, Any]:
        return {"steps": np.array(self.steps), "momentum": self.momentum.copy(), "at": np.array(self.at)}

    def restore(self, private: Mapping[str, Any]) -> None:
        private = self.from_leader(private)
        self.steps, self.momentum = int(private["steps"]), private["momentum"].copy()
        self.at = [int(v) for v in private["at"]]


class Store:
    """Checkpoints in memory, deep copies."""

    def __init__(self) -> None:
        self.kept: dict[int, Checkpoint] = {}
        self.apart: list[int] = []

    def rounds(self) -> list[int]:
        return sorted(self.kept)

    def save(self, checkpoint: Checkpoint) -> None:
        self.kept[checkpoint.round_] = copy.deepcopy(dataclasses.replace(checkpoint, held=None))

    def load(self, round_: int, held: Held | None = None) -> Checkpoint:
        return copy.deepcopy(self.kept[round_])

    def state(self, round_: int) -> StoredState:
        return LoadedState(self.load(round_))

    def keep_apart(self, round_: int) -> None:
        assert round_ in self.kept
        self.apart.append(round_)

    def discard_after(self, round_: int) -> None:
        self.kept = {r: c for r, c in self.kept.items() if r <= round_}


class Box:
    """An outbox in memory, which counts."""

    def __init__(self) -> None:
        self.work: LocalWork | None = None
        self.keeps = 0

    def find(self, state: bytes, held: Held | None = None) -> LocalWork | None:
        return self.newest() if self.work is not None and self.work.state == state else None

    def holds(self, state: bytes) -> bool:
        return self.work is not None and self.work.state == state

    def newest(self) -> LocalWork | None:
        return copy.deepcopy(self.work)

    def keep(self, work: LocalWork) -> None:
        self.work, self.keeps = copy.deepcopy(work), self.keeps + 1

    def clear(self) -> None:
        self.work = None


class Scripted(Endless):
    """Told to stop once `leaves` has been asked so many times; keeps when `due` says so."""

    def __init__(
        self, told_after: int | None = None, stage: Stage = "all", due: Callable[[], bool] | None = None
    ) -> None:
        self.stage, self.told_after, self.due = stage, told_after, due or (lambda: False)
        self.asked = self.kepts = 0
        self.may = ""

    def leaves(self) -> str:
        self.asked += 1
        return "told" if self.told_after is not None and self.asked > self.told_after else ""

    def may_begin(self) -> str:
        return self.may

    def keeps_now(self) -> bool:
        return self.due()

    def kept(self) -> None:
        self.kepts += 1
