"""An update whose round ended without its site: summed again with a newer model, kept, or given up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting
from loop_fakes import Box, Store, Trainer
from typing_extensions import override

from fedhpc.errors import InterruptedRun
from fedhpc.federation.party import RoundOverError
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.interfaces import LocalResult
from fedhpc.rounds.local_round import Local
from fedhpc.rounds.loop import Run
from fedhpc.rounds.null_objects import Silence
from fedhpc.rounds.update import Base
from fedhpc.sums.unconnected import NeverAway, OwnRanks

ROUNDS, STALENESS = 9, 2
BEGUN = b"s" * 32
LOCAL = Local(4, BEGUN, {"w": np.zeros(1)}, LocalResult(1, 1, 0.0, 0.0), {})


class Away(NeverAway):
    """The ledger's word about the update."""

    free = True

    @override
    def is_free(self, base: bytes) -> bool:
        assert base == BEGUN
        return self.free


class Missed:
    """A model, and the progress of its site, that miss the first round and catch up by some rounds."""

    def __init__(self, by: int, then: BaseException | None = None) -> None:
        self.model, self._by, self._then = self, by, then
        self.rounds, self.state, self.sums = 3, BEGUN, 0

    def exchange(self, local: Any, samples: float, base: Base) -> bool:
        self.sums += 1
        if self.sums == 1 and self._by:
            raise RoundOverError(8, "round 8 ended without this site")
        if self._then is not None:
            raise self._then
        return True

    def catch_up(self, over: RoundOverError, measured: Any) -> None:
        self.rounds, self.state = self.rounds + self._by, b"t" * 32


def begun(missed: Missed, *, free: bool = True) -> tuple[Run, Box]:
    session = Meeting(3, rounds=ROUNDS, cohort={"policy": "buffered", "staleness": STALENESS}).session(1)
    session.recovery = away = Away()
    away.free = free
    box = Box()
    return Run(session, Trainer(1), Store(), Silence(), outbox=box), box


def summed(missed: Missed, *, free: bool = True) -> bool | None:
    run, _ = begun(missed, free=free)
    return run._sum(missed, Base({}, BEGUN, 3), LOCAL)  # type: ignore[arg-type]


@pytest.mark.parametrize(("by", "sums"), [(0, 1), (1, 2), (STALENESS, 2), (STALENESS + 1, 1), (ROUNDS - 3, 1)])
def test_a_late_update_is_summed_while_it_is_young_enough(by: int, sums: int) -> None:
    missed = Missed(by)
    assert summed(missed) is (True if sums == 2 or by == 0 else None)
    assert missed.sums == sums


def test_an_update_that_may_be_in_the_round_is_not_summed_again() -> None:
    missed = Missed(1)
    assert summed(missed, free=False) is None
    assert missed.sums == 1


@pytest.mark.parametrize(("by", "agreed", "keeps"), [(0, True, 1), (0, False, 0), (1, True, 0)])
def test_stopped_in_a_sum_its_work_is_kept_where_it_belongs_to_the_model(by: int, agreed: bool, keeps: int) -> None:
    """After catching up the next job begins from the newer model, which a checkpoint has."""
    missed = Missed(by, InterruptedRun("told", agreed=agreed))
    run, box = begun(missed)
    with pytest.raises(InterruptedRun):
        run._sum(missed, Base({}, BEGUN, 3), LOCAL)  # type: ignore[arg-type]
    assert box.keeps == keeps


def test_a_site_that_was_not_told_stops_with_one_that_was() -> None:
    """It keeps its work, as the other does."""
    session = Meeting(3).session(1)

    class Elsewhere(OwnRanks):
        @override
        def agree_to_stop(self, word: str) -> str:
            return "the clock of another site"

    session.peers = Elsewhere(session.party)
    box, trainer = Box(), Trainer(1)
    run = Run(session, trainer, Store(), Silence(), outbox=box)
    with pytest.raises(InterruptedRun, match="in round 1, after 4 steps: the clock of another site") as stopped:
        run._train(GlobalModel(session, trainer.tensors()))
    assert stopped.value.agreed
    assert box.work is not None
    assert box.work.result.whole
