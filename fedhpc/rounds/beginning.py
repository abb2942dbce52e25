"""Where a run begins: a fresh model, its newest checkpoint, an epoch before, or the model that the others have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedhpc.errors import DataError, InterruptedRun, PolicyError
from fedhpc.federation.checkpoint import Checkpoint, CheckpointStore, Tensors
from fedhpc.federation.life import Life
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.session import Session
from fedhpc.ledger.file import LOST_LEDGER_HINT
from fedhpc.rounds.best_round import BestRound, Choice
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import Outbox, Reporter, Trainer
from fedhpc.rounds.progress import Progress
from fedhpc.rounds.start_sum import Taken, refuse_other_model, take_over
from fedhpc.rounds.update import Transform, held_in
from fedhpc.secure.signed_state import refuse_unsigned

OLD_RUN_HINT = (
    "`fedhpc site ledger adopt RUN` keeps what this site has summed, and `fedhpc federation next --from-model` begins "
    "an epoch from the model in a directory of its own"
)


class Beginning:
    """Finds the model that one run goes on from. Every rank of the site makes every call."""

    def __init__(
        self,
        session: Session,
        trainer: Trainer,
        store: CheckpointStore,
        reporter: Reporter,
        outbox: Outbox,
        life: Life,
        transforms: Sequence[Transform],
        choice: Choice | None = None,
    ) -> None:
        self._session, self._trainer, self._store, self._reporter = session, trainer, store, reporter
        self._outbox, self._life, self._transforms, self._choice = outbox, life, transforms, choice

    def begin(
        self, prepare: Callable[[], None], previous: Callable[[], Taken | None]
    ) -> tuple[Progress, Tensors | None]:
        """The model to go on from, and what was measured in its newest round and is still to be summed, or None.

        `prepare` and `previous`: as in `Run`. Raises InterruptedRun where only training is asked for and there is no
        model yet; DataError, PolicyError for a checkpoint or a ledger that nobody can go on from.
        """
        newest = self._newest_common_round()
        if newest is not None:
            return self._resume(newest)
        if self._life.stage == "train":
            raise InterruptedRun(
                "there is no model to train yet",
                "the first exchange makes it: `fedhpc run --stage exchange`",
                agreed=True,
            )
        if self._session.agreement.start.from_ is not None:
            return self._go_on(previous), None
        return self._begin_fresh(prepare), None

    def _begin_fresh(self, prepare: Callable[[], None]) -> Progress:
        """The trainer's own model, after `prepare`; or the others' model if they have gone on without this site."""
        session = self._session
        # Its checkpoints are lost if what lies beside the ledger says that it had one after a training round.
        lost = bool(session.finished.round_ and session.round_)
        missed = RoundOverError(session.round_, "the checkpoints of this site are gone") if lost else None
        session.round_ = 0
        try:
            if missed is None:
                prepare()
        except RoundOverError as over:
            missed = over  # the others have gone on; their model holds what was to be prepared
        progress = self._progress(fresh=True)
        if missed is not None:
            progress.catch_up(missed)
            return progress
        progress.save()
        session.take_spent()
        return progress

    def _go_on(self, previous: Callable[[], Taken | None]) -> Progress:
        """The model of an epoch before this one, by the sum `start`; it is the first checkpoint of this epoch."""
        session = self._session
        session.round_ = 0
        progress = self._progress(fresh=False)
        model = progress.model
        own = previous() if session.leads else None
        pending: Tensors | None = None
        try:
            take_over(session, model, own)
        except RoundOverError as over:
            whole = progress.take_later(over)
            pending = {} if whole and model.rounds else None
            if not model.rounds:
                refuse_other_model(session, model, own)
        progress.save(pending)
        if pending is not None:
            progress.measuring.report_again(pending)
        session.take_spent()
        self._reporter.note("goes on from the model of an epoch before")
        return progress

    def _resume(self, newest: int) -> tuple[Progress, Tensors | None]:
        """The checkpoint of round `newest`, which every site can go on from."""
        session = self._session
        held = held_in(session, self._trainer.forms())
        checkpoint = self._store.load(newest, None if held.replicated else held)
        _refuse_without_blind(checkpoint)
        if checkpoint.config != session.agreement.hash:
            raise DataError(
                f"the run directory belongs to another federation.toml (SHA-256 {checkpoint.config.hex()}, "
                f"now {session.agreement.hash.hex()})",
                "continue with the file it was started with; a changed one is a new federation with its own directory",
            )
        if session.leads:
            _require_ledger(session, checkpoint)
            self._store.discard_after(newest)
        progress = self._progress(fresh=False)
        model = progress.model
        progress.best.restore(checkpoint.best)
        model.restore(checkpoint.tensors, checkpoint.outer, checkpoint.round_, checkpoint.blind)
        session.round_ = model.reached = checkpoint.sums
        if session.leads:
            _refuse_unsigned(session, checkpoint)
        if not self._outbox.holds(model.state):  # what is kept there has a newer state of the trainer
            self._trainer.restore(checkpoint.private)
            self._trainer.restore_parts(checkpoint.parts)
        self._reporter.note(f"resumed after round {newest}")
        return progress, checkpoint.pending if checkpoint.whole else None

    def _progress(self, *, fresh: bool) -> Progress:
        """A run at its beginning, with the trainer's model. `fresh`: see GlobalModel."""
        trainer = self._trainer
        held = held_in(self._session, trainer.forms())
        trainer.hold(held)
        model = GlobalModel(
            self._session,
            trainer.tensors(),
            trainer.averaged(),
            held=held,
            fresh=fresh,
            checkpointed=True,
            transforms=self._transforms,
        )
        return Progress(self._session, trainer, self._store, self._reporter, model, BestRound(self._choice))

    def _newest_common_round(self) -> int | None:
        """The round to go on from; None if the run is fresh. Leaders look, every rank learns."""
        party = self._session.party
        answer = b""
        if party.leads:
            newest = self._session.recovery.common_round(self._store.rounds())
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


def _refuse_unsigned(session: Session, checkpoint: Checkpoint) -> None:
    """PolicyError for a state that was summed in one job of all sites and that not all of them signed.

    Over a relay τ of them did, and their messages lie beside the checkpoints.
    """
    party = session.party
    if party.masked and checkpoint.sums and checkpoint.exchange == "mpi":
        try:
            refuse_unsigned(checkpoint.signed, party.members, session.state)
        except PolicyError as error:
            raise PolicyError(
                f"the checkpoint of site {party.name} of round {checkpoint.round_} is not proven: {error.what}",
                "remove it, so that all sites go on from an older one; the ledger lets the same rounds repeat",
            ) from None


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
