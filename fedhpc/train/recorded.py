"""A Trainer that trains nothing: it plays what a training job has put into the outbox.

A job that only exchanges then needs neither torch nor the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.errors import InternalError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import Forms, Held, forms_of
from fedhpc.rounds.interfaces import AtStep, LocalResult, LocalWork, Parts, Trainer
from fedhpc.train import evaluate


class RecordedTrainer(Trainer):
    """Local work of another job."""

    def __init__(self, work: LocalWork) -> None:
        self._work = work
        self._private = work.private
        self._parts: Parts = {}
        self._held: Held | None = None

    @override
    def forms(self) -> Forms:
        return forms_of(self._work.tensors) if self._work.forms is None else self._work.forms

    @override
    def hold(self, held: Held) -> None:
        self._held = held

    @override
    def tensors(self) -> Tensors:
        """Zeros: the main loop goes on from a checkpoint, and needs no more than the form."""
        forms = {n: f.shape if self._held is None else self._held.piece_shape(n) for n, f in self.forms().items()}
        return {name: np.zeros(shape, self.forms()[name].dtype) for name, shape in forms.items()}

    @override
    def read(self, into: Tensors) -> None:
        """Never called: the outbox has the model."""
        raise InternalError("a job that exchanges was asked for its own model")

    @override
    def averaged(self) -> frozenset[str]:
        return self._work.averaged

    @override
    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Does nothing: there is no model here."""

    @override
    def train(self, round_: int, anchor: Mapping[str, NDArray[Any]], at_step: AtStep = lambda: False) -> LocalResult:
        """Never called: without work in the outbox an exchange ends."""
        raise InternalError("a job that exchanges was asked to train")

    @override
    def measure(self) -> Tensors:
        return self._work.measured

    @override
    def summarise(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
        return evaluate.summarise(sums)

    @override
    def private(self) -> dict[str, NDArray[Any]]:
        return self._private

    @override
    def private_in_parts(self) -> tuple[dict[str, NDArray[Any]], Parts]:
        return self._private, self._parts

    @override
    def restore(self, private: Mapping[str, NDArray[Any]]) -> None:
        self._private = dict(private)

    @override
    def restore_parts(self, parts: Parts) -> None:
        self._parts = parts
