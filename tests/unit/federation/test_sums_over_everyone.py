"""What a site that is lost once must not show: counts, weights, numbers summed twice, who holds the largest value.

The faults of the security audit, replayed with real Session and GlobalModel; sums are added up in memory.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_fakes import FakeSums, Meeting, session_of

from fedhpc.app.federation import Federation
from fedhpc.errors import ConfigError, FedhpcError
from fedhpc.federation import scale_choice
from fedhpc.federation.party import Checked, Party, RoundOverError, Summed
from fedhpc.federation.scale_choice import _possible
from fedhpc.federation.session import Session
from fedhpc.federation.stages import Stages
from fedhpc.federation.weighted_sum import total_weight, weight_share
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.measuring import total_of

ROWS = {1: 52, 2: 61, 3: 25, 4: 26}  # held out; private
UNIFORM: dict[str, Any] = {"strategy": {"weights": "uniform"}, "secure": {"bound": 8.0}}


def seen(meeting: Meeting, purpose: str) -> list[tuple[int, ...]]:
    """Over which sites sums of a purpose were opened."""
    return [members for what, members in meeting.opened.values() if what.startswith(purpose)]


# --- audit 3: counts within the training sum


def test_a_lost_site_does_not_show_its_counts() -> None:
    """Round 1 over all four, round 2 without site 4: no two sums of counts differ in that site."""
    meeting = Meeting(4, **UNIFORM)
    meeting.lost[3] = {4}

    def work(session: Session) -> list[Any]:
        number = session.party.number
        model = GlobalModel(session, {"w": np.zeros(3, np.float32)})
        found: list[Any] = []
        for round_ in (1, 2):
            local = {"w": model.tensors["w"] - np.float32(0.25)}
            try:
                whole = model.exchange(local, ROWS[number])
            except RoundOverError:
                return found
            counts = {"n": np.array(ROWS[number])}
            found.append(total_of(session, counts, f"measured after round {round_}") if whole else None)
        return found

    found = meeting.run(work)
    assert found[1][0]["n"] == sum(ROWS.values())
    assert found[1][1] is None
    trained = [plan for plan in meeting.plans if plan.purpose == "train"]
    assert len(trained) == 2
    assert [plan.everyone for plan in trained] == [False, False]
    measured = [plan for plan in meeting.plans if plan.purpose.startswith("measured")]
    assert [(plan.everyone, plan.skip, plan.category) for plan in measured] == [(True, True, "measured")]
    assert seen(meeting, "measured") == [(1, 2, 3, 4)]


def test_the_training_vector_holds_the_model_alone() -> None:
    meeting = Meeting(4, **UNIFORM)
    names: list[list[str]] = []

    def work(session: Session) -> None:
        model = GlobalModel(session, {"w": np.zeros(3, np.float32)})
        model.exchange({"w": np.ones(3, np.float32)}, 1.0)
        names.append([tensor.name for tensor in meeting.parts[1].layout.named])

    meeting.run(work)
    assert names[0] == ["model/w"]


# --- audit 4: weighted means; audit 5: sums without a name


def weighted(session: Session) -> Any:
    number = session.party.number
    share = np.eye(4)[number - 1]  # shares of all sites add up to 1: a total that everybody knows
    return Federation(session).mean({"share": share}, weight=ROWS[number], bound=1.0, name="shares")


@pytest.mark.parametrize(
    ("ask", "which"),
    [
        (weighted, 2),
        (lambda session: Federation(session).mean(np.array([1.0]), weight=3.0, bound=1.0), 2),
        (lambda session: Federation(session).mean(np.array([1.0]), bound=1.0), 1),
        (lambda session: Federation(session).sum({"patients": ROWS[session.party.number]}), 1),
        (lambda session: total_weight(session, 7.0), 1),
    ],
)
def test_a_sum_that_a_lost_site_would_show_itself_by_is_over_everyone(
    ask: Callable[[Session], Any], which: int
) -> None:
    """Where one site is lost in it, no sum is opened at all: over three sites it would show the fourth."""
    meeting = Meeting(4)
    meeting.lost[which] = {4}
    with pytest.raises(RoundOverError):
        meeting.run(ask)
    assert [plan.everyone for plan in meeting.plans] == [True] * which
    again = Meeting(4)
    again.run(ask)


def test_a_name_says_that_a_sum_is_asked_once_only_so_it_may_lack_sites() -> None:
    meeting = Meeting(4)
    meeting.lost[1] = {4}

    def work(session: Session) -> list[str] | None:
        try:
            return Federation(session).sum({"n": ROWS[session.party.number]}, name="patients").sites
        except RoundOverError:
            return None

    assert meeting.run(work)[1] == ["s1", "s2", "s3"]


def test_every_sum_of_weights_is_of_their_class_whatever_its_name() -> None:
    """The class is asked about over another roster also where a few rows have come or gone since."""
    meeting = Meeting(4)

    def work(session: Session) -> None:
        total_weight(session, 7.0, "patients")
        weight_share(session, 7.0, "cases")
        Federation(session).mean(np.array([1.0]), weight=3.0, bound=1.0, name="age")
        total_weight(session, 7.0)

    meeting.run(work)
    assert [plan.category for plan in meeting.plans] == ["weights", "weights", "weights", "age", "weights"]


# --- skip=True


def test_a_sum_that_was_skipped_is_none_everywhere_and_the_next_one_goes_on() -> None:
    meeting = Meeting(4)
    meeting.lost[2] = {3}

    def work(session: Session) -> list[Any]:
        first = Federation(session).sum(np.array([1]), skip=True)
        second = Federation(session).sum(np.array([1]), name="second", skip=True)
        third = Federation(session).sum({"x": 2}, skip=True)
        return [first, second, third, session.round_]

    for found in meeting.run(work).values():
        assert found[0].tolist() == [4]
        assert found[1] is None
        assert found[2]["x"] == 8
        assert found[3] == 3


def test_what_may_be_skipped_is_one_sum_over_everyone() -> None:
    """A scale that some sites have and others skipped would have them ask for different sums afterwards."""

    def work(session: Session) -> None:
        with pytest.raises(ConfigError, match="skip=True"):
            Federation(session).sum({"x": np.array([0.5])}, skip=True)
        with pytest.raises(ConfigError, match="skip=True"):
            Federation(session).sum({"x": 1}, everyone=False, skip=True)
        assert Federation(session).sum({"x": np.array([0.5])}, bound=1.0, skip=True) is not None

    meeting = Meeting(4)
    meeting.run(work)
    assert [plan.purpose for plan in meeting.plans] == ["sum 1"]


def test_a_skipped_sum_leaves_no_salt_behind_that_only_some_sites_hold() -> None:
    meeting = Meeting(4)

    def work(session: Session) -> tuple[bytes, bytes]:
        Federation(session).sum({"x": 1})
        before = session.last_salt
        Federation(session).sum({"x": 1}, skip=True)
        return before, session.last_salt

    for before, after in meeting.run(work).values():
        assert before == after != b""


# --- audit 10: counts of exponents


class Cheat(FakeSums):
    """Site 3's sums: it adds `change` to every count of exponents, and itself does not mind."""

    change: tuple[tuple[int, int], ...]

    def open(self, checked: Checked, stages: Stages) -> Summed:
        cheats = checked.plan.purpose.startswith("scale") and self._party.number == 3
        for counts in checked.vector.views().values() if cheats else ():
            for where, by in self.change:
                counts[where] += by
        return super().open(checked, stages)


@pytest.fixture(autouse=True)
def _site_3_does_not_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    real = scale_choice.check_counts

    def check(party: Party, *rest: Any) -> None:
        if party.number != 3:
            real(party, *rest)

    monkeypatch.setattr(scale_choice, "check_counts", check)


LARGEST = {1: 0.3, 2: 0.2, 3: 0.1, 4: 100.0}  # site 4 holds the outlier: exponents -1, -2, -3 and 7
TOP, BELOW, LOW = 7 + 64, 6 + 64, -3 + 64


Change = tuple[tuple[int, int], ...]


def move(*changes: tuple[int, int]) -> Change:
    """Bins, and what is added to each."""
    return changes


def cheated(
    change: Change, folder: Path | None = None, values: dict[int, float] | None = None
) -> tuple[dict[int, str], Meeting, dict[int, Any]]:
    """A round of training with site 3's change: what each site raised, and its model."""
    meeting = Meeting(4, strategy={"weights": "uniform"})
    raised: dict[int, str] = {}
    models: dict[int, Any] = {}
    kind = type("CheatAs", (Cheat,), {"change": change})

    def work(session: Session) -> None:
        number = session.party.number
        party = session.party
        if folder is not None:
            (folder / str(number)).mkdir(exist_ok=True)
            party = dataclasses.replace(party, memory=folder / str(number))
        mine = session_of(party, kind(meeting, party))
        model = GlobalModel(mine, {"w": np.zeros(2, np.float32)})
        update = np.float32((values or LARGEST)[number])
        try:
            model.exchange({"w": model.tensors["w"] - np.array([update, 0], np.float32)}, 1.0)
        except FedhpcError as error:
            raised[number] = f"{type(error).__name__} {error.exit_code} {error.what} / {error.hint}"
            meeting.barrier.abort()
        except threading.BrokenBarrierError:
            raised[number] = "stopped by another site's end"
        models[number] = model.tensors["w"].tolist()

    meeting.run(work)
    return raised, meeting, models


@pytest.mark.parametrize(
    "change",
    [
        move((TOP, -1), (BELOW, 1)),  # the oracle: only the outlier's own bin is gone
        move((LOW, -1), (127, -1), (LOW, 2)),  # a bin below zero
        move((LOW, 4), (LOW - 1, -4)),  # a bin above the number of sites
        move((LOW, 1)),  # more marks than sites
        move((LOW, -1)),
    ],
)
def test_counts_that_no_honest_sites_made_stop_the_run_and_blame_nobody(change: Change, tmp_path: Path) -> None:
    raised, _, models = cheated(change, tmp_path)
    assert raised, models
    words = [text for text in raised.values() if text != "stopped by another site's end"]
    assert words
    for text in words:
        assert text.startswith("PolicyError 77")
        assert not any(name in text for name in ("s1", "s2", "s3", "s4", "'w'", "2^", "100")), text
        assert "bound" in text
    assert all(tensor == [0.0, 0.0] for tensor in models.values())  # nothing was applied


def test_counts_that_wrap_around_to_the_right_total_are_not_possible() -> None:
    own = np.zeros(8, np.int64)
    own[0] = 1
    wrapped = np.array([4, 2**62, 2**62, 2**62, 2**62, 0, 0, 0])
    assert int(wrapped.sum()) == 4
    assert not _possible(wrapped, own, 4)
    assert _possible(np.array([4, 0, 0, 0, 0, 0, 0, 0]), own, 4)


def test_after_such_a_stop_this_epoch_never_counts_again(tmp_path: Path) -> None:
    cheated(move((TOP, -1), (BELOW, 1)), tmp_path)
    raised, meeting, _ = cheated(move(), tmp_path)
    assert any("stopped before" in text for text in raised.values()), raised
    assert not any(plan.purpose.startswith("scale") for plan in meeting.plans if 1 in raised)
    for stopped in tmp_path.glob("*/*.stopped"):  # another epoch has another configuration, and counts
        stopped.rename(stopped.with_name("ab" * 32 + ".stopped"))
    raised, _, models = cheated(move(), tmp_path)
    assert raised == {}
    assert models[1] == models[4] != [0.0, 0.0]


def test_a_mark_at_the_last_bin_does_not_round_the_model_to_zero_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Site 3 marks 2^63 and adds nothing: everybody's update would be rounded to zero."""
    caplog.set_level(logging.WARNING, logger="fedhpc.federation")
    values = {1: 0.3, 2: 0.2, 3: 0.0, 4: 0.1}
    lowest = 0
    raised, _, models = cheated(move((lowest, -1), (127, 1)), tmp_path, values)
    assert "rounded to zero" in caplog.text
    stopped = [text for text in raised.values() if "rounded the sum of the updates to zero" in text]
    assert stopped, (raised, models)
    assert all(text.startswith("PolicyError 77") for text in stopped)
    again, _, _ = cheated(move(), tmp_path, values)
    assert any("stopped before" in text for text in again.values())


def test_a_site_with_tiny_values_is_warned_and_the_round_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="fedhpc.federation")
    raised, _, models = cheated(move(), None, {1: 1.0, 2: 2.0, 3: 1e-15, 4: 4.0})
    assert raised == {}
    assert models[1] == models[3] == [-1.75, 0.0]
    assert caplog.text.count("all values of this site are rounded to zero") == 1


def test_zero_everywhere_is_no_fault() -> None:
    raised, _, models = cheated(move(), None, dict.fromkeys(LARGEST, 0.0))
    assert raised == {}
    assert models[1] == [0.0, 0.0]


def test_updates_that_cancel_are_no_fault() -> None:
    raised, _, models = cheated(move(), None, {1: 1.0, 2: -1.0, 3: 0.5, 4: -0.5})
    assert raised == {}
    assert models[1] == [0.0, 0.0]
