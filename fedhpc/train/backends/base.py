"""What every backend does: one rank's part in training a site's model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from fedhpc.train.first_model import FirstModel


class Backend(Protocol):
    """One rank's part in training the site's model. Every rank of the site makes every call but `close`."""

    name: str
    device: torch.device
    sharded: bool
    """Whether a rank holds a part of each parameter only."""

    def build(self, first: FirstModel) -> torch.nn.Module:
        """The first model on `device`, of the same values at every site and on any number of ranks."""
        ...

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """What the loss is computed with; its gradients are averaged over the site's ranks."""
        ...

    def averaging(self, wrapped: torch.nn.Module, now: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: average at its end if `now`, else only accumulate."""
        ...

    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """Names of parameters that no pass of this rank has reached, after one that averaged."""
        ...

    def clip(self, model: torch.nn.Module, max_norm: float) -> torch.Tensor:
        """Scale the averaged gradients of `model` so that their norm is at most `max_norm`; the norm before, []."""
        ...

    def settled(self, model: torch.nn.Module) -> None:
        """Before every look at the parameters of `model`, and before they are changed from outside: they are in place.

        After it a sharded model has its shards, where a pass has left whole parameters.
        """
        ...

    def close(self) -> None:
        """Leave the process group. The wrapped model must not be used afterwards.

        A rank that fails alone comes here too: it must not wait for the others.
        """
        ...
