"""A site's place in the rounds: kept in a checkpoint after each, and taken from another site after it was away."""

from __future__ import annotations

from fedhpc.federation.checkpoint import Checkpoint, CheckpointStore, Tensors
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.session import Session
from fedhpc.rounds.best_round import BestRound
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import Reporter, Trainer
from fedhpc.rounds.measuring import Measuring


class Progress:
    """How far one run has come, and what is kept of it. Every rank of the site makes every call."""

    def __init__(
        self,
        session: Session,
        trainer: Trainer,
        store: CheckpointStore,
        reporter: Reporter,
        model: GlobalModel,
        best: BestRound | None = None,
    ) -> None:
        self._session, self._trainer, self._store, self._reporter = session, trainer, store, reporter
        self.model, self.best = model, best or BestRound(None)
        self.measuring = Measuring(session, trainer, store, reporter, model, self.best)

    def save(self, measured: Tensors | None = None) -> None:
        """Put the model into a checkpoint. Every rank writes what it holds of it, the leader the private state.

        `measured`: what is still to be summed, since all sites were in the round; empty if this site has nothing to
        put in.
        """
        session, model = self._session, self.model
        private, parts = self._trainer.private_in_parts()
        journal = session.party.journal
        signed = session.sign_state()  # what is not proven is not kept
        self._store.save(
            Checkpoint(
                round_=model.rounds,
                sums=session.round_,
                config=session.agreement.hash,
                tensors=model.tensors,
                outer=model.saved_outer(),
                private=dict(private) if session.leads else {},
                parts=parts,
                ledger=b"" if journal is None else journal.ledger.head,
                pending=measured or {},
                whole=measured is not None,
                blind=model.blind,
                held=None if model.held.replicated else model.held,
                exchange=session.sums.name,
                signed=signed,
                best=self.best.facts(),
            )
        )
        session.covered(given=model.reached > 0)

    def catch_up(self, over: RoundOverError, measured: Tensors | None = None) -> None:
        """Go on from a state that other sites have reached, and keep it. Raises PeersError if nobody gives it.

        `measured`: by this site, of the model that its update began from.
        """
        # If its vector was in that sum, the others ask it for its measurement too. It may be of an older model, as that
        # of any late update; without its rows this sum would differ from the ones beside it by exactly their number. A
        # site that has lost what it measured says so, and all do without.
        pending = (measured or {}) if self.take_later(over) else None
        self.save(pending)
        if pending is not None:
            self.measuring.report_again(pending)

    def take_later(self, over: RoundOverError) -> bool:
        """Take the later state; whether its training sum was over all sites."""
        session, model = self._session, self.model
        self._reporter.note(f"{over.what}; asking the others for their model")
        before = model.rounds
        caught = model.take_over(lambda into: session.recovery.catch_up(model.state, model.reached, into))
        session.round_ = model.reached = caught.round_
        self._reporter.note(f"caught up: from {before} to {model.rounds} rounds")
        return caught.whole
