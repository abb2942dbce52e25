"""The [strategy] section of federation.toml: weights and outer optimiser. Every site signs it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fedhpc.errors import ConfigError


@dataclass(frozen=True)
class StrategySettings:
    """[strategy] of federation.toml."""

    name: Literal["fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "diloco"] = "fedavg"
    weights: Literal["samples", "declared", "uniform"] = "samples"
    """How sites count in the mean: by their training rows (kept private), by sizes in the roster, or equally."""
    lr: float | None = None
    """Outer learning rate. Absent: 1 for fedavg and fedprox, 0.7 for diloco, 0.01 for the adaptive ones."""
    momentum: float = 0.9
    """diloco: Nesterov momentum."""
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    """Adaptive strategies: the degree of adaptivity, added to the root of the second moment."""
    mu: float = 0.01
    """fedprox: weight of the pull towards the global model during local training."""

    def __post_init__(self) -> None:
        for key in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"strategy.{key} = {getattr(self, key)}", "it must be at least 0 and below 1")
        if self.tau <= 0 or self.mu < 0 or (self.lr is not None and self.lr <= 0):
            raise ConfigError("strategy: lr and tau must be positive, mu at least 0")
        self._refuse_idle_keys()

    def _refuse_idle_keys(self) -> None:
        """A key that changes nothing is a misunderstanding in a file that every site signs."""
        used = {
            "diloco": ("momentum",),
            "fedprox": ("mu",),
            "fedadam": ("beta1", "beta2", "tau"),
            "fedyogi": ("beta1", "beta2", "tau"),
            "fedadagrad": ("beta1", "tau"),
        }
        for field in dataclasses.fields(self):
            idle = field.name not in ("name", "weights", "lr", *used.get(self.name, ()))
            if idle and getattr(self, field.name) != field.default:
                users = ", ".join(name for name, keys in used.items() if field.name in keys)
                raise ConfigError(f"strategy.{field.name} has no effect on {self.name}", f"it belongs to {users}")

    @property
    def outer_lr(self) -> float:
        """`lr`, or the strategy's usual one."""
        usual = {"fedavg": 1.0, "fedprox": 1.0, "diloco": 0.7}
        return usual.get(self.name, 0.01) if self.lr is None else self.lr

    @property
    def proximal(self) -> float:
        """μ of the local objective: 0 unless fedprox."""
        return self.mu if self.name == "fedprox" else 0.0
