"""A masked sum in one job: what is written before anything leaves a site, and how results are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from job_fakes import SITES, Job, told, vector
from kernel_paths import PATHS, hiding_by
from secure_fakes import key_of

from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.cores import Cores
from fedhpc.federation.scales import PUBLIC
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure.keys import AttemptKey
from fedhpc.secure.pairwise import PairwiseAttempt
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.ring import Tensor
from fedhpc.secure.suite import SHA256, suite_named
from fedhpc.sums.in_job import job_keys


@pytest.mark.parametrize("training", [False, True])
def test_the_ledger_has_the_sum_before_anything_leaves_the_site(training: bool) -> None:
    job = Job()

    def work(session: Session, number: int) -> None:
        plan = session.training(session.state, {}, PUBLIC) if training else session.statistic("x")
        mine = vector(session, number)
        session.settle(session.open(mine, plan), session.tensors_tree)
        assert mine.view("x").tolist() == [6] * 4
        assert session.round_ == 1

    assert job.run(work) == dict.fromkeys(job.noted)
    # keys, signatures, "all is checked"; and M6
    for noted in job.noted.values():
        assert noted == ["ledger", "message", "message", "message", "lanes", "message"]


def with_fixed_keys(proposal: Proposal, number: int, *more: Any, **how: Any) -> PairwiseAttempt:
    """Ephemeral keys that are the same in each job, so that its bytes can be compared with another's."""
    fresh = (AttemptKey(key_of("chan", number)), AttemptKey(key_of("mask", number)))
    return PairwiseAttempt(proposal, number, *more, **how, fresh=fresh)


def bytes_of_a_job(path: str, cores: int, rounding: str) -> tuple[dict[int, list[bytes]], list[bytes]]:
    """(what each site sent, each site's model) of a statistic and a training sum, hidden by this path."""
    job = Job(rounding=rounding)
    job.cores = Cores(cores)
    tensors = [
        Tensor("w", "float32", (600_001,), 12),
        Tensor("n", "int64", (3,)),
        Tensor("b", "float64", (70_001,), 20),
    ]
    models: dict[int, bytes] = {}

    def work(session: Session, number: int) -> None:
        for training in (False, True):
            shares = {"w": 0.3, "b": 0.3}
            plan = session.training(session.state, shares, PUBLIC) if training else session.statistic("x")
            mine = Vector(session.layout(tensors))
            draw = np.random.default_rng(number)
            mine.fill({t.name: draw.uniform(-8, 8, t.shape).astype(t.kind) for t in tensors})
            session.settle(session.open(mine, plan), session.tensors_tree)
            models[number] = mine.buffer.tobytes()

    with hiding_by(path):
        assert job.run(work) == dict.fromkeys(job.noted)
    return job.sent, [models[u] for u in sorted(models)]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_every_path_and_number_of_cores_sends_the_same_bytes(monkeypatch: pytest.MonkeyPatch, rounding: str) -> None:
    """Keys, signatures, masked lanes, and the results that are compared."""
    monkeypatch.setattr(job_keys, "PairwiseAttempt", with_fixed_keys)
    sent, models = bytes_of_a_job(PATHS[0], 1, rounding)
    assert len(models[0]) > 2 << 20
    assert len(set(models)) == 1
    assert len({b"".join(each) for each in sent.values()}) == SITES
    for path, cores in [(PATHS[0], 3), *((path, cores) for path in PATHS[1:] for cores in (1, 3))]:
        assert bytes_of_a_job(path, cores, rounding) == (sent, models)


@pytest.mark.parametrize("mode", ["pairwise", "off"])
@pytest.mark.parametrize("training", [False, True])
def test_sites_that_go_on_to_different_states_are_told_and_do_not_go_on(training: bool, mode: str) -> None:
    job, rounds = Job(mode=mode), {}

    def work(session: Session, number: int) -> None:
        plan = session.training(session.state, {}, PUBLIC) if training else session.statistic("x")
        opened = session.open(vector(session, number), plan)
        try:
            session.settle(opened, SHA256.tree(b"another" if number == 2 else b"one"))
        finally:
            rounds[number] = session.round_

    errors = job.run(work)
    assert len(told(errors)) == SITES, errors
    assert all("another state" in what for what in told(errors))
    assert rounds == dict.fromkeys(job.noted, 0)


@pytest.mark.parametrize("training", [False, True])
def test_sites_that_hold_different_sums_are_told(training: bool) -> None:
    job = Job()

    def work(session: Session, number: int) -> None:
        plan = session.training(session.state, {}, PUBLIC) if training else session.statistic("x")
        opened = session.open(vector(session, number), plan)
        if number == 3:
            opened.sum_tree = bytes(32)
        session.settle(opened, session.tensors_tree)

    errors = job.run(work)
    assert len(told(errors)) == SITES, errors
    assert all("another sum" in what for what in told(errors))


@pytest.mark.parametrize("suite", ["sha256", "blake3"])
def test_a_statistic_is_named_by_its_tree_and_an_update_is_not(suite: str) -> None:
    """The state that follows from an update has it in it; a statistic leaves the state as it is."""
    job = Job(suite=suite)

    def work(session: Session, number: int) -> None:
        mine = vector(session, number)
        opened = session.open(mine, session.statistic("x"))
        assert opened.sum_tree == suite_named(suite).tree(mine.buffer)  # int64 lanes are their values
        session.settle(opened, session.tensors_tree)
        assert session.tensors_tree == suite_named(suite).tree(b"")
        opened = session.open(vector(session, number), session.training(session.state, {}, PUBLIC))
        assert opened.sum_tree == b""
        session.settle(opened, session.tensors_tree)

    assert job.run(work) == dict.fromkeys(job.noted)


def test_after_the_end_nothing_is_summed_and_nothing_leaves() -> None:
    job = Job()

    def work(session: Session, number: int) -> None:
        plan = session.training(session.state, {}, PUBLIC)
        session.close()
        session.close()
        for refused in (
            lambda: session.open(vector(session, number), plan),
            lambda: session.statistic("x"),
            session.forget,
        ):
            with pytest.raises(ConfigError, match="closed"):
                refused()

    assert job.run(work) == dict.fromkeys(job.noted)
    assert job.noted == {u: ["leave refused=False"] for u in job.noted}


@pytest.mark.parametrize("again", [False, True])
def test_a_site_says_that_its_own_numbers_ended_its_last_sum(again: bool) -> None:
    job = Job()

    def work(session: Session, number: int) -> None:
        with pytest.raises(DataError), session.own_input():
            raise DataError("not finite")
        if again:
            with session.own_input():
                pass
        session.close()

    assert job.run(work) == dict.fromkeys(job.noted)
    assert job.noted == {u: [f"leave refused={not again}"] for u in job.noted}


@pytest.mark.parametrize("speaker", [1, 3])
def test_the_word_of_any_site_stops_all(speaker: int) -> None:
    job = Job()

    def work(session: Session, number: int) -> None:
        assert session.peers.agree_to_stop("") == ""
        assert session.peers.agree_to_stop("the clock" if number == speaker else "") == "the clock"

    assert job.run(work) == dict.fromkeys(job.noted)
