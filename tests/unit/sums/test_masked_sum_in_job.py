"""A masked sum in one job: what is written before anything leaves a site, and how results are compared."""

from __future__ import annotations

import pytest
from job_fakes import SITES, Job, told, vector

from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.scales import PUBLIC
from fedhpc.federation.session import Session
from fedhpc.secure.transcript import tree


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


@pytest.mark.parametrize("mode", ["pairwise", "off"])
@pytest.mark.parametrize("training", [False, True])
def test_sites_that_go_on_to_different_states_are_told_and_do_not_go_on(training: bool, mode: str) -> None:
    job, rounds = Job(mode=mode), {}

    def work(session: Session, number: int) -> None:
        plan = session.training(session.state, {}, PUBLIC) if training else session.statistic("x")
        opened = session.open(vector(session, number), plan)
        try:
            session.settle(opened, tree(b"another" if number == 2 else b"one"))
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
