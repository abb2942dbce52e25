"""How a site's model begins: what a backend needs to make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FirstModel:
    """The first model of a federation, not made yet."""

    make: Callable[[], torch.nn.Module]
    """The whole model on the CPU, the same at every site."""

    def whole(self) -> torch.nn.Module:
        """The model with all its values, on the CPU."""
        return self.make()
