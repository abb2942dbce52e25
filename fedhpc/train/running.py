"""Running statistics of a model (batch norm's): buffers that training changes on each rank by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.mpi.collectives import Group
from fedhpc.train.state import floating, read_shared, split_state, write_shared


class RunningStatistics:
    """The floating buffers of one site's model. They differ between its ranks within a round only."""

    def __init__(self, model: torch.nn.Module, group: Group, site: str) -> None:
        self._model, self._group, self._site = model, group, site

    def names(self) -> frozenset[str]:
        """Of the floating buffers that the sites share, as in `split_state`."""
        return frozenset(split_state(self._model)[0].keys() & self._tensors().keys())

    def of_ranks(self) -> NDArray[np.uint8]:
        """Each rank's, uint8 [ranks, bytes]. Collective."""
        mine = b"".join(array.tobytes() for array in read_shared(self._tensors()).values())
        return np.stack([np.frombuffer(b, dtype=np.uint8) for b in self._group.gather_bytes(mine)])

    def restore(self, saved: NDArray[np.uint8]) -> None:
        """Load each rank's own if the number of ranks is the same; else all load the leader's.

        Raises DataError if they are of another model.
        """
        if len(saved) != self._group.size:
            return
        arrays, at, mine = read_shared(self._tensors()), 0, saved[self._group.rank]
        if sum(array.nbytes for array in arrays.values()) != mine.size:
            raise DataError(f"site {self._site}: the kept work belongs to another model", "remove the outbox")
        for array in arrays.values():
            array.reshape(-1).view(np.uint8)[:] = mine[at : at + array.nbytes]
            at += array.nbytes
        write_shared(self._tensors(), arrays)

    def settle(self) -> None:
        """Ranks saw their own rows: the leader's statistics become the site's. Collective."""
        if self._group.size > 1:
            write_shared(self._tensors(), self.of_leader())

    def of_leader(self) -> dict[str, NDArray[Any]]:
        """Copies of the leader's, by name, on every rank. Collective."""
        arrays: dict[str, NDArray[Any]] = read_shared(self._tensors())
        for array in arrays.values():
            self._group.broadcast(array)
        return arrays

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Those that are the site's own are among them: its ranks have to agree on them too."""
        parameters = {name for name, _ in self._model.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in sorted(floating(self._model).items()) if name not in parameters}
