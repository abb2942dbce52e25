"""A Trainer that trains nothing: it plays what a training job has put into the outbox.

So that a job that only exchanges needs neither torch nor the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedhpc.errors import InternalError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.rounds.interfaces import AtStep, LocalResult, LocalWork
from fedhpc.train import evaluate


class RecordedTrainer:
    """Local work of another job."""

    def __init__(self, work: LocalWork) -> None:
        self._work = work
        self._private = work.private

    def tensors(self) -> Tensors:
        """See Trainer.tensors: the names and shapes of the model."""
        return {name: array.copy() for name, array in self._work.tensors.items()}

    def averaged(self) -> frozenset[str]:
        """See Trainer.averaged."""
        return self._work.averaged

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """See Trainer.load: there is no model here."""

    def train(self, round_: int, anchor: Mapping[str, NDArray[Any]], at_step: AtStep = lambda: False) -> LocalResult:
        """Never called: without work in the outbox an exchange ends."""
        raise InternalError("a job that exchanges was asked to train")

    def measure(self) -> Tensors:
        """See Trainer.measure."""
        return self._work.measured

    def summarise(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
        """See Trainer.summarise."""
        return evaluate.summarise(sums)

    def private(self) -> dict[str, NDArray[Any]]:
        """See Trainer.private."""
        return self._private

    def restore(self, private: Mapping[str, NDArray[Any]]) -> None:
        """See Trainer.restore."""
        self._private = dict(private)
