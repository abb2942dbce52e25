"""What all sites measured together: a sum of its own after each training round that all of them were in.

Within the training's own sum a site that is lost once would show its counts: its held-out rows, and by them W's share.
So it is summed over everyone or not at all, it waits for nobody longer than `[cohort] upload_s`, and nothing that the
sites do in common depends on whether it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import Reporter, Trainer
from fedhpc.secure import labels
from fedhpc.secure.ring import Tensor, scale_for

_PREFIX = "measured/"
_BOUND = 2.0**40  # of a float sum of metrics at one site; public
LOST = "not all sites were in this round's sum"
SKIPPED = "not all sites were there to sum them"


@dataclass(frozen=True)
class Measured:
    """Metrics over all sites' held-out rows, or why there are none."""

    metrics: Mapping[str, float | None]
    absent: str = ""

    def facts(self) -> dict[str, Any]:
        """Its part of a round's record (app/telemetry.py)."""
        return {"metrics": dict(self.metrics)} | ({"no_metrics": self.absent} if self.absent else {})


class Measuring:
    """Sums and tells the measurements of one run. Every rank of the site makes every call."""

    def __init__(self, session: Session, trainer: Trainer, reporter: Reporter, model: GlobalModel) -> None:
        self._session, self._trainer, self._reporter, self._model = session, trainer, reporter, model

    def sum_round(self, measured: Tensors | None) -> Measured:
        """Sum what this site measured in the newest round; None: not all sites were in it, and nothing is asked."""
        return Measured({}, LOST) if measured is None else self._sum(measured, "measured")

    def report_again(self, pending: Tensors) -> None:
        """Sum and report what was measured in a round that has a checkpoint already, and maybe a record."""
        found = self.sum_round(pending)
        self._session.take_spent()
        self._reporter.round_done(self._round() | found.facts() | {"again": True} | self._model.facts())

    def sum_final(self, measured: Tensors) -> Measured:
        """Sum what the sites measured of the final model."""
        found = self._sum(measured, "metrics")
        if found.absent:
            self._reporter.note(f"there are no final metrics: {found.absent}; the model is the same")
        return found

    def report_final(self, found: Measured) -> None:
        """The last record of a run."""
        self._reporter.round_done(self._round() | {"final": True} | found.facts() | self._model.facts())

    def _round(self) -> dict[str, Any]:
        return {"round": self._model.rounds, "rounds": self._session.rounds}

    def _sum(self, measured: Tensors, what: str) -> Measured:
        """`what` begins the sum's name in the ledger."""
        total = total_of(self._session, measured, f"{what} after round {self._model.rounds}")
        return Measured({}, SKIPPED) if total is None else Measured(self._trainer.summarise(total))


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
