"""Outer optimisers: from the mean of the sites' updates to the next global model.

Each is a few lines of element-wise NumPy (+ − × ÷ √) in the tensors' own dtype, in a fixed order, so every site
computes the same bits whatever its processor. An update is the pseudo-gradient: global model minus local model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.agreement.strategy_settings import StrategySettings

Array = NDArray[Any]


class Strategy(Protocol):
    """One tensor's outer step; `state` holds the strategy's own arrays of that tensor."""

    names: tuple[str, ...]  # of the state arrays

    def step(self, model: Array, update: Array, state: Mapping[str, Array]) -> Array:
        """The next global tensor; changes the arrays of `state` in place."""
        ...


class FedAvg(Strategy):
    """x ← x − η Δ. With η = 1 this is the weighted mean of the local models (McMahan et al. 2017, arXiv 1602.05629)."""

    names: tuple[str, ...] = ()

    def __init__(self, lr: float) -> None:
        self._lr = lr

    @override
    def step(self, model: Array, update: Array, state: Mapping[str, Array]) -> Array:
        step: Array = update if self._lr == 1.0 else _scalar(self._lr, model) * update
        return model - step


class DiLoCo(Strategy):
    """Outer Nesterov momentum over many local steps (Douillard et al. 2023, arXiv 2311.08105).

    v ← μ v + Δ;  x ← x − η (Δ + μ v)
    """

    names: tuple[str, ...] = ("velocity",)

    def __init__(self, lr: float, momentum: float) -> None:
        self._lr = lr
        self._momentum = momentum

    @override
    def step(self, model: Array, update: Array, state: Mapping[str, Array]) -> Array:
        lr, momentum = _scalar(self._lr, model), _scalar(self._momentum, model)
        velocity = state["velocity"]
        velocity *= momentum
        velocity += update
        step: Array = lr * (update + momentum * velocity)
        return model - step


class FedOpt(Strategy):
    """Adaptive server optimisers without bias correction (Reddi et al. 2021, arXiv 2003.00295, algorithm 2).

    m ← β₁ m + (1 − β₁) Δ;  x ← x − η m / (√v + τ), where v grows by
    fedadagrad: Δ²;  fedadam: v ← β₂ v + (1 − β₂) Δ²;  fedyogi: v ← v − (1 − β₂) Δ² sign(v − Δ²)
    """

    names: tuple[str, ...] = ("moment", "second")

    def __init__(self, settings: StrategySettings) -> None:
        self._settings = settings

    @override
    def step(self, model: Array, update: Array, state: Mapping[str, Array]) -> Array:
        s = self._settings
        lr, tau = _scalar(s.outer_lr, model), _scalar(s.tau, model)
        beta1, beta2, one = _scalar(s.beta1, model), _scalar(s.beta2, model), _scalar(1.0, model)
        moment, second = state["moment"], state["second"]
        moment *= beta1
        moment += (one - beta1) * update
        square = update * update
        if s.name == "fedadagrad":
            second += square
        elif s.name == "fedadam":
            second *= beta2
            second += (one - beta2) * square
        else:
            second -= (one - beta2) * square * np.sign(second - square)
        step: Array = lr * moment / (np.sqrt(second) + tau)
        return model - step


def make_strategy(settings: StrategySettings) -> Strategy:
    """The strategy named in [strategy]."""
    if settings.name in ("fedavg", "fedprox"):
        return FedAvg(settings.outer_lr)
    if settings.name == "diloco":
        return DiLoCo(settings.outer_lr, settings.momentum)
    return FedOpt(settings)


def _scalar(value: float, like: Array) -> Any:
    """A constant in the tensor's own dtype, so that no step is computed in another precision."""
    return like.dtype.type(value)
