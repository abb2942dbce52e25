"""A site's place in the rounds: kept in a checkpoint after each, and taken from another site after it was away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedhpc.federation.checkpoint import Checkpoint, CheckpointStore, Tensors
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.session import Session
from fedhpc.federation.state_tensors import total_bytes
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import Reporter, Trainer
from fedhpc.rounds.measuring import report_measured


def catch_up(
    session: Session,
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
    # any late update; without its rows this sum would differ from the ones beside it by exactly their number. A site
    # that has lost what it measured says so, and all do without.
    pending = (measured or {}) if take_later(session, reporter, model, over) else None
    save(session, trainer, store, model, model.rounds, pending)
    if pending is not None:
        report_measured(session, trainer, reporter, model, pending)


def take_later(session: Session, reporter: Reporter, model: GlobalModel, over: RoundOverError) -> bool:
    """Take the later state; whether its training sum was over all sites."""
    reporter.note(f"{over.what}; asking the others for their model")
    before = model.rounds
    caught = session.sums.catch_up(model.state, model.reached, total_bytes(model.arrays()))
    model.take_over(caught.data)
    session.round_ = model.reached = caught.round_
    reporter.note(f"caught up: from {before} to {model.rounds} rounds")
    return caught.whole


def save(
    session: Session,
    trainer: Trainer,
    store: CheckpointStore,
    model: GlobalModel,
    done: int,
    measured: Tensors | None = None,
) -> None:
    """Every rank helps to collect the private state; the site's leader writes it.

    `measured`: what is still to be summed, since all sites were in the round; empty if this site has nothing to put in.
    """
    private: Mapping[str, NDArray[Any]] = trainer.private()
    if not session.party.leads:
        return
    journal = session.party.journal
    store.save(
        Checkpoint(
            round_=done,
            sums=session.round_,
            config=session.party.agreement.hash,
            tensors=model.tensors,
            outer=model.saved_outer(),
            private=dict(private),
            ledger=b"" if journal is None else journal.ledger.head,
            pending=measured or {},
            whole=measured is not None,
            blind=model.blind,
        )
    )
    session.sums.keep_until(session.round_, given=model.reached > 0)
