"""The tensors of a state: everything that sites share and that the next round depends on, in one order.

The model's tensors in layout order, the strategy's own sorted by name, W, the number of training rounds done, and the
blind, without which the relay could guess a small model and see from the state's hash that it is right. Their Tree is
in the state that τ sites sign, so a site that was away can take all of them from any other site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.checkpoint import Checkpoint, Tensors
from fedhpc.mpi.collectives import Group
from fedhpc.secure.suite import Suite
from fedhpc.secure.transcript import TREE_BLOCK_BYTES

TOTAL_WEIGHT = "total_weight"

Arrays = list[NDArray[Any]]


def model_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of all tensors' raw little-endian bytes in their order, in hex: THE hash of a model, equal at all sites.

    It covers what is exported, not the state around it. It is never sent: it would confirm a guess of a small model.
    """
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def state_arrays(
    tensors: Tensors, outer: Mapping[str, NDArray[Any]], total_weight: float | None, rounds: int, blind: bytes
) -> Arrays:
    """The arrays of a state. `outer`: the strategy's. `total_weight`: W, None if not summed yet. `blind` [32]."""
    tail = [np.array([total_weight or 0.0], dtype="<f8"), np.array([rounds], dtype="<i8")]
    hidden = np.frombuffer(bytearray(blind), dtype=np.uint8)
    return [*tensors.values(), *(outer[name] for name in sorted(outer)), *tail, hidden]


def model_name(outer: str) -> str:
    """The tensor that an array of the strategy's belongs to, and is cut as: `velocity/NAME` to NAME."""
    return outer.partition("/")[2]


def arrays_of_checkpoint(checkpoint: Checkpoint) -> Arrays:
    """The arrays of the state that a checkpoint holds."""
    outer = {name: array for name, array in checkpoint.outer.items() if name != TOTAL_WEIGHT}
    weight = float(checkpoint.outer[TOTAL_WEIGHT][0]) if TOTAL_WEIGHT in checkpoint.outer else None
    return state_arrays(checkpoint.tensors, outer, weight, checkpoint.round_, checkpoint.blind)


def total_bytes(arrays: Sequence[NDArray[Any]]) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in arrays)


def tensors_tree(site: Group, arrays: Sequence[NDArray[Any]], suite: Suite) -> bytes:
    """Tree of the arrays' raw bytes [32], which every rank of the site holds; each hashes a share of the blocks."""
    whole = [np.ascontiguousarray(array) for array in arrays]
    nbytes = total_bytes(whole)
    blocks = -(-nbytes // TREE_BLOCK_BYTES)
    first, last = (blocks * (site.rank + i) // site.size for i in (0, 1))
    mine = b"".join(suite.joined_blocks(whole, first, last))
    return suite.root(nbytes, site.gather_bytes(mine))
