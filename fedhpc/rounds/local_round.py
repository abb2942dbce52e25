"""One site's own part of a round: taken up from the outbox, or trained from the global model, and kept.

What is kept is sealed and private to the site. A job that must stop keeps its work at the next step, and the next
job goes on from there, to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fedhpc.errors import InterruptedRun
from fedhpc.federation.checkpoint import Source, Tensors
from fedhpc.federation.life import Life
from fedhpc.federation.ranges import Held
from fedhpc.mpi.collectives import Group
from fedhpc.rounds.interfaces import LocalResult, LocalWork, Outbox, Trainer
from fedhpc.rounds.measuring import TEST

_TOLD, _DUE = 1, 2


@dataclass(frozen=True)
class Local:
    """One site's work of a round, and the seconds of this job in it."""

    round_: int
    state: bytes  # hash of the global state it began from [32]
    tensors: Source  # what this rank holds of them; the trainer has them until it loads others
    result: LocalResult
    measured: Tensors
    evaluate_s: float = 0.0
    train_s: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Its part of a round's record (app/telemetry.py), besides the seconds."""
        return {"train_loss": self.result.loss, "samples": self.result.samples}


class LocalRounds:
    """The local part of every round of one run. Every rank of the site makes every call."""

    def __init__(
        self,
        site: Group,
        trainer: Trainer,
        outbox: Outbox,
        life: Life,
        tested: Callable[[], Tensors] | None = None,
    ) -> None:
        self._site, self._trainer, self._outbox, self._life = site, trainer, outbox, life
        self._tested = tested or dict
        self._held: Held | None = None

    def hold(self, held: Held) -> None:
        """What each rank holds of the models, those that are given here too; before, all of them."""
        self._held = None if held.replicated else held

    def work(self, round_: int, state: bytes, anchor: Mapping[str, NDArray[Any]]) -> Local:
        """Round `round_` from the global model `anchor` of hash `state` [32]; not whole if this site must stop.

        Raises InterruptedRun where training is not this process's stage and nothing was trained.
        """
        begun = time.perf_counter()
        kept, trainer = self._outbox.find(state, self._held), self._trainer
        if kept is None or not kept.result.whole:
            self._refuse_training(f"round {round_} is not trained")
        if kept is None:
            trainer.load(anchor)
            measured = trainer.measure()
        else:
            trainer.load(kept.tensors)
            trainer.restore(kept.private)
            measured = kept.measured
            if kept.result.whole:
                return Local(round_, state, kept.tensors, kept.result, measured)
        evaluated = time.perf_counter()

        def at_step() -> bool:
            word = self._word_of_all()
            if word & _DUE and not word & _TOLD:
                self.keep(Local(round_, state, trainer.read, LocalResult(0, 0, 0.0, 0.0, whole=False), measured))
            return bool(word & _TOLD)

        result = trainer.train(round_, anchor, at_step)
        trained = time.perf_counter()
        self._life.trained()
        return Local(round_, state, trainer.read, result, measured, evaluated - begun, trained - evaluated)

    def measured(self, state: bytes, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """The measurement of the final model, on test rows too; those sums have names under TEST."""
        kept = self._outbox.find(state, self._held)
        if kept is not None:
            return kept.measured
        self._refuse_training("the final model is not measured")
        self._trainer.load(tensors)
        return self._trainer.measure() | {TEST + name: array for name, array in self._tested().items()}

    def keep(self, local: Local) -> None:
        """Put the work, with the trainer's private state, into the outbox."""
        private, averaged = self._trainer.private(), self._trainer.averaged()
        tensors = self._trainer.tensors() if callable(local.tensors) else local.tensors
        self._outbox.keep(
            LocalWork(local.state, local.round_, local.result, local.measured, tensors, private, averaged, self._held)
        )
        self._life.kept()

    def is_due(self) -> bool:
        """Whether nothing was kept for a long time; the same on all ranks."""
        return bool(self._word_of_all() & _DUE)

    def covered(self) -> None:
        """A checkpoint holds the round: its work is no longer needed."""
        self._outbox.clear()
        self._life.kept()

    def _word_of_all(self) -> int:
        mine = (_TOLD if self._life.leaves() else 0) | (_DUE if self._life.keeps_now() else 0)
        word = 0
        for other in self._site.gather_bytes(bytes([mine])):
            word |= other[0]
        return word

    def _refuse_training(self, what: str) -> None:
        if self._life.stage == "exchange":
            raise InterruptedRun(
                f"nothing to exchange: {what} yet",
                "the next training job goes on from here: `fedhpc run --stage train`",
                agreed=True,
                untrained=True,
            )
