"""Rounds that are interrupted anywhere: what is needed was kept, nothing is trained twice, the model is the same."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting, session_of
from loop_fakes import STEPS, Box, Scripted, Store, Trainer

from fedhpc.errors import InternalError, InterruptedRun
from fedhpc.federation.checkpoint import Tensors, read_into
from fedhpc.federation.life import Stage
from fedhpc.federation.session import Session
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.rounds.interfaces import LocalResult, LocalWork
from fedhpc.rounds.local_round import Local, LocalRounds
from fedhpc.rounds.loop import Run
from fedhpc.rounds.null_objects import Endless, Silence
from fedhpc.rounds.update import Transform, Update
from fedhpc.sums.unconnected import NeverAway, NoSums, OwnRanks
from fedhpc.train.recorded import RecordedTrainer

SITES, ROUNDS = 3, 3
UNMASKED: dict[str, Any] = {"secure": {"mode": "off"}, "strategy": {"name": "diloco"}}


class Site:
    """What one site has on its disk, and its jobs."""

    def __init__(self, number: int, transforms: Sequence[Transform] = ()) -> None:
        self.number, self.store, self.box, self.transforms = number, Store(), Box(), transforms
        self.steps = 0
        self.said: list[str] = []

    def job(self, session: Session, life: Endless) -> str:
        """One job: the hash of the final model, or why it was interrupted, after "75: "."""
        if life.stage == "train":
            session = session_of(session.party, NoSums())
        trainer: Any = Trainer(self.number)
        if life.stage == "exchange" and self.store.kept:
            if self.box.work is None:
                return "75: nothing to exchange"
            trainer = RecordedTrainer(copy.deepcopy(self.box.work))
        try:
            outcome = Run(
                session, trainer, self.store, Silence(), outbox=self.box, life=life, transforms=self.transforms
            ).run()
        except InterruptedRun as stopped:
            return f"75: {stopped.what}" if stopped.agreed else "only this rank was interrupted"
        finally:
            self.steps += getattr(trainer, "here", 0)
        tensors = b"".join(outcome.model.tensors[n].tobytes() for n in sorted(outcome.model.tensors))
        return hashlib.sha256(tensors + repr(sorted(outcome.metrics.items())).encode()).hexdigest()


class Sites:
    """All sites through jobs, each with a fresh federation."""

    def __init__(self, transforms: Sequence[Transform] = (), **sections: Any) -> None:
        self.sites = {u: Site(u, transforms) for u in range(1, SITES + 1)}
        self.sections = UNMASKED | sections

    def job(
        self, life: Callable[[int], Endless] = lambda u: Endless(), interrupt: tuple[str, int] = ("", 0)
    ) -> dict[int, str]:
        meeting = Meeting(SITES, rounds=ROUNDS, **self.sections)
        meeting.interrupt = interrupt
        return meeting.run(lambda session: self.sites[session.party.number].job(session, life(session.party.number)))

    def steps(self) -> set[int]:
        """How many steps each site has trained in all its jobs."""
        return {site.steps for site in self.sites.values()}

    def boxes(self) -> list[LocalWork | None]:
        return [site.box.work for site in self.sites.values()]


@pytest.fixture(scope="module")
def unbroken() -> str:
    (found,) = set(Sites().job().values())
    assert len(found) == 64
    return found


def test_told_at_every_moment_it_is_asked(unbroken: str) -> None:
    """All sites at once: before a round, at each step, after training, before the final model's measurement."""
    places = set()
    for moment in range(200):
        sites = Sites()
        first = sites.job(lambda u, moment=moment: Scripted(moment))  # type: ignore[misc]
        if all(len(word) == 64 for word in first.values()):
            break
        assert all(word.startswith("75: stopped ") and word.endswith("told") for word in first.values()), first
        places |= set(first.values())
        assert set(sites.job().values()) == {unbroken}, moment
        assert sites.steps() == {ROUNDS * STEPS}, moment  # nothing was trained twice
        assert sites.boxes() == [None] * SITES
    # Before a round, between its steps, after them; and where only the time of keeping is asked for.
    assert moment == ROUNDS * (1 + (STEPS - 1) + 1 + 1) - 1
    assert {f"75: stopped before round {r}: told" for r in (1, 2, 3)} <= places
    assert {f"75: stopped in round {r}, after {k} steps: told" for r in (1, 2, 3) for k in (1, 2, 3, 4)} <= places


@pytest.mark.parametrize("kind", ["open", "settle"])
def test_left_in_every_sum(unbroken: str, kind: str) -> None:
    """The weights; scale, update and measurement of each round; the final metrics; before it is opened, and after."""
    for number in range(100):
        sites = Sites()
        first = sites.job(interrupt=(kind, number))
        if all(len(word) == 64 for word in first.values()):
            break
        assert set(first.values()) == {f"75: left in {kind}"}
        works = sites.boxes()
        measuring = number == 3 * ROUNDS + 1 or (number > 0 and number % 3 == 0)
        if not measuring:  # after its checkpoint a round needs no work any more
            assert all(work is not None and work.result.whole for work in works), (number, works)
        assert set(sites.job().values()) == {unbroken}, number
        assert sites.steps() == {ROUNDS * STEPS}, number
        assert sites.boxes() == [None] * SITES
    assert number == 1 + 3 * ROUNDS + 1


class Noise:
    """Noise that is the same whenever the round is repeated."""

    name = "noise"

    def apply(self, update: Update) -> Update:
        draw = np.random.default_rng(list(update.base.state))
        for tensor in update.tensors.values():
            tensor += draw.normal(size=tensor.shape).astype(tensor.dtype)
        return update


@pytest.mark.parametrize("kind", ["open", "settle"])
def test_a_round_that_is_repeated_is_transformed_to_the_same_bits(kind: str, unbroken: str) -> None:
    (expected,) = set(Sites([Noise()]).job().values())
    assert expected != unbroken
    sites = Sites([Noise()])
    for number in (2, 4):  # W was the first sum; each round has one of updates and one of what was measured
        assert set(sites.job(interrupt=(kind, number)).values()) == {f"75: left in {kind}"}
    assert set(sites.job().values()) == {expected}
    assert sites.steps() == {ROUNDS * STEPS}


def test_stopped_again_and_again(unbroken: str) -> None:
    """Every job lasts for two questions."""
    sites = Sites()
    for _ in range(100):
        found = set(sites.job(lambda u: Scripted(2)).values())
        if all(len(word) == 64 for word in found):
            break
    assert found == {unbroken}
    assert sites.steps() == {ROUNDS * STEPS}


def test_stages(unbroken: str) -> None:
    """Training without a federation and exchanging without a trainer, in turn."""
    sites = Sites()
    seen = []
    for number in range(40):
        stage: Stage = "train" if number % 2 else "exchange"
        (found,) = set(sites.job(lambda u, stage=stage: Scripted(stage=stage)).values())  # type: ignore[misc]
        seen.append(found)
        if len(found) == 64:
            break
    assert seen[-1] == unbroken
    assert sites.steps() == {ROUNDS * STEPS}
    trained = [f"75: round {r} is trained; its update is in the outbox" for r in (1, 2, 3)]
    assert seen[1:-1:2] == [*trained, "75: the final model is measured; the next exchange sums that"]
    untrained = [f"75: nothing to exchange: round {r} is not trained yet" for r in (1, 2, 3)]
    assert seen[0:-1:2] == [*untrained, "75: nothing to exchange: the final model is not measured yet"]


def test_an_exchange_does_not_train_the_rest_of_a_round(unbroken: str) -> None:
    """Training was stopped in the middle; the exchange that follows leaves its work alone."""
    sites = Sites()
    sites.job(lambda u: Scripted(stage="exchange"))
    sites.job(lambda u: Scripted(2, stage="train"))
    kept = sites.boxes()
    assert [work.result.whole for work in kept if work is not None] == [False] * SITES
    assert set(sites.job(lambda u: Scripted(stage="exchange")).values()) == {
        "75: nothing to exchange: round 1 is not trained yet"
    }
    assert [w.result.steps for w in sites.boxes() if w] == [w.result.steps for w in kept if w] == [2] * SITES
    for number in range(40):
        stage: Stage = "exchange" if number % 2 else "train"
        (found,) = set(sites.job(lambda u, stage=stage: Scripted(stage=stage)).values())  # type: ignore[misc]
        if len(found) == 64:
            break
    assert found == unbroken
    assert sites.steps() == {ROUNDS * STEPS}


def test_training_before_the_first_exchange_says_so() -> None:
    found = Sites().job(lambda u: Scripted(stage="train"))
    assert set(found.values()) == {"75: there is no model to train yet"}


def test_no_round_begins_that_would_not_end() -> None:
    def life(number: int) -> Scripted:
        made = Scripted()
        made.may = "5 s are left"
        return made

    sites = Sites()
    assert set(sites.job(life).values()) == {"75: stopped before round 1: 5 s are left"}
    assert sites.steps() == {0}


# --- the local part alone


def local(box: Box, life: Scripted, trainer: Any = None) -> tuple[LocalRounds, Any]:
    trainer = trainer or Trainer(1)
    return LocalRounds(SerialGroup(), trainer, box, life), trainer


def arrays_of(work: Local) -> Tensors:
    into = {name: np.empty_like(tensor) for name, tensor in ANCHOR.items()}
    read_into(into, work.tensors)
    return into


STATE, ANCHOR = b"s" * 32, {"w": np.ones(5, np.float32), "running": np.zeros(2, np.float32)}


def test_work_is_kept_at_steps_when_it_is_due() -> None:
    """And the round goes on; after a kill it is taken up from the newest such step."""
    whole, trainer = local(Box(), Scripted())
    expected = whole.work(1, STATE, ANCHOR)
    due = iter([False, True, True])
    box = Box()
    life = Scripted(due=lambda: next(due))
    rounds, trainer = local(box, life)
    found = rounds.work(1, STATE, ANCHOR)
    assert found.result.whole
    assert (box.keeps, life.kepts) == (2, 2)
    kept = box.work
    assert kept is not None
    assert not kept.result.whole
    assert list(kept.private["at"]) == [1, 3]
    again, trainer = local(box, Scripted())
    resumed = again.work(1, STATE, ANCHOR)
    assert (trainer.here, trainer.measurements) == (1, 0)
    for name, tensor in arrays_of(expected).items():
        np.testing.assert_array_equal(arrays_of(resumed)[name], tensor)
        np.testing.assert_array_equal(arrays_of(found)[name], tensor)
    assert resumed.measured == expected.measured


def test_who_is_told_keeps_once_and_not_twice() -> None:
    """A step where work is due and the site is told to stop is not kept by the step: the main loop does it."""
    box = Box()
    rounds, _ = local(box, Scripted(0, due=lambda: True))
    found = rounds.work(1, STATE, ANCHOR)
    assert (found.result.whole, found.result.steps, box.keeps) == (False, 1, 0)
    rounds.keep(found)
    assert box.keeps == 1


def test_whole_work_is_neither_trained_nor_measured_again() -> None:
    box = Box()
    rounds, trainer = local(box, Scripted())
    done = rounds.work(1, STATE, ANCHOR)
    rounds.keep(done)
    again, trainer = local(box, Scripted())
    found = again.work(1, STATE, ANCHOR)
    assert (trainer.here, trainer.measurements) == (0, 0)
    assert found.result == done.result
    np.testing.assert_array_equal(trainer.tensors()["w"], arrays_of(done)["w"])
    other, trainer = local(box, Scripted())
    assert other.work(1, b"t" * 32, ANCHOR).result.whole  # from another state: trained
    assert (trainer.here, trainer.measurements) == (STEPS, 1)


def test_work_that_a_checkpoint_covers_goes() -> None:
    box, life = Box(), Scripted()
    rounds, _ = local(box, life)
    rounds.keep(rounds.work(1, STATE, ANCHOR))
    assert box.work is not None
    rounds.covered()
    assert box.work is None
    assert life.kepts == 2


class Ranks(SerialGroup):
    """Rank 0 of two; the other one's word is given."""

    def __init__(self, other: int) -> None:
        super().__init__()
        self.size, self.other = 2, bytes([other])

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data, self.other]


@pytest.mark.parametrize(("other", "steps", "keeps"), [(0, STEPS, 0), (1, 1, 0), (2, STEPS, STEPS - 1), (3, 1, 0)])
def test_one_ranks_word_holds_for_all(other: int, steps: int, keeps: int) -> None:
    """1: it was told to stop. 2: its work is due."""
    box, trainer = Box(), Trainer(1)
    rounds = LocalRounds(Ranks(other), trainer, box, Scripted())
    assert rounds.work(1, STATE, ANCHOR).result.steps == steps
    assert box.keeps == keeps
    assert rounds.is_due() is bool(other & 2)


# --- without a federation, and without a trainer


def test_a_job_that_only_trains_sums_nothing() -> None:
    party = Meeting(1, **UNMASKED).session(1).party
    sums, peers, recovery = NoSums(), OwnRanks(party), NeverAway()
    for call in (
        lambda: sums.open(None, None),  # type: ignore[arg-type]
        lambda: sums.settle(None, b""),  # type: ignore[arg-type]
        lambda: recovery.catch_up(b"", 0, 0),
    ):
        with pytest.raises(InternalError, match=r"only trains|never away"):
            call()
    assert recovery.common_round([1, 3]) == 3
    assert recovery.common_round([]) is None
    assert peers.announce("FEATURES", b"x") == {1: b"x"}
    assert peers.agree_to_stop("told") == "told"


def test_a_recorded_trainer_plays_what_was_trained() -> None:
    work = LocalWork(
        STATE, 1, LocalResult(3, 2, 0.5, 0.1), {"n": np.array(3)}, ANCHOR, {"p": np.array(1)}, frozenset({"running"})
    )
    trainer = RecordedTrainer(work)
    assert {n: t.shape for n, t in trainer.tensors().items()} == {n: t.shape for n, t in ANCHOR.items()}
    assert trainer.averaged() == {"running"}
    trainer.load({})
    assert trainer.measure() == {"n": np.array(3)}
    assert trainer.private() == {"p": np.array(1)}
    trainer.restore({"q": np.array(2)})
    assert trainer.private() == {"q": np.array(2)}
    with pytest.raises(InternalError, match="asked to train"):
        trainer.train(1, ANCHOR)
