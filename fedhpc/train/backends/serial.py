"""The backend `serial`: one rank, nothing to average."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

import torch
from typing_extensions import override

from fedhpc.train.backends.replicated import Replicated
from fedhpc.train.unused import without_gradient


class SerialBackend(Replicated):
    """One rank: nothing to average."""

    name = "serial"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._parameters: WeakKeyDictionary[torch.nn.Module, dict[str, torch.nn.Parameter]] = WeakKeyDictionary()
        """Of each model that is in use, frozen ones too: to look for them makes a small model's step longer."""

    @override
    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        self._parameters[model] = dict(model.named_parameters())
        return model

    @override
    def averaging(self, wrapped: torch.nn.Module, now: bool) -> AbstractContextManager[None]:
        return nullcontext()

    @override
    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        return without_gradient(self._parameters[wrapped])

    @override
    def close(self) -> None:
        self._parameters.clear()
