"""The backend `serial`: one rank, nothing to average."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from typing_extensions import override

from fedhpc.train.backends.base import Backend
from fedhpc.train.first_model import FirstModel
from fedhpc.train.unused import trained, without_gradient


class SerialBackend(Backend):
    """One rank: nothing to average."""

    name = "serial"
    sharded = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @override
    def build(self, first: FirstModel) -> torch.nn.Module:
        return first.whole().to(self.device)

    @override
    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model

    @override
    def averaging(self, wrapped: torch.nn.Module, now: bool) -> AbstractContextManager[None]:
        return nullcontext()

    @override
    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        return without_gradient(trained(wrapped))

    @override
    def clip(self, model: torch.nn.Module, max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    @override
    def settled(self, model: torch.nn.Module) -> None:
        pass

    @override
    def close(self) -> None:
        pass
