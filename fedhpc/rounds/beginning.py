"""Where a run begins: a fresh model, its newest checkpoint, an epoch before, or the model that the others have."""

from __future__ import annotations

from collections.abc import Callable

from fedhpc.errors import DataError, InterruptedRun, PolicyError
from fedhpc.federation.checkpoint import Checkpoint, CheckpointStore, Tensors
from fedhpc.federation.life import Life
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.session import Session
from fedhpc.ledger.file import LOST_LEDGER_HINT
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import Outbox, Reporter, Trainer
from fedhpc.rounds.later_state import catch_up, save, take_later
from fedhpc.rounds.measuring import report_measured
from fedhpc.rounds.start import Taken, refuse_other_model, take_over

OLD_RUN_HINT = (
    "`fedhpc site ledger adopt RUN` keeps what this site has summed, and `fedhpc federation next --from-model` begins "
    "an epoch from the model in a directory of its own"
)


def begin(
    session: Session,
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
    newest = _newest_common_round(session, store)
    if newest is None and life.stage == "train":
        raise InterruptedRun(
            "there is no model to train yet", "the first exchange makes it: `fedhpc run --stage exchange`", agreed=True
        )
    if newest is None and session.party.agreement.start.from_ is not None:
        return *_go_on(session, trainer, store, reporter, previous), None
    if newest is None:
        # Its checkpoints are lost if what lies beside the ledger says that it had one after a training round.
        lost = bool(session.finished.round_ and session.round_)
        missed = RoundOverError(session.round_, "the checkpoints of this site are gone") if lost else None
        session.round_ = 0
        try:
            if missed is None:
                prepare()
        except RoundOverError as over:
            missed = over  # the others have gone on; their model holds what was to be prepared
        model = GlobalModel(session, trainer.tensors(), trainer.averaged(), checkpointed=True)
        if missed is not None:
            catch_up(session, trainer, store, reporter, model, missed)
            return model, model.rounds, None
        save(session, trainer, store, model, 0)
        session.take_spent()
        return model, 0, None
    checkpoint = store.load(newest)
    _refuse_without_blind(checkpoint)
    if checkpoint.config != session.party.agreement.hash:
        raise DataError(
            f"the run directory belongs to another federation.toml (SHA-256 {checkpoint.config.hex()}, "
            f"now {session.party.agreement.hash.hex()})",
            "continue with the file it was started with; a changed one is a new federation with its own directory",
        )
    if session.party.leads:
        _require_ledger(session, checkpoint)
        store.discard_after(newest)
    model = GlobalModel(session, trainer.tensors(), trainer.averaged(), fresh=False, checkpointed=True)
    model.restore(checkpoint.tensors, checkpoint.outer, checkpoint.round_, checkpoint.blind)
    session.round_ = model.reached = checkpoint.sums
    if not outbox.holds(model.state):  # what is kept there has a newer state of the trainer
        trainer.restore(checkpoint.private)
    reporter.note(f"resumed after round {newest}")
    return model, newest, checkpoint.pending if checkpoint.whole else None


def _go_on(
    session: Session,
    trainer: Trainer,
    store: CheckpointStore,
    reporter: Reporter,
    previous: Callable[[], Taken | None],
) -> tuple[GlobalModel, int]:
    """The model of an epoch before this one, by the sum `start`; it is the first checkpoint of this epoch."""
    session.round_ = 0
    model = GlobalModel(session, trainer.tensors(), trainer.averaged(), fresh=False, checkpointed=True)
    own = previous() if session.party.leads else None
    pending: Tensors | None = None
    try:
        take_over(session, model, own)
    except RoundOverError as over:
        whole = take_later(session, reporter, model, over)
        pending = {} if whole and model.rounds else None
        if not model.rounds:
            refuse_other_model(session, model, own)
    save(session, trainer, store, model, model.rounds, pending)
    if pending is not None:
        report_measured(session, trainer, reporter, model, pending)
    session.take_spent()
    reporter.note("goes on from the model of an epoch before")
    return model, model.rounds


def _newest_common_round(session: Session, store: CheckpointStore) -> int | None:
    """The round to go on from; None if the run is fresh. Leaders look, every rank learns."""
    party = session.party
    answer = b""
    if party.leads:
        newest = session.sums.common_round(store.rounds())
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


def _require_ledger(session: Session, checkpoint: Checkpoint) -> None:
    """Refuse to go on with a ledger that lacks rounds this site has summed: deleted, or put back from a backup.

    Not every round of a checkpoint is in it: a site that was away took the result of some from the others.
    """
    party = session.party
    if not party.masked or party.journal is None:
        return
    ledger = party.journal.ledger
    if not ledger.holds(checkpoint.ledger):
        raise PolicyError(
            f"the ledger of site {party.name} ends at round {ledger.last_round}, its checkpoint is from round "
            f"{checkpoint.sums}, and lines between them are lost",
            LOST_LEDGER_HINT,
        )
