"""Who is told that a grid is not small against a sum: never silent, and no false alarm."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting

from fedhpc.app.federation import Federation
from fedhpc.federation.session import Session

WORDS = "rounded to a grid that is not small"


def told(caplog: pytest.LogCaptureFixture, values: list[Any], times: int = 1, name: str = "", **how: Any) -> list[str]:
    """What the sites are told of a sum in which site u holds values[u - 1]."""
    caplog.clear()

    def work(session: Session) -> None:
        for time in range(times):
            Federation(session).sum(
                {"x": values[session.party.number - 1]}, name=f"{name} {time}" if name else None, **how
            )

    with caplog.at_level(logging.WARNING, logger="fedhpc.federation"):
        Meeting(len(values)).run(work)
    return [record.getMessage() for record in caplog.records if WORDS in record.getMessage()]


def test_each_site_whose_values_are_lost_is_told_their_name(caplog: pytest.LogCaptureFixture) -> None:
    small = np.array([1e-9, 3e-9, 1.0])
    lines = told(caplog, [small, small, small * 0], bound=1e9)
    assert len(lines) == 2
    assert lines[0].startswith("'x': 2 of 3 values")
    assert "per_element=True" in lines[0]
    assert "e-09" not in lines[0]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_also_where_digits_are_lost_and_not_all_of_them(caplog: pytest.LogCaptureFixture, kind: type) -> None:
    bits = 29 if kind is np.float32 else 61
    steps = np.array([3000.0], kind) * kind(2.0 ** (1 - bits))  # of the grid of bound 1
    assert told(caplog, [steps] * 3, bound=1.0)
    assert not told(caplog, [steps * kind(100)] * 3, bound=1.0)


@pytest.mark.parametrize(
    "values",
    [
        [np.zeros(3)] * 3,
        [np.array([1e8, -1.0]), np.array([-1e8, 1.0]), np.zeros(2)],  # they cancel
        [np.array([0.1]), np.array([0.2]), np.array([-0.3])],
        [np.array([1e-15]), np.array([1e8]), np.array([1e8])],  # nothing beside the sum
        [np.array([1e8, 0.0]), np.array([1e8, 0.0]), np.array([0.0, 0.0])],
    ],
)
def test_exact_zeros_and_sums_that_cancel_are_no_alarm(caplog: pytest.LogCaptureFixture, values: list[Any]) -> None:
    assert not told(caplog, values, bound=1e9)
    assert not told(caplog, values)


def test_elements_with_their_own_scale_are_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    units = np.array([1e300, 1e-300, 1.0, 0.0, 5e-324])
    assert not told(caplog, [units, units / 3, units * 0])
    assert not told(caplog, [np.array([1e30, 1e-30], np.float32)] * 3)
    assert not told(caplog, [np.array([1e9, 1e-9])] * 3, bound=1e9, per_element=True)


def test_one_scale_for_a_large_array(caplog: pytest.LogCaptureFixture) -> None:
    """Values near zero are in every large array; columns in other units are not."""
    draw = np.random.default_rng(0)
    noise = [draw.normal(size=20_000).astype(np.float32) for _ in range(3)]
    assert not told(caplog, noise)
    columns = [np.where(np.arange(20_000) % 10 == 0, 1e15, 1.0) * x for x in noise]
    assert told(caplog, columns)[0].startswith("'x': 1")
    assert not told(caplog, columns, per_element=True)


def test_once_for_each_name(caplog: pytest.LogCaptureFixture) -> None:
    small = [np.array([1e-9])] * 3
    assert len(told(caplog, small, times=4, bound=1e9)) == 3
    lines = told(caplog, small, times=2, name="dose", bound=1e9)
    assert (
        sorted(set(lines))
        == [line for n in (0, 1) for line in lines if line.startswith(f"'x' of the sum 'dose {n}'")][::3]
    )


def test_means_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fedhpc.federation"):
        Meeting(3).run(lambda session: Federation(session).mean({"x": np.array([1e-9])}, bound=1e9))
    assert WORDS in caplog.text


def test_one_site_alone_rounds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not told(caplog, [np.array([1e-300, 1e300])], bound=1e301)
