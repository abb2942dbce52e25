"""What backends have in common under which every rank holds the whole model."""

from __future__ import annotations

import torch
from typing_extensions import override

from fedhpc.train.backends.base import Backend
from fedhpc.train.first_model import FirstModel


class Replicated(Backend):
    """Parameters are always in place, and gradients are whole once they are averaged."""

    sharded = False

    @override
    def build(self, first: FirstModel) -> torch.nn.Module:
        return first.whole().to(self.device)

    @override
    def clip(self, model: torch.nn.Module, max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    @override
    def settled(self, model: torch.nn.Module) -> None:
        pass
