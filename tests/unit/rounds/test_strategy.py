"""Outer steps against plain formulas, one number at a time, rounded after every operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedhpc.agreement.strategy_settings import StrategySettings
from fedhpc.errors import ConfigError
from fedhpc.rounds.strategy import make_strategy

NAMES = ["fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "diloco"]


def rounder(kind: str) -> Callable[[float], float]:
    """Rounding to the tensor's precision: float64 is wide enough that + − × ÷ √ of float32 may be rounded twice."""
    return float if kind == "float64" else lambda x: float(np.float32(x))


def plain_step(s: StrategySettings, r: Callable[[float], float], x: float, d: float, state: dict[str, float]) -> float:
    """The next value of one parameter, from the papers' formulas."""
    lr = r(s.outer_lr)
    if s.name in ("fedavg", "fedprox"):
        return r(x - (d if s.outer_lr == 1.0 else r(lr * d)))
    if s.name == "diloco":
        mu = r(s.momentum)
        state["v"] = r(r(mu * state["v"]) + d)
        return r(x - r(lr * r(d + r(mu * state["v"]))))
    b1, b2, tau = r(s.beta1), r(s.beta2), r(s.tau)
    state["m"] = r(r(b1 * state["m"]) + r(r(1 - b1) * d))
    square = r(d * d)
    if s.name == "fedadagrad":
        state["v"] = r(state["v"] + square)
    elif s.name == "fedadam":
        state["v"] = r(r(b2 * state["v"]) + r(r(1 - b2) * square))
    else:
        sign = float(np.sign(r(state["v"] - square)))
        state["v"] = r(state["v"] - r(r(r(1 - b2) * square) * sign))
    return r(x - r(r(lr * state["m"]) / r(r(math.sqrt(state["v"])) + tau)))


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [None, 0.3])
def test_steps(name: Any, kind: str, lr: float | None) -> None:
    given = StrategySettings(name, lr=lr)
    strategy = make_strategy(given)
    rng = np.random.default_rng(1)
    model = (rng.standard_normal(40) * 10.0 ** rng.integers(-6, 6, 40)).astype(kind)
    state = {s: np.zeros_like(model) for s in strategy.names}
    expected = [float(x) for x in model]
    plain = [{"v": 0.0, "m": 0.0} for _ in expected]
    for _ in range(5):
        update = (rng.standard_normal(40) * 10.0 ** rng.integers(-8, 4, 40)).astype(kind)
        kept, before = update.copy(), model.copy()
        following = strategy.step(model, update, state)
        assert (update == kept).all()
        assert (model == before).all()
        assert following.dtype == np.dtype(kind)
        model = following
        r = rounder(kind)
        expected = [plain_step(given, r, x, float(d), p) for x, d, p in zip(expected, update, plain, strict=True)]
        assert model.tolist() == expected
    for array in state.values():
        assert array.dtype == np.dtype(kind)


def test_fedavg_with_rate_one_gives_the_mean_of_the_local_models() -> None:
    model = np.array([1.0, 2.0, 3.0])
    update = model - np.array([0.5, 1.5, 2.0])
    assert make_strategy(StrategySettings()).step(model, update, {}).tolist() == [0.5, 1.5, 2.0]


def test_usual_rates_and_mu() -> None:
    rates = {name: StrategySettings(name).outer_lr for name in NAMES}  # type: ignore[arg-type]
    assert rates == {"fedavg": 1.0, "fedprox": 1.0, "diloco": 0.7, "fedadam": 0.01, "fedyogi": 0.01, "fedadagrad": 0.01}
    assert StrategySettings("fedprox").proximal == 0.01
    assert StrategySettings("fedavg").proximal == 0.0
    with pytest.raises(ConfigError, match="mu has no effect on fedavg") as refused:
        StrategySettings("fedavg", mu=0.5)
    assert refused.value.hint == "it belongs to fedprox"


@pytest.mark.parametrize(
    ("name", "bad"),
    [("diloco", {"momentum": 1.0}), ("diloco", {"momentum": -0.1}), ("fedadam", {"beta1": 1.0}),
     ("fedyogi", {"beta2": float("nan")}), ("fedadagrad", {"tau": 0.0}), ("fedprox", {"mu": -1.0}),
     ("fedavg", {"lr": 0.0}), ("fedavg", {"lr": -1.0})],
)  # fmt: skip
def test_bad_settings(name: str, bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as refused:
        StrategySettings(name, **bad)  # type: ignore[arg-type]
    assert "must be" in refused.value.what + refused.value.hint
