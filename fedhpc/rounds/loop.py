"""THE MAIN LOOP: one federated round after another, on every rank of every site.

What it needs from the rows above (trainer, checkpoints, reporter) is handed in. Each round: train, encode, mask, sum,
unmask, apply, checkpoint, measure, report. A run that is killed anywhere goes on from the newest round of all sites.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fedhpc.errors import InterruptedRun
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.life import Life
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.session import Session
from fedhpc.rounds.beginning import begin
from fedhpc.rounds.global_model import Base, GlobalModel
from fedhpc.rounds.interfaces import Outbox, Reporter, Trainer
from fedhpc.rounds.later_state import catch_up, save
from fedhpc.rounds.local_round import LocalRounds
from fedhpc.rounds.measuring import final_metrics, purpose_after, report_measured, sum_measured
from fedhpc.rounds.null_objects import Endless, NoOutbox
from fedhpc.rounds.start import Taken

Clock = Callable[[], float]


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    model: GlobalModel
    metrics: dict[str, float | None]  # of the final model, over all sites' held-out rows
    started_at: int  # the round it was resumed from; 0 for a fresh run
    seconds_per_round: float
    bytes_per_round: int  # sent by one site


def run_rounds(
    session: Session,
    trainer: Trainer,
    store: CheckpointStore,
    reporter: Reporter,
    *,
    outbox: Outbox | None = None,
    life: Life | None = None,
    prepare: Callable[[], None] = lambda: None,
    previous: Callable[[], Taken | None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> Outcome:
    """Train the federation's agreed number of rounds.

    `prepare` runs once before the first round of a fresh run, for statistics that become part of the first model.
    `previous` gives what an epoch that goes on takes over, at leaders of sites that have it.
    `outbox` keeps local work between jobs; `life` says how long this one lasts and what it does. Raises InterruptedRun,
    on every rank and after all that is needed was kept, where the next job is to go on.
    """
    life = life or Endless()
    outbox = outbox or NoOutbox()
    local_rounds = LocalRounds(session.party.site, trainer, outbox, life)
    rounds = session.party.agreement.federation.rounds
    model, done, pending = begin(session, trainer, store, reporter, prepare, previous, outbox, life)
    if session.party.leads:
        session.sums.attend(store)
    if pending is not None and life.stage != "train":  # the last job ended before it was summed, or just after
        report_measured(session, trainer, reporter, model, pending)
    started_at, begun_run, sent = done, clock(), 0
    while done < rounds:
        begun = clock()
        _stop_here(session, life.leaves() or life.may_begin(), f"before round {done + 1}")
        # 1. Start from the global model, and measure it on this site's held-out rows.
        # 2. Train on this site's data; or take up what an earlier job has trained.
        base, work_state = model.base(), model.state
        local = local_rounds.work(done + 1, work_state, model.tensors)
        told = session.sums.hear(life.leaves())
        if told or life.stage == "train" or local_rounds.is_due():
            local_rounds.keep(done + 1, work_state, local)
        _stop_here(session, told, f"in round {done + 1}, after {local.result.steps} steps")
        if life.stage == "train":
            raise InterruptedRun(
                f"round {done + 1} is trained; its update is in the outbox", "the next exchange sums it", agreed=True
            )
        trained = clock()
        # 3. Encode, mask, sum over the sites, unmask, and take the outer step.
        whole: bool | None = None  # all sites were in the sum; None: it was not summed
        try:
            while whole is None and _may_sum(session, model, base):
                try:
                    whole = model.exchange(local.tensors, local.result.samples, base)
                except RoundOverError as over:
                    catch_up(session, trainer, store, reporter, model, over, local.measured)
        except InterruptedRun as interrupted:
            if interrupted.agreed and model.state == work_state:  # not, if it has caught up meanwhile
                local_rounds.keep(done + 1, work_state, local)
            raise
        exchanged = clock()
        done = model.rounds
        if whole is None:
            continue  # this update came too late: train from the newer model
        # 4. Checkpoint: after this the round need not be repeated. What was measured is still to be summed.
        measured = local.measured if whole else None
        save(session, trainer, store, model, done, measured)
        saved = clock()
        life.round_took(saved - begun - session.spent.stages.agree)
        # 5. Sum what was measured, over all sites or not at all.
        found = sum_measured(model, trainer, measured, purpose_after(done))
        local_rounds.covered()
        # 6. Report.
        spent = session.take_spent()
        sent += spent.bytes_up
        record = {
            "round": done,
            "rounds": rounds,
            **found.as_record(),
            "train_loss": local.result.loss,
            "samples": local.result.samples,
            "seconds": {
                "train": local.train_s,
                "evaluate": local.evaluate_s,
                "exchange": exchanged - trained,
                "checkpoint": saved - exchanged,
                "total": clock() - begun,
                **vars(spent.stages),
            },
            "bytes_up": spent.bytes_up,
            "bytes_down": spent.bytes_down,
            "sites": session.sites,
            "state": session.state.hex(),
            # Once a round, and where it is written only: hashing a model takes as long as reading it from memory.
            "model_sha256": model.sha256() if session.party.leads else None,
        }
        reporter.round_done(record)
    elapsed = clock() - begun_run
    metrics = final_metrics(session, trainer, local_rounds, model, reporter, life)
    ran = max(1, done - started_at)
    return Outcome(model, metrics, started_at, elapsed / ran, sent // ran)


def _stop_here(session: Session, word: str, where: str) -> None:
    """Raise InterruptedRun on every rank if one of them was told to stop."""
    said = session.sums.hear(word)
    if said:
        raise InterruptedRun(f"stopped {where}: {said}", agreed=True)


def _may_sum(session: Session, model: GlobalModel, base: Base) -> bool:
    """Whether an update from `base` still counts: not too old, in no round that may have been opened, nor after all."""
    if base.rounds == model.rounds:
        return True
    agreement = session.party.agreement
    if model.rounds >= agreement.federation.rounds:
        return False  # it has caught up with the final model
    staleness = agreement.cohort.staleness
    return model.rounds - base.rounds <= staleness and session.sums.is_free(base.state)
