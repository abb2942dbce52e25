"""THE MAIN LOOP: one federated round after another, on every rank of every site.

What it needs from the rows above (trainer, checkpoints, reporter) is handed in. Each round: train, encode, mask, sum,
unmask, apply, checkpoint, measure, report. A run that is killed anywhere goes on from the newest round of all sites.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fedhpc.errors import DataError, InterruptedRun, PolicyError
from fedhpc.federation.federation import Federation
from fedhpc.federation.global_model import Base, GlobalModel
from fedhpc.federation.interfaces import (
    Checkpoint,
    CheckpointStore,
    Life,
    Outbox,
    Reporter,
    Tensors,
    Trainer,
)
from fedhpc.federation.local_round import LocalRounds
from fedhpc.federation.measuring import final_metrics, purpose_after, report_measured, sum_measured
from fedhpc.federation.nothing import Endless, NoOutbox
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.start import Taken, refuse_other_model, take_over
from fedhpc.federation.state_tensors import total_bytes

Clock = Callable[[], float]
OLD_RUN_HINT = (
    "`fedhpc site ledger adopt RUN` keeps what this site has summed, and `fedhpc federation next --from-model` begins "
    "an epoch from the model in a directory of its own"
)


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    model: GlobalModel
    metrics: dict[str, float | None]  # of the final model, over all sites' held-out rows
    started_at: int  # the round it was resumed from; 0 for a fresh run
    seconds_per_round: float
    bytes_per_round: int  # sent by one site


def run_rounds(
    federation: Federation,
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
    local_rounds = LocalRounds(federation.party.site, trainer, outbox, life)
    rounds = federation.party.agreement.federation.rounds
    model, done, pending = _begin(federation, trainer, store, reporter, prepare, previous, outbox, life)
    if federation.party.leads:
        federation.sums.attend(store)
    if pending is not None and life.stage != "train":  # the last job ended before it was summed, or just after
        report_measured(federation, trainer, reporter, model, pending)
    started_at, begun_run, sent = done, clock(), 0
    while done < rounds:
        begun = clock()
        _stop_here(federation, life.leaves() or life.may_begin(), f"before round {done + 1}")
        # 1. Start from the global model, and measure it on this site's held-out rows.
        # 2. Train on this site's data; or take up what an earlier job has trained.
        base, work_state = model.base(), model.state
        local = local_rounds.work(done + 1, work_state, model.tensors)
        told = federation.sums.hear(life.leaves())
        if told or life.stage == "train" or local_rounds.is_due():
            local_rounds.keep(done + 1, work_state, local)
        _stop_here(federation, told, f"in round {done + 1}, after {local.result.steps} steps")
        if life.stage == "train":
            raise InterruptedRun(
                f"round {done + 1} is trained; its update is in the outbox", "the next exchange sums it", agreed=True
            )
        trained = clock()
        # 3. Encode, mask, sum over the sites, unmask, and take the outer step.
        whole: bool | None = None  # all sites were in the sum; None: it was not summed
        try:
            while whole is None and _may_sum(federation, model, base):
                try:
                    whole = model.exchange(local.tensors, local.result.samples, base)
                except RoundOverError as over:
                    _catch_up(federation, trainer, store, reporter, model, over, local.measured)
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
        _save(federation, trainer, store, model, done, measured)
        saved = clock()
        life.round_took(saved - begun - federation.spent.stages.agree)
        # 5. Sum what was measured, over all sites or not at all.
        found = sum_measured(model, trainer, measured, purpose_after(done))
        local_rounds.covered()
        # 6. Report.
        spent = federation.take_spent()
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
            "sites": federation.sites,
            "state": federation.state.hex(),
            # Once a round, and where it is written only: hashing a model takes as long as reading it from memory.
            "model_sha256": model.sha256() if federation.party.leads else None,
        }
        reporter.round_done(record)
    elapsed = clock() - begun_run
    metrics = final_metrics(federation, trainer, local_rounds, model, reporter, life)
    ran = max(1, done - started_at)
    return Outcome(model, metrics, started_at, elapsed / ran, sent // ran)


def _stop_here(federation: Federation, word: str, where: str) -> None:
    """Raise InterruptedRun on every rank if one of them was told to stop."""
    said = federation.sums.hear(word)
    if said:
        raise InterruptedRun(f"stopped {where}: {said}", agreed=True)


def _begin(
    federation: Federation,
    trainer: Trainer,
    store: CheckpointStore,
    reporter: Reporter,
    prepare: Callable[[], None],
    previous: Callable[[], Taken | None],
    outbox: Outbox,
    life: Life,
) -> tuple[GlobalModel, int, Tensors | None]:
    """The model to go on from: a fresh one, or that of the newest round that every site holds; and its round.

    Last what was measured in that round and is still to be summed, or None.
    """
    newest = _newest_common_round(federation, store)
    if newest is None and life.stage == "train":
        raise InterruptedRun(
            "there is no model to train yet", "the first exchange makes it: `fedhpc run --stage exchange`", agreed=True
        )
    if newest is None and federation.party.agreement.start.from_ is not None:
        return *_go_on(federation, trainer, store, reporter, previous), None
    if newest is None:
        federation.round_ = 0
        missed: RoundOverError | None = None
        try:
            prepare()
        except RoundOverError as over:
            missed = over  # the others have gone on; their model holds what was to be prepared
        model = GlobalModel(federation, trainer.tensors(), trainer.averaged(), checkpointed=True)
        if missed is not None:
            _catch_up(federation, trainer, store, reporter, model, missed)
            return model, model.rounds, None
        _save(federation, trainer, store, model, 0)
        federation.take_spent()
        return model, 0, None
    checkpoint = store.load(newest)
    _refuse_without_blind(checkpoint)
    if checkpoint.config != federation.party.agreement.hash:
        raise DataError(
            f"the run directory belongs to another federation.toml (SHA-256 {checkpoint.config.hex()}, "
            f"now {federation.party.agreement.hash.hex()})",
            "continue with the file it was started with; a changed one is a new federation with its own directory",
        )
    if federation.party.leads:
        _require_ledger(federation, checkpoint)
        store.discard_after(newest)
    model = GlobalModel(federation, trainer.tensors(), trainer.averaged(), fresh=False, checkpointed=True)
    model.restore(checkpoint.tensors, checkpoint.outer, checkpoint.round_, checkpoint.blind)
    federation.round_ = model.reached = checkpoint.sums
    if not outbox.holds(model.state):  # what is kept there has a newer state of the trainer
        trainer.restore(checkpoint.private)
    reporter.note(f"resumed after round {newest}")
    return model, newest, checkpoint.pending if checkpoint.whole else None


def _go_on(
    federation: Federation,
    trainer: Trainer,
    store: CheckpointStore,
    reporter: Reporter,
    previous: Callable[[], Taken | None],
) -> tuple[GlobalModel, int]:
    """The model of an epoch before this one, by the sum `start`; it is the first checkpoint of this epoch."""
    federation.round_ = 0
    model = GlobalModel(federation, trainer.tensors(), trainer.averaged(), fresh=False, checkpointed=True)
    own = previous() if federation.party.leads else None
    try:
        take_over(federation, model, own)
    except RoundOverError as over:
        _take_later(federation, reporter, model, over)
        if not model.rounds:
            refuse_other_model(federation, model, own)
    _save(federation, trainer, store, model, model.rounds)
    federation.take_spent()
    reporter.note("goes on from the model of an epoch before")
    return model, model.rounds


def _may_sum(federation: Federation, model: GlobalModel, base: Base) -> bool:
    """Whether an update from `base` still counts: not too old, in no round that may have been opened, nor after all."""
    if base.rounds == model.rounds:
        return True
    agreement = federation.party.agreement
    if model.rounds >= agreement.federation.rounds:
        return False  # it has caught up with the final model
    staleness = agreement.cohort.staleness
    return model.rounds - base.rounds <= staleness and federation.sums.is_free(base.state)


def _catch_up(
    federation: Federation,
    trainer: Trainer,
    store: CheckpointStore,
    reporter: Reporter,
    model: GlobalModel,
    over: RoundOverError,
    measured: Tensors | None = None,
) -> None:
    """Go on from a state that other sites have reached meanwhile, and keep it. Raises PeersError if nobody gives it.

    `measured`: by this site, of the model that its update began from.
    """
    # If its vector was in that sum, the others ask it for its measurement too. It may be of an older model, as that of
    # any late update; without its rows this sum would differ from the ones beside it by exactly their number.
    pending = measured if _take_later(federation, reporter, model, over) else None
    _save(federation, trainer, store, model, model.rounds, pending)
    if pending is not None:
        report_measured(federation, trainer, reporter, model, pending)


def _take_later(federation: Federation, reporter: Reporter, model: GlobalModel, over: RoundOverError) -> bool:
    """Take the later state; whether its training sum was over all sites."""
    reporter.note(f"{over.what}; asking the others for their model")
    before = model.rounds
    caught = federation.sums.catch_up(model.state, model.reached, total_bytes(model.arrays()))
    model.take_over(caught.data)
    federation.round_ = model.reached = caught.round_
    reporter.note(f"caught up: from {before} to {model.rounds} rounds")
    return caught.whole


def _newest_common_round(federation: Federation, store: CheckpointStore) -> int | None:
    """The round to go on from; None if the run is fresh. Leaders look, every rank learns."""
    party = federation.party
    answer = b""
    if party.leads:
        newest = federation.sums.common_round(store.rounds())
        answer = b"none" if newest is None else str(newest).encode()
    answer = party.site.broadcast_bytes(answer if party.leads else None)
    return None if answer == b"none" else int(answer)


def _refuse_without_blind(checkpoint: Checkpoint) -> None:
    """PolicyError for a checkpoint of fedhpc 0.1.0: its state has no blind, and its ledger no home."""
    if not checkpoint.blind:
        raise PolicyError(
            "the run directory is of fedhpc 0.1.0 (fedhpc-secagg/1): its model's hash could be guessed by the relay",
            OLD_RUN_HINT,
        )


def _require_ledger(federation: Federation, checkpoint: Checkpoint) -> None:
    """Refuse to go on with a ledger that lacks rounds this site has summed: deleted, or put back from a backup.

    Not every round of a checkpoint is in it: a site that was away took the result of some from the others.
    """
    party = federation.party
    if not party.masked or party.journal is None:
        return
    ledger = party.journal.ledger
    if not ledger.holds(checkpoint.ledger):
        raise PolicyError(
            f"the ledger of site {party.name} ends at round {ledger.last_round}, its checkpoint is from round "
            f"{checkpoint.sums}, and lines between them are lost",
            "restore the ledger's home, or name it in [ledger] path; a site that cannot prove what it has summed must "
            "not sum again",
        )


def _save(
    federation: Federation,
    trainer: Trainer,
    store: CheckpointStore,
    model: GlobalModel,
    done: int,
    measured: Tensors | None = None,
) -> None:
    """Every rank helps to collect the private state; the site's leader writes it.

    `measured`: what is still to be summed, since all sites were in the round.
    """
    private: Mapping[str, NDArray[Any]] = trainer.private()
    if not federation.party.leads:
        return
    journal = federation.party.journal
    store.save(
        Checkpoint(
            round_=done,
            sums=federation.round_,
            config=federation.party.agreement.hash,
            tensors=model.tensors,
            outer=model.saved_outer(),
            private=dict(private),
            ledger=b"" if journal is None else journal.ledger.head,
            pending=measured or {},
            whole=measured is not None,
            blind=model.blind,
        )
    )
    federation.sums.keep_until(federation.round_)
