"""What a site keeps so that it can go on after a round, and the interface to where it is kept.

Shared state means parameters and floating buffers of the model, in state_dict order: float32 arrays, or float64
where the model's tensor is double (half-precision tensors are held as float32). Integer buffers stay local.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.ranges import Held

Tensors = dict[str, NDArray[Any]]
Source = Tensors | Callable[[Tensors], None]
"""Tensors, or what copies them into arrays of their names and shapes: where they need not be in memory twice."""


def read_into(into: Tensors, source: Source) -> None:
    """Copy the tensors of `source` into those of `into`, which may be of a wider kind."""
    if callable(source):
        source(into)
        return
    for name, array in into.items():
        np.copyto(array, source[name], casting="same_kind")


@dataclass
class Checkpoint:
    """All a site needs to go on after `round_` finished rounds."""

    round_: int  # training rounds finished
    sums: int  # masked sums finished: the protocol's round number
    config: bytes  # SHA-256 of federation.toml [32]
    tensors: Tensors  # what this rank holds of the global model
    outer: Tensors = field(default_factory=dict)  # what it holds of the strategy's state, and W of the weights
    private: dict[str, NDArray[Any]] = field(default_factory=dict)  # the trainer's, at the leader
    ledger: bytes = b""  # hash of the ledger's head when the checkpoint was written [32]
    blind: bytes = field(default=bytes(32), repr=False)  # of the state [32]; empty: written before there was one
    pending: Tensors = field(default_factory=dict)  # what this site measured in the round, which is summed afterwards
    whole: bool = False  # all sites were in the round's sum, so that `pending` is summed
    exchange: str = ""  # over which it was summed
    signed: tuple[bytes, ...] = ()  # within one job: M6 of every site over this state (secure/signed_state.py)
    best: Mapping[str, float] = field(default_factory=dict)  # the best round by a metric (rounds/best_round.py)
    # The trainer's private state that is cut as the model, by kind (exp_avg, …): gives what this rank holds of it, by
    # tensor. Every rank of the site calls each in turn, since ranks may have to exchange it.
    parts: Mapping[str, Callable[[], Tensors]] = field(default_factory=dict)
    held: Held | None = None  # what each rank of the site holds; None: this one holds all


class StoredState(Protocol):
    """The state in a checkpoint as one stream of bytes (state_tensors.py), read where it is."""

    round_: int
    sums: int
    nbytes: int

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        """Copy bytes start..stop into `into` [stop - start]. Raises DataError if they are damaged."""
        ...

    def close(self) -> None:
        """Read no more."""
        ...


class CheckpointStore(Protocol):
    """Where one site keeps its checkpoints. Leaders only, where a method says nothing else."""

    def rounds(self) -> list[int]:
        """Rounds with a whole, valid checkpoint, rising."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Write atomically and durably; keep at least the two newest. Raises StorageError; the old ones stay.

        Every rank of the site calls it with what it holds.
        """
        ...

    def load(self, round_: int, held: Held | None = None) -> Checkpoint:
        """The checkpoint of `round_`, as much as `held` gives each rank, which all of them call then; absent: all.

        Raises DataError if it is damaged, or holds another model.
        """
        ...

    def state(self, round_: int) -> StoredState:
        """The state of `round_`, from any thread. Raises DataError if it is damaged."""
        ...

    def keep_apart(self, round_: int) -> None:
        """Keep the checkpoint of `round_`, the best yet, however many newer ones come; the one before it goes.

        Raises StorageError. Does nothing where there is no such checkpoint.
        """
        ...

    def discard_after(self, round_: int) -> None:
        """Remove checkpoints newer than `round_`: the federation goes on from there."""
        ...
