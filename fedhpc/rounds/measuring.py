"""What all sites measured together: a sum of its own after each training round that all of them were in.

Within the training's own sum a site that is lost once would show its counts: its held-out rows, and by them W's share.
So it is summed over everyone or not at all, it waits for nobody longer than `[cohort] upload_s`, and nothing that the
sites do in common depends on whether it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import CheckpointStore, Tensors
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.rounds.best_round import BestRound
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import Reporter, Trainer
from fedhpc.secure import labels
from fedhpc.secure.ring import Tensor, scale_for

_PREFIX = "measured/"
_STOP = "fedhpc/stop"  # this site's vote: whether its metric gets no better
_BOUND = 2.0**40  # of a float sum of metrics at one site; public
TEST = "test/"
"""Before the names of sums over test rows."""
LOST = "not all sites were in this round's sum"
SKIPPED = "not all sites were there to sum them"


@dataclass(frozen=True)
class Measured:
    """Metrics over all sites' held-out rows, or why there are none."""

    metrics: Mapping[str, float | None]
    absent: str = ""
    tested: Mapping[str, float | None] = field(default_factory=dict)  # over all sites' test rows

    def facts(self) -> dict[str, Any]:
        """Its part of a round's record (app/telemetry.py)."""
        more: dict[str, Any] = {"no_metrics": self.absent} if self.absent else {}
        return {"metrics": dict(self.metrics)} | more | ({"test_metrics": dict(self.tested)} if self.tested else {})


class Measuring:
    """Sums and tells the measurements of one run. Every rank of the site makes every call."""

    def __init__(
        self,
        session: Session,
        trainer: Trainer,
        store: CheckpointStore,
        reporter: Reporter,
        model: GlobalModel,
        best: BestRound,
    ) -> None:
        self._session, self._trainer, self._store, self._reporter = session, trainer, store, reporter
        self._model, self._best = model, best

    def sum_round(self, measured: Tensors | None) -> Measured:
        """Sum what this site measured in the newest round; None: not all sites were in it, and nothing is asked."""
        if measured is None:
            return Measured({}, LOST)
        vote = {_STOP: np.array(self._best.would_stop, np.int64)} if self._best.votes and measured else {}
        found = self._sum({**measured, **vote}, "measured")
        self._saw(found, self._model.rounds - 1)  # it was measured before the round
        return found

    def report_again(self, pending: Tensors) -> None:
        """Sum and report what was measured in a round that has a checkpoint already, and maybe a record."""
        found = self.sum_round(pending)
        self._session.take_spent()
        record = self._round() | found.facts() | self._best.record()
        self._reporter.round_done(record | {"again": True} | self._model.facts())

    def sum_final(self, measured: Tensors) -> Measured:
        """Sum what the sites measured of the final model."""
        found = self._sum(measured, "metrics")
        self._saw(found, self._model.rounds)
        if found.absent:
            self._reporter.note(f"there are no final metrics: {found.absent}; the model is the same")
        return found

    def report_final(self, found: Measured, own: Mapping[str, Any]) -> None:
        """The last record of a run, with this site's `own` facts."""
        record = {**self._round(), "final": True, **found.facts(), **own, **self._best.record()}
        self._reporter.round_done(record | self._model.facts())

    def _round(self) -> dict[str, Any]:
        return {"round": self._model.rounds, "rounds": self._session.rounds}

    def _sum(self, measured: Tensors, what: str) -> Measured:
        """`what` begins the sum's name in the ledger."""
        total = total_of(self._session, measured, f"{what} after round {self._model.rounds}")
        if total is None:
            return Measured({}, SKIPPED)
        votes = total.pop(_STOP, None)
        if votes is not None and int(votes):
            self._count(int(votes))
        summarise, test = self._trainer.summarise, test_only(total)
        return Measured(summarise(held_out_only(total)), tested=summarise(test) if test else {})

    def _count(self, votes: int) -> None:
        """Stop if all sites say so."""
        sites = len(self._session.sites)
        self._best.stopped = votes == sites
        if votes < sites:
            self._reporter.note(f"{votes} of {sites} sites would stop here; all must, so the rounds go on")

    def _saw(self, found: Measured, round_: int) -> None:
        """Keep the model after `round_` rounds apart if it is the best yet."""
        if self._best.saw(round_, found.metrics) and self._session.leads:
            self._store.keep_apart(round_)


def held_out_only(sums: Mapping[str, NDArray[Any]]) -> Tensors:
    """Those over held-out rows."""
    return {name: array for name, array in sums.items() if not name.startswith(TEST)}


def test_only(sums: Mapping[str, NDArray[Any]]) -> Tensors:
    """Those over test rows, by the names that the held-out ones have."""
    return {name.removeprefix(TEST): array for name, array in sums.items() if name.startswith(TEST)}


def total_of(session: Session, measured: Mapping[str, NDArray[Any]], name: str) -> Tensors | None:
    """The sum of `measured`, int64 and float64, over all sites; None if they went on without it.

    Where this site measured nothing it does without the sum, and so do the others then. Over fewer sites the sum would
    show, beside another such sum, the counts of those that one of the two lacks.
    """
    vector = Vector(session.layout(_tensors(session, measured)))
    vector.fill({_PREFIX + n: a for n, a in measured.items()})
    plan = session.statistic(name, everyone=True, skip=True, absent=not measured, category=labels.CLASS_MEASURED)
    opened = session.add(vector, plan)
    return None if opened is None else {n: vector.view(_PREFIX + n).copy() for n in measured}


def _tensors(session: Session, measured: Mapping[str, NDArray[Any]]) -> list[Tensor]:
    tensors = []
    for name, array in measured.items():
        if array.dtype not in (np.int64, np.float64):
            raise DataError(f"the measured sum '{name}' is {array.dtype}", "use int64 counts or float64 sums")
        scale = scale_for(_BOUND, 64, len(session.sites)) if array.dtype == np.float64 else 0
        tensors.append(Tensor(_PREFIX + name, array.dtype.name, array.shape, scale))
    return tensors
