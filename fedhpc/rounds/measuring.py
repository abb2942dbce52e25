"""What all sites measured together: a sum of its own after each training round that all of them were in.

Within the training's own sum a site that is lost once would show its counts: its held-out rows, and by them W's share.
So it is summed over everyone or not at all, it waits for nobody longer than `[cohort] upload_s`, and nothing that the
sites do in common hangs on whether it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedhpc.errors import InterruptedRun
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.life import Life
from fedhpc.federation.session import Session
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import LocalResult, Reporter, Trainer
from fedhpc.rounds.local_round import Local, LocalRounds

LOST = "not all sites were in this round's sum"
SKIPPED = "not all sites were there to sum them"


@dataclass(frozen=True)
class Measured:
    """Metrics over all sites' held-out rows, or why there are none."""

    metrics: Mapping[str, float | None]
    absent: str = ""

    def as_record(self) -> dict[str, Any]:
        """Its part of a round's record (app/telemetry.py)."""
        return {"metrics": dict(self.metrics)} | ({"no_metrics": self.absent} if self.absent else {})


def sum_measured(model: GlobalModel, trainer: Trainer, measured: Tensors | None, purpose: str) -> Measured:
    """Sum what this site measured with the others'; None: the round was not over all sites, and nothing is asked."""
    if measured is None:
        return Measured({}, LOST)
    total = model.total_of(measured, purpose)
    return Measured({}, SKIPPED) if total is None else Measured(trainer.summarise(total))


def purpose_after(rounds: int) -> str:
    """What the sum of the measurements of training round `rounds` is called."""
    return f"measured after round {rounds}"


def report_measured(
    session: Session, trainer: Trainer, reporter: Reporter, model: GlobalModel, pending: Tensors
) -> None:
    """Sum and report what was measured in a round that has a checkpoint already, and maybe a record."""
    found = sum_measured(model, trainer, pending, purpose_after(model.rounds))
    session.take_spent()
    reporter.round_done(
        {
            "round": model.rounds,
            "rounds": session.party.agreement.federation.rounds,
            **found.as_record(),
            "again": True,
            "sites": session.sites,
            "state": session.state.hex(),
            "model_sha256": model.sha256() if session.party.leads else None,
        }
    )


def final_metrics(
    session: Session,
    trainer: Trainer,
    local_rounds: LocalRounds,
    model: GlobalModel,
    reporter: Reporter,
    life: Life,
) -> dict[str, float | None]:
    """Metrics of the final model, as one more masked sum over all sites."""
    rounds = model.rounds
    measured = local_rounds.measured(model.state, model.tensors)
    if life.stage == "train":
        work = Local(model.tensors, LocalResult(0, 0, 0.0, 0.0), measured, 0.0, 0.0)
        local_rounds.keep(rounds + 1, model.state, work)
        raise InterruptedRun("the final model is measured; the next exchange sums that", "exchange it", agreed=True)
    found = sum_measured(model, trainer, measured, f"metrics after round {rounds}")
    if found.absent:
        reporter.note(f"there are no final metrics: {found.absent}; the model is the same")
    local_rounds.covered()
    reporter.round_done(
        {
            "round": rounds,
            "rounds": rounds,
            "final": True,
            **found.as_record(),
            "sites": session.sites,
            "state": session.state.hex(),
            "model_sha256": model.sha256() if session.party.leads else None,
        }
    )
    return dict(found.metrics)
