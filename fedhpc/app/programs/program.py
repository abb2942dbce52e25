"""What a program is to the run that starts it (app/run.py)."""

from __future__ import annotations

from typing import Protocol

from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.life import Life
from fedhpc.federation.session import Session
from fedhpc.rounds.interfaces import Reporter
from fedhpc.rounds.loop import Outcome


class Program(Protocol):
    """One thing that all sites of a federation do together.

    It is opened before the run begins to tell and to keep anything, so that a mistake in its files leaves nothing
    behind; a program is therefore made by a context manager, which also closes what it has opened.
    """

    def run(self, session: Session, life: Life, store: CheckpointStore, reporter: Reporter) -> Outcome:
        """Do it to its end, in as many jobs as that takes. Every rank of every site calls it.

        `store` and `reporter` are those of the run directory. Raises InterruptedRun, on every rank, once what the next
        job needs is kept.
        """
        ...
