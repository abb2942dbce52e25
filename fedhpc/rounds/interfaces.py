"""What the main loop needs from the rows above it, as small interfaces. Their makers are handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import Forms, Held

Parts = Mapping[str, Callable[[], Tensors]]
"""Private state that is cut as the model, by kind: each gives what this rank holds of it, by tensor. Collective."""

AtStep = Callable[[], bool]
"""Called on every rank after each optimiser step but the last; whether to stop there, the same on all ranks."""


@dataclass(frozen=True)
class LocalResult:
    """What one site's local training of one round did."""

    samples: int  # rows in the site's training split: the site's weight
    steps: int  # optimiser steps taken in this round
    loss: float  # mean training loss over those steps; stays at the site
    seconds: float
    whole: bool = True  # False: stopped at a step; `steps` are those done


class Trainer(Protocol):
    """One site's local training. Every rank of the site makes every call (they may be collective in the site).

    What is called a model's tensors here is what this rank holds of them (federation/ranges.py): all, before `hold`.
    """

    def forms(self) -> Forms:
        """The shared state's tensors, in layout order."""
        ...

    def hold(self, held: Held) -> None:
        """From now on give and take what `held` says."""
        ...

    def tensors(self) -> Tensors:
        """Copies of what this rank holds of the shared state, C-contiguous."""
        ...

    def read(self, into: Tensors) -> None:
        """As `tensors`, into arrays of these names and shapes, which may be of a wider kind."""
        ...

    def averaged(self) -> frozenset[str]:
        """Names in `tensors()` that the outer step averages and does not optimise: floating buffers."""
        ...

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Replace the whole shared state by `tensors` (same names, shapes and dtypes as `tensors()` gives)."""
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
        """The site's private state: optimiser state, RNG, data position. The leader's holds for all ranks.

        Also within a round, from `at_step`.
        """
        ...

    def private_in_parts(self) -> tuple[dict[str, NDArray[Any]], Parts]:
        """As `private`, but what is cut as the model comes by itself, as each rank holds it."""
        ...

    def restore(self, private: Mapping[str, NDArray[Any]]) -> None:
        """Continue as if never interrupted, from what `private` returned on the site's leader; it has it alone."""
        ...

    def restore_parts(self, parts: Parts) -> None:
        """After `restore`: what `private_in_parts` gave by itself, as each rank holds it now."""
        ...


@dataclass(frozen=True)
class LocalWork:
    """What one site did in a round and did not sum yet: all of it, or up to the step at which it was stopped."""

    state: bytes  # hash of the global state it began from [32]
    round_: int  # the training round; one more than the last for the measurement of the final model
    result: LocalResult
    measured: Tensors  # of the global state
    tensors: Tensors  # the local model, as `held` says; that of the final model's measurement is the final model
    private: dict[str, NDArray[Any]]  # at the leader
    averaged: frozenset[str] = frozenset()  # as Trainer.averaged gives them
    held: Held | None = None  # what each rank holds; None: all of it
    forms: Forms | None = None  # of the whole model, where `tensors` are left in the outbox


class Outbox(Protocol):
    """Where one site keeps its newest local work until a checkpoint covers it. Every rank makes every call."""

    def find(self, state: bytes, held: Held | None = None) -> LocalWork | None:
        """The work that began from `state` [32], None if it is not there; the model as `held` says, absent: all of it.

        Raises DataError if it is damaged, or of another model.
        """
        ...

    def holds(self, state: bytes) -> bool:
        """Whether `find` would find something, at little cost."""
        ...

    def keep(self, work: LocalWork) -> None:
        """Write `work`, durably, in place of what was there. Raises StorageError; the old one stays."""
        ...

    def clear(self) -> None:
        """Remove the work: a checkpoint covers it."""
        ...


class Reporter(Protocol):
    """Where a run tells what happened. Called on every rank; only the right ones write."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """One finished round: numbers by name, see app/telemetry.py for the keys."""
        ...

    def note(self, text: str) -> None:
        """One line for people."""
        ...
