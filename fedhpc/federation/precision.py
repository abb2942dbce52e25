"""Warns, once per name, where the grid that a site's values are rounded to is not small against their sum."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.session import Session
from fedhpc.federation.sum_result import Sums

_log = logging.getLogger("fedhpc.federation")
_STEPS = 2.0**13  # of the grid: fewer in a sum are an error of up to 1 in 10^4
_TILE = 1 << 18  # values in memory at a time, beside the array itself
_FEW = 1000  # one value in so many may be coarse: near zero there always are some, in an array of one scale


def warn_of_coarse(
    session: Session, name: str | None, given: Mapping[str, tuple[NDArray[Any], float]], sums: Sums
) -> None:
    """Warn of arrays of which this site's values and the sum are a few steps of the grid only. At the leader.

    `given`: by name the site's float array and what it was multiplied by. Exact zeros are exact, and where the site's
    own value is many steps a small sum is one of numbers that cancel.
    """
    for array_name, (values, factor) in given.items():
        quantum = np.asarray(sums.quantum[array_name])
        coarse = _coarse(values, factor, quantum, sums[array_name], len(sums.sites))
        key = (name, array_name)
        if coarse * _FEW <= values.size or key in session.warned:
            continue
        session.warned.add(key)
        where = f"'{array_name}' of the sum '{name}'" if name else f"'{array_name}'"
        advice = "leave out bound= or give a smaller one, or per_element=True for a scale of each value"
        if quantum.size > 1:
            advice = "other sites' values are that much larger there, and cancel: sum what they have in common apart"
        _log.warning(
            "%s: %d of %d values are rounded to a grid that is not small against them (see .quantum); %s",
            where, coarse, values.size, advice,
        )  # fmt: skip


def _coarse(values: NDArray[Any], factor: float, quantum: NDArray[np.float64], total: NDArray[Any], sites: int) -> int:
    """How many of a site's `values` are not zero, and like their sum only a few steps of the grid."""
    flat, sums = values.reshape(-1), total.reshape(-1)
    steps = (
        np.broadcast_to(quantum * _STEPS, values.shape).reshape(-1) if quantum.size > 1 else quantum.reshape(1) * _STEPS
    )
    found = 0
    for low in range(0, flat.size, _TILE):
        part = slice(low, low + _TILE)
        step = steps[part] if steps.size > 1 else steps
        own = np.abs(flat[part].astype(np.float64)) * factor
        found += int(((own != 0) & (own < step) & (np.abs(sums[part]) < step * sites)).sum())
    return found
