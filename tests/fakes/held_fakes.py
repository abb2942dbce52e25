"""The model of a fake trainer: all of it on every rank, given and taken in the parts that the main loop asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.checkpoint import Tensors, read_into
from fedhpc.federation.held_stream import HeldStream, joined, spread
from fedhpc.federation.ranges import Forms, Held, forms_of
from fedhpc.mpi.arrays import from_leader


class HeldTensors:
    """What every fake trainer has of the Trainer interface; `now` is its model."""

    now: Tensors
    held: Held | None = None

    def forms(self) -> Forms:
        return forms_of(self.now)

    def hold(self, held: Held) -> None:
        self.held = held

    def tensors(self) -> Tensors:
        if self.held is None:
            return {n: t.copy() for n, t in self.now.items()}
        return self.held.pieces(self.now)

    def read(self, into: Tensors) -> None:
        read_into(into, self.tensors())

    def load(self, tensors: Mapping[str, Any]) -> None:
        if self.held is None:
            self.now = {n: t.copy() for n, t in tensors.items()}
            return
        whole = {n: np.empty(f.shape, f.dtype) for n, f in self.held.forms.items()}
        for name, first, values in spread(self.held, tensors):
            whole[name].reshape(-1)[first : first + values.size] = values
        self.now = whole

    def private_in_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.private(), {}  # type: ignore[attr-defined]

    def restore_parts(self, parts: Mapping[str, Any]) -> None:
        assert not parts

    def from_leader(self, private: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the site's leader has of a checkpoint, on every rank."""
        return private if self.held is None else from_leader(self.held.site, private)


def gather(held: Held, arrays: Mapping[str, tuple[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Whole arrays by name at the leader, from all ranks' pieces; empty at the others.

    `arrays`: each with the name of the tensor that it is cut as.
    """
    site = held.site
    if held.replicated or site.size == 1:
        return {name: array for name, (_, array) in arrays.items()} if site.rank == 0 else {}
    stream = HeldStream(held, list(arrays.values()))
    whole = {}
    if site.rank == 0:
        whole = {name: np.empty(held.forms[model].shape, array.dtype) for name, (model, array) in arrays.items()}
    into, at = joined(list(whole.values())), 0
    for window in stream.to_leader():
        into.write(at, at + window.size, window)
        at += window.size
    return whole
