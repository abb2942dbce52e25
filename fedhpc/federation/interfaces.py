"""What the main loop needs from the rows above it, as small interfaces. Their makers are handed in.

Shared state means parameters and floating buffers of the model, in state_dict order: float32 arrays, or float64
where the model's tensor is double (half-precision tensors are held as float32). Integer buffers stay local.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
AtStep = Callable[[], bool]
"""Called on every rank after each optimiser step but the last; whether to stop there, the same on all ranks."""
Stage = Literal["all", "train", "exchange"]


@dataclass(frozen=True)
class LocalResult:
    """What one site's local training of one round did."""

    samples: int  # rows in the site's training split: the site's weight
    steps: int  # optimiser steps taken in this round
    loss: float  # mean training loss over those steps; stays at the site
    seconds: float
    whole: bool = True  # False: stopped at a step; `steps` are those done


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

    def train(self, round_: int, anchor: Mapping[str, NDArray[Any]], at_step: AtStep = ...) -> LocalResult:
        """Train from the loaded state for one round; `anchor` is the global state (for FedProx).

        After `load` and `restore` of what `tensors` and `private` gave in `at_step`, it goes on from that step.
        """
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
        """The site's private state: optimiser state, RNG, data position. Leader's ranks give all of it.

        Also within a round, from `at_step`.
        """
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
    blind: bytes = field(default=bytes(32), repr=False)  # of the state [32]; empty: written before there was one
    pending: Tensors = field(default_factory=dict)  # what this site measured in the round, which is summed afterwards
    whole: bool = False  # all sites were in the round's sum, so that `pending` is summed


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


@dataclass(frozen=True)
class LocalWork:
    """What one site did in a round and did not sum yet: all of it, or up to the step at which it was stopped."""

    state: bytes  # hash of the global state it began from [32]
    round_: int  # the training round; one more than the last for the measurement of the final model
    result: LocalResult
    measured: Tensors  # of the global state
    tensors: Tensors  # the local model; that of the final model's measurement is the final model
    private: dict[str, NDArray[Any]]
    averaged: frozenset[str] = frozenset()  # as Trainer.averaged gives them


class Outbox(Protocol):
    """Where one site keeps its newest local work until a checkpoint covers it. Leaders write, every rank reads."""

    def find(self, state: bytes) -> LocalWork | None:
        """The work that began from `state` [32], if it is there. Raises DataError if it is damaged."""
        ...

    def holds(self, state: bytes) -> bool:
        """Whether `find` would find something, at little cost."""
        ...

    def keep(self, work: LocalWork) -> None:
        """Write `work`, durably, in place of what was there. Raises StorageError; the old one stays."""
        ...

    def clear(self) -> None:
        """A checkpoint covers it."""
        ...


class Life(Protocol):
    """How long this process may go on, and what it is to do. Asked on every rank."""

    stage: Stage
    """all; train: local work only, nothing is exchanged; exchange: what was trained is summed, nothing is trained."""
    wait_s: float | None
    """How long to wait for a round to begin before this site leaves; None: as agreed."""

    def leaves(self) -> str:
        """Why this rank was told to stop when it can; "" if it was not."""
        ...

    def must_leave(self) -> str:
        """Why there is no time left for what others wait for; "" if there is."""
        ...

    def may_begin(self) -> str:
        """Why another round would not end in time; "" if it would, or if nothing is known."""
        ...

    def hands_on(self) -> bool:
        """Whether the next job may wait for an absent relay in the place of this one."""
        ...

    def trained(self) -> None:
        """This process has trained."""
        ...

    def round_took(self, seconds: float) -> None:
        """A round took so long, without waiting for others."""
        ...

    def keeps_now(self) -> bool:
        """Whether local work should be kept at this step, having not been kept for long."""
        ...

    def kept(self) -> None:
        """Local work or a checkpoint was written."""
        ...


class Reporter(Protocol):
    """Where a run tells what happened. Called on every rank; only the right ones write."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """One finished round: numbers by name, see app/telemetry.py for the keys."""
        ...

    def note(self, text: str) -> None:
        """One line for people."""
        ...
