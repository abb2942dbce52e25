"""The backend `serial`: one rank, nothing to average."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from typing_extensions import override

from fedhpc.train.backends.replicated import Replicated
from fedhpc.train.unused import trained, without_gradient


class SerialBackend(Replicated):
    """One rank: nothing to average."""

    name = "serial"

    def __init__(self, device: torch.device) -> None:
        self.device = device

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
    def close(self) -> None:
        pass
