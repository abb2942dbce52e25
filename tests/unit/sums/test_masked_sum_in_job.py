"""A masked sum in one job: what is written before anything leaves a site, and how results are compared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation_fakes import WAIT_S, agreement_of, party_of
from kernel_paths import PATHS, hiding_by
from numpy.typing import NDArray
from secure_fakes import key_of

from fedhpc.errors import ConfigError, DataError, FedhpcError
from fedhpc.federation.cores import Cores
from fedhpc.federation.scales import PUBLIC
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure.keys import AttemptKey
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.pairwise import PairwiseAttempt
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.ring import Tensor
from fedhpc.secure.suite import SHA256, suite_named
from fedhpc.sums.in_job import masked_sum
from fedhpc.sums.in_job.masked_sum import MpiSums
from fedhpc.sums.in_job.peers import JobPeers, JobRecovery
from fedhpc.sums.in_job.pipeline import Pipeline

SITES = 3


class Table:
    """Where the sites meet."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(SITES, timeout=WAIT_S)
        self.there: dict[int, Any] = {}

    def all_of(self, number: int, mine: Any) -> list[Any]:
        self.there[number] = mine
        self.barrier.wait()
        found = [self.there[u] for u in sorted(self.there)]
        self.barrier.wait()
        return found


class Seat:
    """An Exchange of one site, that notes what happens there."""

    name, sites = "table", SITES

    def __init__(self, table: Table, number: int, noted: list[str], sent: list[bytes]) -> None:
        self._table, self._number, self._noted, self._sent = table, number, noted, sent

    def gather(self, message: bytes) -> list[bytes]:
        self._noted.append("message")
        self._sent.append(message)
        return self._table.all_of(self._number, message)

    def add(self, lanes: NDArray[Any], owners: tuple[int, ...]) -> None:
        self._noted.append("lanes")
        self._sent.append(lanes.tobytes())
        lanes[:] = sum(self._table.all_of(self._number, lanes.copy()))

    def leave(self, *, refused: bool = False) -> None:
        self._noted.append(f"leave refused={refused}")


class Work(Protocol):
    def __call__(self, session: Session, number: int) -> None: ...


class Job:
    """Three sites in one job, as threads."""

    def __init__(self, **secure: Any) -> None:
        self._agreement, self._table = agreement_of(SITES, secure=secure), Table()
        self.noted: dict[int, list[str]] = {u: [] for u in range(1, SITES + 1)}
        self.sent: dict[int, list[bytes]] = {u: [] for u in self.noted}
        self.cores = Cores()

    def session(self, number: int) -> Session:
        noted = self.noted[number]
        identity = Ed25519PrivateKey.from_private_bytes(key_of("identity", number))
        party = replace(party_of(self._agreement, number), identity=identity, cores=self.cores)
        assert party.journal is not None
        admit: Callable[[LedgerEntry], None] = party.journal.admit

        def note(entry: LedgerEntry) -> None:
            noted.append("ledger")
            admit(entry)

        party.journal.admit = note  # type: ignore[method-assign]
        exchange = Seat(self._table, number, noted, self.sent[number])
        pipeline = Pipeline(exchange, cores=self.cores)
        sums = MpiSums(party, exchange, pipeline, rails=[1] * SITES, attempt=1)
        return Session(party, sums, JobPeers(party, exchange), JobRecovery(party, exchange))

    def run(self, work: Work) -> dict[int, BaseException | None]:
        """What `work` raises at each site."""
        with ThreadPoolExecutor(SITES) as pool:
            running = {u: pool.submit(work, self.session(u), u) for u in self.noted}
        return {u: each.exception() for u, each in running.items()}


def vector(session: Session, number: int) -> Vector:
    made = Vector(session.layout([Tensor("x", "int64", (4,))]))
    made.fill({"x": np.full(4, number)})
    return made


def told(errors: dict[int, BaseException | None]) -> list[str]:
    return [error.what for error in errors.values() if isinstance(error, FedhpcError)]


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
    for noted in job.noted.values():
        assert noted == ["ledger", "message", "message", "lanes", "message"]


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
    monkeypatch.setattr(masked_sum, "PairwiseAttempt", with_fixed_keys)
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
