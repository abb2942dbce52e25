"""What the main loop needs from the rows above it, as small interfaces. Their makers are handed in.

Shared state means parameters and floating buffers of the model, in state_dict order: float32 arrays, or float64
where the model's tensor is double (half-precision tensors are held as float32). Integer buffers stay local.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LocalResult:
    """What one site's local training of one round did."""

    samples: int  # rows in the site's training split: the site's weight
    steps: int  # optimiser steps taken in this round
    loss: float  # mean training loss over those steps; stays at the site
    seconds: float


class Trainer(Protocol):
    """One site's local training. Every rank of the site makes every call (they may be collective in the site)."""

    def tensors(self) -> Tensors:
        """Copies of the shared state, C-contiguous, equal on every rank of the site."""
        ...

    def averaged(self) -> frozenset[str]:
        """Names in `tensors()` that the outer step averages and does not optimise: floating buffers."""
        ...

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Replace the shared state by `tensors` (same names, shapes and dtypes as `tensors()` gives)."""
        ...

    def train(self, round_: int, anchor: Mapping[str, NDArray[Any]]) -> LocalResult:
        """Train from the loaded state for one round; `anchor` is the global state (for FedProx)."""
        ...

    def measure(self) -> Tensors:
        """Additive sums of the loaded model over the site's held-out rows, equal on every rank.

        int64 counts and float64 sums with the same names and shapes at every site, even over zero rows.
        """
        ...

    def summarise(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
        """Metrics from the federation's sums of `measure`: a mean, an accuracy, an AUC (None over one class)."""
        ...

    def private(self) -> dict[str, NDArray[Any]]:
        """The site's private state: optimiser state, RNG, data position. Leader's ranks give all of it."""
        ...

    def restore(self, private: Mapping[str, NDArray[Any]]) -> None:
        """Continue as if never interrupted, from what `private` returned on the site's leader."""
        ...


@dataclass
class Checkpoint:
    """All a site needs to go on after `round_` finished rounds."""

    round_: int  # training rounds finished
    sums: int  # masked sums finished: the protocol's round number
    config: bytes  # SHA-256 of federation.toml [32]
    tensors: Tensors  # the global model
    outer: Tensors = field(default_factory=dict)  # the strategy's state, and W of the weights
    private: dict[str, NDArray[Any]] = field(default_factory=dict)  # the trainer's
    ledger: bytes = b""  # hash of the ledger's head when this was written [32]


class CheckpointStore(Protocol):
    """Where one site keeps its checkpoints."""

    def rounds(self) -> list[int]:
        """Rounds with a whole, valid checkpoint, rising."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Write atomically and durably; keep at least the two newest. Raises StorageError; the old ones stay."""
        ...

    def load(self, round_: int) -> Checkpoint:
        """The checkpoint of `round_`. Raises DataError if it is damaged."""
        ...

    def discard_after(self, round_: int) -> None:
        """Remove checkpoints newer than `round_`: the federation goes on from there."""
        ...


class Reporter(Protocol):
    """Where a run tells what happened. Called on every rank; only the right ones write."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """One finished round: numbers by name, see ops/telemetry.py for the keys."""
        ...

    def note(self, text: str) -> None:
        """One line for people."""
        ...
