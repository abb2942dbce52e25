"""Named arrays of any kind from a group's first rank to all of its ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.mpi.collectives import Group


def from_leader(group: Group, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The `arrays` of rank 0, as copies, on every rank. Other ranks may give anything."""
    return dict(each_from_leader(group, arrays))


def each_from_leader(group: Group, arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """As `from_leader`, one after the other, for what need not be in memory at once. Every rank goes through all."""
    header = json.dumps([[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]).encode()
    for name, dtype, shape in json.loads(group.broadcast_bytes(header if group.rank == 0 else None)):
        array = np.array(arrays[name], order="C") if group.rank == 0 else np.empty(shape, dtype=dtype)
        group.broadcast(array.reshape(-1).view(np.uint8))
        yield name, array.reshape(shape)
