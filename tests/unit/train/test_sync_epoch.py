"""`sync.epoch`: sites with different numbers of batches meet, and each counts as the steps that it took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from federation_fakes import Meeting

from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.session import Session
from fedhpc.train.sync import Sync

ROWS = {1: 700, 2: 500, 3: 300}
BATCH = 100


def model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 1)


def sync_of(session: Session, net: torch.nn.Module) -> Sync:
    return Sync(session, net, None, weight=ROWS[session.party.number])


def train(net: torch.nn.Linear, batch: int, site: int) -> None:
    """One step, whose direction is the site's own."""
    with torch.no_grad():
        net.weight += 0.001 * site * (batch + 1)


def meeting() -> Meeting:
    return Meeting(3, secure={"mode": "off"}, strategy={"weights": "samples"})


def test_unequal_epochs_meet_once_and_steps_are_weighted_as_they_were_taken() -> None:
    seen: dict[int, int] = {}

    def work(session: Session) -> np.ndarray:
        site = session.party.number
        net = model()
        sync = sync_of(session, net)
        for batch in sync.epoch(range(ROWS[site] // BATCH)):
            train(net, batch, site)
            assert not sync.step()  # it only counts
            seen[site] = seen.get(site, 0) + 1
        return net.weight.detach().numpy().copy()

    weights = meeting().run(work)
    assert seen == {1: 7, 2: 5, 3: 3}
    first = model().weight.detach().numpy()
    steps = {site: sum(range(1, rows // BATCH + 1)) * site for site, rows in ROWS.items()}
    expected = first + 0.001 * sum(steps[site] * rows for site, rows in ROWS.items()) / sum(ROWS.values())
    for weight in weights.values():
        np.testing.assert_allclose(weight, expected, rtol=1e-5)
        np.testing.assert_array_equal(weight, weights[1])


@pytest.mark.parametrize("batches", [{1: 7, 2: 5, 3: 3}, {1: 4, 2: 0, 3: 1}, {1: 1, 2: 1, 3: 1}])
@pytest.mark.parametrize("meet", [1, 2, 3])
def test_every_site_meets_as_often(batches: dict[int, int], meet: int) -> None:
    def work(session: Session) -> tuple[list[int], int]:
        site, net = session.party.number, model()
        sync, places = sync_of(session, net), list[int]()
        done = 0
        exchange = sync._exchange

        def noted() -> None:
            places.append(done)
            exchange()

        sync._exchange = noted  # type: ignore[method-assign]
        for batch in sync.epoch(list(range(batches[site])), meet=meet):
            train(net, batch, site)
            done += 1
        for batch in sync.epoch(list(range(batches[site]))):  # and once more
            train(net, batch, site)
        return places[:meet], len(places)

    for site, (places, total) in meeting().run(work).items():
        n = batches[site]
        assert places == [-(-n * part // meet) for part in range(1, meet + 1)]
        assert total == meet + 1


def test_batches_without_a_length() -> None:
    def batches(n: int) -> Iterator[int]:
        yield from range(n)

    def work(session: Session) -> str:
        net = model()
        sync = sync_of(session, net)
        with pytest.raises(ConfigError, match="without a length"):
            sync.epoch(batches(3), meet=2)
        for batch in sync.epoch(batches(session.party.number)):
            train(net, batch, 1)
        return sync.model_sha256

    assert len(set(meeting().run(work).values())) == 1


def test_a_loop_that_is_left_is_told() -> None:
    session = meeting().session(1)
    sync = Sync(session, model(), None, weight=3)
    for _ in sync.epoch([1, 2, 3]):
        break
    for again in (lambda: sync.epoch([1]), sync.exchange):
        with pytest.raises(ConfigError, match="was left before its end") as refused:
            again()
        assert refused.value.exit_code == 64
    with pytest.raises(ConfigError, match=r"epoch\(meet=0\)"):
        Sync(session, model(), None, weight=3).epoch([1], meet=0)


def test_ranks_of_a_site_with_different_numbers_of_batches() -> None:
    session: Any = meeting().session(1)
    sync = Sync(session, model(), None, weight=3)
    sync._site = type("Group", (), {"gather_bytes": lambda self, mine: [mine, (9).to_bytes(8, "little")]})()
    with pytest.raises(DataError, match=r"different numbers of batches, \[3, 9\]"):
        sync.epoch([1, 2, 3])
