"""The best round by a federated metric, and an end before the last round because none gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting
from hypothesis import given
from hypothesis import strategies as st
from loop_fakes import Scripted, Store, Trainer

from fedhpc.errors import ConfigError, InterruptedRun
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.party import SumKind
from fedhpc.federation.session import Session
from fedhpc.rounds.best_round import BestRound, Choice
from fedhpc.rounds.loop import Run
from fedhpc.sums.unconnected import NeverAway

SITES = 3


def choice(keep: str, patience: int = 0, min_delta: float = 0.0) -> Choice:
    found = Choice.of(keep, patience, min_delta)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("keep", "metric", "least"),
    [
        ("best:auc", "auc", False),
        ("best:loss", "loss", True),
        ("best:rmse", "rmse", True),
        ("least:concordance", "concordance", True),
        ("most:loss", "loss", False),
    ],
)
def test_what_is_better(keep: str, metric: str, least: bool) -> None:
    assert (choice(keep).metric, choice(keep).least) == (metric, least)


@pytest.mark.parametrize(
    "given",
    [
        ("auc",), ("best:",), ("worst:auc",), ("best:a b",), ("best:auc", -1), ("best:auc", 1, math.nan), ("", 3),
        ("", 0, 0.1),
    ],
)  # fmt: skip
def test_refused(given: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        Choice.of(*given)
    assert refused.value.exit_code == 64


@given(st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, math.nan, math.inf])), max_size=30),
       st.booleans(), st.integers(1, 5))  # fmt: skip
def test_rounds_without_the_metric_neither_count_nor_reset(
    values: list[float | None], least: bool, patience: int
) -> None:
    best = BestRound(choice("least:m" if least else "most:m", patience))
    defined: list[tuple[int, float]] = []
    for round_, value in enumerate(values):
        best.saw(round_, {"m": value} if round_ % 3 else {} if value is None else {"m": value})
        if value is not None and math.isfinite(value):
            defined.append((round_, value))
        if not defined:
            assert best.round_ is None
            assert best.facts() == best.record() == {}
            continue
        top = (min if least else max)(value for _, value in defined)
        first = next(at for at, (_, value) in enumerate(defined) if value == top)
        assert (best.round_, best.value) == defined[first]
        assert best.would_stop == (len(defined) - 1 - first >= patience)
        again = BestRound(best.choice)
        again.restore(best.facts())
        assert (again.facts(), again.would_stop) == (best.facts(), best.would_stop)


def test_a_gain_below_min_delta_is_none() -> None:
    best = BestRound(choice("best:auc", 2, 0.01))
    assert best.saw(1, {"auc": 0.7})
    assert not best.saw(2, {"auc": 0.705})
    assert not best.would_stop
    assert not best.saw(3, {"auc": 0.709})
    assert best.would_stop
    assert best.saw(4, {"auc": 0.7101})


class Scored(Trainer):
    """Its model after r rounds has the score SCORES[r], at every site."""

    def __init__(self, site: int, scores: list[float]) -> None:
        super().__init__(site)
        self.scores = scores

    def measure(self) -> Tensors:
        score = self.scores[min(self.steps // 4, len(self.scores) - 1)]
        return {"n": np.array(10), "score": np.array(10 * score)}


class Heard:
    """A Reporter that remembers."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def round_done(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def note(self, text: str) -> None:
        self.notes.append(text)


def play(
    scores: list[float], patience: int, rounds: int = 9, choices: Mapping[int, Choice] | None = None
) -> tuple[dict[int, Heard], dict[int, Store], set[str]]:
    told, stores = {u: Heard() for u in range(1, SITES + 1)}, {u: Store() for u in range(1, SITES + 1)}

    def work(session: Session) -> str:
        me = session.party.number
        by = (choices or {}).get(me, choice("best:score", patience))
        return Run(session, Scored(me, scores), stores[me], told[me], choice=by).run().model.sha256()

    models = set(Meeting(SITES, rounds=rounds, secure={"mode": "off"}).run(work).values())
    return told, stores, models


def test_all_sites_stop_one_round_after_the_patience_is_over() -> None:
    # After 0, 1, 2 … rounds. The best is that after 2; 3 and 4 wait; each is measured in the round after it.
    told, stores, models = play([0.1, 0.5, 0.9, 0.8, 0.7, 0.6, 0.99], 2)
    assert len(models) == 1
    for u in told:
        assert [r["round"] for r in told[u].records] == [1, 2, 3, 4, 5, 6, 6]
        assert [r.get("best_round") for r in told[u].records] == [0, 1, 2, 2, 2, 2, 6]  # the final model is the best
        assert stores[u].apart == [0, 1, 2, 6]
        assert any("all sites stop after round 6: score had not become better" in n for n in told[u].notes)


def test_without_patience_all_rounds_run_and_the_best_is_kept_apart() -> None:
    told, stores, _ = play([0.1, 0.5, 0.9, 0.8, 0.7, 0.6], 0, rounds=5)
    for u in told:
        assert told[u].records[-1]["round"] == 5
        assert told[u].records[-1]["best_round"] == 2
        assert stores[u].apart == [0, 1, 2]


def test_sites_that_do_not_agree_go_on() -> None:
    """The last bits of a metric may differ between processors; here one site is more patient."""
    told, _, models = play([0.9, 0.1], 2, rounds=6, choices={2: choice("best:score", 9)})
    assert len(models) == 1
    assert [r["round"] for r in told[1].records] == [1, 2, 3, 4, 5, 6, 6]
    assert any("2 of 3 sites would stop here" in note for note in told[3].notes)
    assert not any("all sites stop" in note for note in told[1].notes)


def test_a_metric_that_the_task_lacks_is_refused_before_anything_is_exchanged() -> None:
    meeting = Meeting(SITES, rounds=2, secure={"mode": "off"})

    def work(session: Session) -> None:
        me = session.party.number
        Run(session, Scored(me, [0.5]), Store(), Heard(), choice=choice("best:auc")).run()

    with pytest.raises(ConfigError, match="the metric 'auc', which this task does not have") as refused:
        meeting.run(work)
    assert "it has score" in refused.value.lines()
    assert not [plan for plan in meeting.plans if plan.kind is SumKind.TRAINING]


@pytest.mark.parametrize("told_after", [5, 11, 14])
def test_a_run_that_is_stopped_goes_on_with_what_it_has_seen(told_after: int) -> None:
    scores = [0.1, 0.5, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6]
    whole = play(scores, 3)
    told, stores = {u: Heard() for u in range(1, SITES + 1)}, {u: Store() for u in range(1, SITES + 1)}
    trainers = {u: Scored(u, scores) for u in told}

    class Newest(NeverAway):
        def common_round(self, held_here: list[int]) -> int | None:
            return max(held_here, default=None)

    def work(life: Any) -> Any:
        def one(session: Session) -> str:
            me = session.party.number
            session.recovery = Newest()
            run = Run(session, trainers[me], stores[me], told[me], life=life(), choice=choice("best:score", 3))
            return run.run().model.sha256()

        return one

    with pytest.raises(InterruptedRun):
        Meeting(SITES, rounds=9, secure={"mode": "off"}).run(work(lambda: Scripted(told_after)))
    models = set(Meeting(SITES, rounds=9, secure={"mode": "off"}).run(work(Scripted)).values())
    assert models == whole[2]
    for u in told:
        assert told[u].records[-1]["round"] == whole[0][u].records[-1]["round"] < 9
        assert told[u].records[-1]["best_round"] == 2
        assert stores[u].apart[-1] == 2
