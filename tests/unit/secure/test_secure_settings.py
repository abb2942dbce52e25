"""[secure] refuses what is unsafe or not built, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from fedhpc.errors import ConfigError, PolicyError
from fedhpc.secure.settings import SecureSettings
from fedhpc.secure.thresholds import Thresholds


def test_defaults_hide() -> None:
    settings = SecureSettings()
    assert (settings.mode, settings.lane_bits, settings.rounding, settings.degree) == ("pairwise", 32, "nearest", 0)
    assert not settings.accept_two_sites


@pytest.mark.parametrize("bits", [8, 16])
def test_small_lanes_are_not_built(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"lane_bits = {bits} is not built yet") as caught:
        SecureSettings(lane_bits=bits)
    assert "32" in caught.value.hint


@pytest.mark.parametrize(
    "bad",
    [{"lane_bits": 0}, {"lane_bits": 31}, {"lane_bits": 128}, {"bound": 0.0}, {"bound": -1.0}, {"bound": float("nan")},
     {"bound": float("inf")}, {"degree": -2}],
)  # fmt: skip
def test_bad_values_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"secure.{next(iter(bad))} = ") as caught:
        SecureSettings(**bad)
    assert caught.value.exit_code == 64


def test_thresholds() -> None:
    assert SecureSettings().thresholds(10) == Thresholds(10, 3, 7)
    assert SecureSettings(colluders=2, threshold=8).thresholds(10) == Thresholds(10, 2, 8)
    assert SecureSettings().thresholds(1) is None
    assert SecureSettings(mode="off").thresholds(2) is None
    assert SecureSettings(accept_two_sites=True).thresholds(2) == Thresholds(2, 0, 2)
    for settings, sites in (
        (SecureSettings(), 2),
        (SecureSettings(), 101),
        (SecureSettings(colluders=0), 5),
        (SecureSettings(threshold=3), 5),
        (SecureSettings(degree=4), 10),
        (SecureSettings(degree=7), 10),
    ):
        with pytest.raises(PolicyError):
            settings.thresholds(sites)
    assert SecureSettings(degree=8).thresholds(10) is not None
    assert SecureSettings(degree=8).thresholds(5) is not None  # complete anyway
