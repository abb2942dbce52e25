"""The vector that a peer's clients and its server pass around, and how far a result is from what it must be.

Every round client k adds a number of its own to every STRIDE-th number, so that what it does by itself takes no time
that a round could be charged with, and yet no stretch of a vector is sent twice: Flower's store knows contents by their
hash, and would otherwise carry them once for all. Every number of a result is checked, whether it shall have moved or
not. A copy of this file travels with the programs of peers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

STEP = 0.125  # client k, counted from 0, adds (k + 1) * STEP
STRIDE = 1024
PIECE = 1 << 20  # numbers that are looked at together, a multiple of STRIDE, so that a check takes no memory


def stretch(begin: int, end: int) -> np.ndarray[Any, Any]:
    """Numbers `begin` to `end` of the first vector, float32: multiples of 2^-12 between -0.5 and 0.5."""
    mixed = np.arange(begin, end, dtype=np.uint32) * np.uint32(2654435761)
    return (mixed >> np.uint32(20)).astype(np.float32) / np.float32(4096) - np.float32(0.5)


def fill(vector: np.ndarray[Any, Any], first: int = 0) -> np.ndarray[Any, Any]:
    """The same [n] float32, which has become what lies behind number `first` of the first vector."""
    for begin in range(0, vector.size, PIECE):
        end = min(begin + PIECE, vector.size)
        vector[begin:end] = stretch(first + begin, first + end)
    return vector


def first_vector(params: int) -> np.ndarray[Any, Any]:
    """The vector before the first round, [params] float32."""
    return fill(np.empty(params, np.float32))


def move(vector: np.ndarray[Any, Any], client: int, first: int = 0) -> None:
    """What client `client`, counted from 0, does in a round, in place; `vector` begins at number `first`."""
    vector[-first % STRIDE :: STRIDE] += np.float32((client + 1) * STEP)


def largest_error(vector: Any, params: int, rounds: int, sites: int, first: int = 0) -> float:
    """How far the average of `sites` clients is from what it must be after so many rounds.

    Infinite if a number is none, or if there are not `params` numbers of float32 in one row. `first`: the place of the
    first of them in the whole vector, a multiple of STRIDE.
    """
    if getattr(vector, "dtype", None) != np.float32 or vector.shape != (params,) or not params:
        return math.inf
    found, moved = 0.0, rounds * STEP * (sites + 1) / 2
    for begin in range(0, params, PIECE):
        end = min(begin + PIECE, params)
        expected = stretch(first + begin, first + end).astype(np.float64)
        expected[::STRIDE] += moved
        error = float(np.abs(vector[begin:end] - expected).max())
        if not math.isfinite(error):  # a NaN is in no order, and would be lost beside a number
            return math.inf
        found = max(found, error)
    return found


def exactness(rounds: int, sites: int) -> float:
    """The error that an average in float32 may have: none where dividing by the sites is exact."""
    return 0.0 if sites.bit_count() == 1 and sites <= 16 else rounds * sites * 1e-6
