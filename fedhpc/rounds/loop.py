"""THE MAIN LOOP: one federated round after another, on every rank of every site.

What it needs from the rows above (trainer, checkpoints, reporter) is handed in. A run that is killed anywhere goes on
from the newest round of all sites.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedhpc.errors import InterruptedRun
from fedhpc.federation.checkpoint import CheckpointStore, Tensors
from fedhpc.federation.life import Life
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.session import Session
from fedhpc.rounds.beginning import Beginning
from fedhpc.rounds.best_round import Choice
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import LocalResult, Outbox, Reporter, Trainer
from fedhpc.rounds.local_round import Local, LocalRounds
from fedhpc.rounds.measuring import Measured, held_out_only
from fedhpc.rounds.null_objects import Endless, NoOutbox
from fedhpc.rounds.progress import Progress
from fedhpc.rounds.round_clock import RoundClock
from fedhpc.rounds.start_sum import Taken
from fedhpc.rounds.update import Base, Transform


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    model: GlobalModel
    metrics: dict[str, float | None]  # of the final model, over all sites' held-out rows
    tested: dict[str, float | None]  # the same over all sites' test rows; {} where the federation has none
    started_at: int  # the round it was resumed from; 0 for a fresh run
    seconds_per_round: float
    bytes_per_round: int  # sent by one site


class Run:
    """One site's part in the agreed number of training rounds. Every rank of every site makes and runs one."""

    def __init__(
        self,
        session: Session,
        trainer: Trainer,
        store: CheckpointStore,
        reporter: Reporter,
        *,
        outbox: Outbox | None = None,
        life: Life | None = None,
        prepare: Callable[[], None] = lambda: None,
        previous: Callable[[], Taken | None] = lambda: None,
        transforms: Sequence[Transform] = (),
        choice: Choice | None = None,
        tested: Callable[[], Tensors] | None = None,
    ) -> None:
        """`outbox` keeps local work between jobs; `life` says how long this one lasts and what it does.

        `prepare` is called once before the first round of a fresh run, for statistics that become part of the first
        model. `previous` gives what an epoch that goes on takes over, at leaders of sites that have it. `transforms`
        are applied to this site's updates, in this order. `choice` says by what the best round is kept, and when the
        sites stop for want of a better one. `tested` measures the final model on test rows, {} where there are none.
        """
        self._session, self._store, self._reporter = session, store, reporter
        self._life, outbox = life or Endless(), outbox or NoOutbox()
        self._rounds = session.rounds
        self._local_rounds = LocalRounds(session.party.site, trainer, outbox, self._life, tested)
        self._beginning = Beginning(session, trainer, store, reporter, outbox, self._life, transforms, choice)
        self._trainer, self._choice = trainer, choice
        self._prepare, self._previous = prepare, previous

    def run(self) -> Outcome:
        """Train to the final model.

        Raises InterruptedRun, on every rank and after all that is needed was kept, where the next job is to go on.
        """
        # Step 1. A fresh model, the newest checkpoint, an epoch before, or the model that the others have.
        progress = self._begin()
        model, session, life = progress.model, self._session, self._life
        started_at, begun, sent = model.rounds, time.perf_counter(), 0
        while model.rounds < self._rounds and not progress.best.stopped:
            clock = RoundClock()
            # Step 2. Stop here if there is no time for another round.
            self._stop_if_told(life.leaves() or life.may_begin(), f"before round {model.rounds + 1}")
            # Step 3. Measure the global model on this site's held-out rows and train it on the others; or take up what
            #         an earlier job has trained.
            base = model.base()
            local = self._train(model)
            clock.split()
            # Step 4. The update, base − local: encode, mask, sum over the sites, unmask; then the outer step.
            whole = self._sum(progress, base, local)
            clock.lap("exchange")
            if whole is None:
                continue  # this update came too late: train from the newer model
            # Step 5. Checkpoint: after this the round need not be repeated.
            measured = local.measured if whole else None
            progress.save(measured)
            clock.lap("checkpoint")
            life.round_took(clock.since_beginning() - session.spent.stages.agree)
            # Step 6. Sum what was measured, over all sites or not at all.
            found = progress.measuring.sum_round(measured)
            self._local_rounds.covered()
            # Step 7. Report. Each part of the round adds its facts.
            spent = session.take_spent()
            sent += spent.bytes_up
            record = {"round": model.rounds, "rounds": self._rounds} | found.facts() | local.facts()
            record |= self._own(local.measured)
            record |= {"seconds": clock.seconds(local) | vars(spent.stages)}
            record |= {"bytes_up": spent.bytes_up, "bytes_down": spent.bytes_down}
            record |= progress.best.record() | model.facts()
            self._reporter.round_done(record)
        elapsed, ran = time.perf_counter() - begun, max(1, model.rounds - started_at)
        if progress.best.stopped:
            self._reporter.note(f"all sites stop after round {model.rounds}: {progress.best.why()}")
        # Step 8. Measure the final model over all sites.
        found = self._measure_final(progress)
        return Outcome(model, dict(found.metrics), dict(found.tested), started_at, elapsed / ran, sent // ran)

    def _begin(self) -> Progress:
        """Where this run goes on. What the last job measured and did not live to sum is summed here."""
        progress, pending = self._beginning.begin(self._prepare, self._previous)
        self._local_rounds.hold(progress.model.held)
        if self._session.leads:
            self._session.recovery.serve_catch_up(self._store)
        if pending is not None and self._life.stage != "train":
            progress.measuring.report_again(pending)
        return progress

    def _train(self, model: GlobalModel) -> Local:
        """This site's work of the next round, kept in the outbox where somebody may need it there."""
        life = self._life
        local = self._local_rounds.work(model.rounds + 1, model.state, model.tensors)
        if self._choice is not None and local.measured:
            self._choice.refuse_unknown(self._trainer.summarise(local.measured))
        told = self._session.peers.agree_to_stop(life.leaves())
        if told or life.stage == "train" or self._local_rounds.is_due():
            self._local_rounds.keep(local)
        self._stop_if_told(told, f"in round {local.round_}, after {local.result.steps} steps")
        if life.stage == "train":
            raise InterruptedRun(
                f"round {local.round_} is trained; its update is in the outbox",
                "the next exchange sums it",
                agreed=True,
            )
        return local

    def _sum(self, progress: Progress, base: Base, local: Local) -> bool | None:
        """Whether all sites were in the sum of this update; None: it was not summed, and the model is a newer one."""
        model = progress.model
        try:
            while self._may_sum(model, base):
                try:
                    return model.exchange(local.tensors, local.result.samples, base)
                except RoundOverError as over:
                    progress.catch_up(over, local.measured)
        except InterruptedRun as interrupted:
            if interrupted.agreed and model.state == local.state:  # not where it has caught up in the meantime
                self._local_rounds.keep(local)
            raise
        return None

    def _may_sum(self, model: GlobalModel, base: Base) -> bool:
        """Whether an update from `base` still counts: it is not too old, and no round holds it that may be opened."""
        if base.rounds == model.rounds:
            return True
        if model.rounds >= self._rounds:
            return False  # it has caught up with the final model
        staleness = self._session.agreement.cohort.staleness
        return model.rounds - base.rounds <= staleness and self._session.recovery.is_free(base.state)

    def _measure_final(self, progress: Progress) -> Measured:
        """Metrics of the final model, as one more masked sum over all sites."""
        model = progress.model
        measured = self._local_rounds.measured(model.state, model.tensors)
        if self._life.stage == "train":
            work = Local(model.rounds + 1, model.state, model.tensors, LocalResult(0, 0, 0.0, 0.0), measured)
            self._local_rounds.keep(work)
            raise InterruptedRun("the final model is measured; the next exchange sums that", "exchange it", agreed=True)
        found = progress.measuring.sum_final(measured)
        self._local_rounds.covered()
        progress.measuring.report_final(found, self._own(measured))
        return found

    def _own(self, measured: Tensors) -> dict[str, object]:
        """What this site measured by itself, for its own eyes."""
        return {"own_metrics": self._trainer.summarise(held_out_only(measured))} if measured else {}

    def _stop_if_told(self, word: str, where: str) -> None:
        """Raise InterruptedRun on every rank if one of them was told to stop; `word`: why this one was, "" if not."""
        said = self._session.peers.agree_to_stop(word)
        if said:
            raise InterruptedRun(f"stopped {where}: {said}", agreed=True)
