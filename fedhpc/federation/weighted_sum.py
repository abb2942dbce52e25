"""Σ factor · array over the sites, array by array: what `fed.sum`, `fed.mean` and the sums of weights share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.element_scales import ElementScales, choose_element_scales, with_own_scales
from fedhpc.federation.given_arrays import given_arrays
from fedhpc.federation.precision import warn_of_coarse
from fedhpc.federation.scale_choice import choose_scales
from fedhpc.federation.scales import Scales, largest_values, refuse_beyond, refuse_not_finite
from fedhpc.federation.session import Session
from fedhpc.federation.sum_result import Sums, as_float
from fedhpc.federation.vector import Vector, check_text, sum_kind
from fedhpc.ledger.sum_class import class_of
from fedhpc.secure import labels
from fedhpc.secure.ring import Tensor, scale_for, scale_for_exponent

_Floats = Mapping[str, NDArray[Any]]
_WEIGHT_BOUND = 2.0**40


def weighted_sum(
    session: Session,
    arrays: Mapping[str, Any],
    factor: float,
    *,
    bound: float | None = None,
    name: str | None = None,
    per_element: bool | None = None,
    everyone: bool = False,
    average: bool = False,
    skip: bool = False,
    category: str = "",
    floats_only: bool = False,
) -> Sums | None:
    """Σ factor · array by name; None if it was skipped. `average`: an equal mean over the sites in the sum.

    `category`: the ledger's class; empty: that of its name. `floats_only`: integers go as float64.
    """
    values = given_arrays(arrays)
    sources: dict[str, str] = {}
    if floats_only:  # the ledger knows them as the integers that they are
        sources = {n: "int64" for n, a in values.items() if a.dtype.kind in "iub"}
        values = {n: as_float(a) for n, a in values.items()}
    kinds = {n: sum_kind(n, a) for n, a in values.items()}
    if bound is not None and not (math.isfinite(bound) and bound > 0):
        raise ConfigError(f"bound = {bound}", "it must be a positive number, the same at every site")
    purpose = check_text(name, "name") if name else f"sum {session.round_ + 1}"
    floats = {n: a for n, a in values.items() if kinds[n] != "int64"}
    if skip and (not everyone or (floats and (bound is None or per_element))):
        # A scale of its own could be skipped by some sites and not by others, which then ask for different sums.
        raise ConfigError("skip=True is for a sum over everyone, of integers or with bound=", "give bound= alone")
    fine = {n: floats[n] for n in with_own_scales(floats, bound, per_element)}
    rest = {n: a for n, a in floats.items() if a.size and n not in fine}
    if session.leads:  # the leader's values count
        if bound is not None:
            refuse_beyond(largest_values(floats), bound, session.site)
        else:
            refuse_not_finite(largest_values(floats), session.site)
    own = choose_element_scales(session, fine, factor, purpose, bound=bound, everyone=everyone)
    scales = _scales(session, rest, bound, factor, purpose, own, everyone=everyone)
    for n in own.exponents:  # 64-bit lanes, which have room for the size of a bin
        if kinds[n] == "float32":
            sources[n] = "float32"
    lanes = {n: "float64" if n in own.exponents else kind for n, kind in kinds.items()}
    layout = session.layout([Tensor(n, lanes[n], values[n].shape, scales.by_name.get(n, 0)) for n in values])
    vector = Vector(layout)
    vector.fill({n: a.astype(lanes[n], copy=False) for n, a in values.items()})
    vector.sources = sources
    factors = dict.fromkeys(floats, factor)
    category = category or class_of(name)
    plan = session.statistic(purpose, factors, scales, everyone=everyone, skip=skip, category=category)
    opened = session.add(vector, plan)
    if opened is None:
        return None
    sums = Sums.of(vector, opened, session.sites, own, kinds, average=average)
    if session.leads and len(session.sites) > 1:
        warn_of_coarse(session, name, {n: (a, factor) for n, a in floats.items()}, sums)
    return sums


def weight_share(session: Session, weight: float, name: str | None = None) -> float:
    """w_u / W for this site's private `weight`, 0 to 2^40; W is a masked sum.

    Whole numbers are exact, fractions are rounded to a public grid (2^-20 for 3 sites, 2^-15 for 100), here as in W, so
    that shares add up to 1.
    """
    weight = session.from_leader(weight)  # all ranks of the site must scale their parts alike
    total = _sum_of_weights(session, weight, name)
    if total["weight"] <= 0:
        raise DataError("the weights of all sites add up to 0", "at least one site must have rows")
    grid = total.quantum["weight"]
    return (round(weight / grid) * grid if grid else weight) / float(total["weight"])


def total_weight(session: Session, weight: float, name: str | None = None) -> float:
    """W, the sum of every site's private `weight`. `name`: what the ledger calls it."""
    return float(_sum_of_weights(session, weight, name)["weight"])


def _sum_of_weights(session: Session, weight: float, name: str | None) -> Sums:
    if not (math.isfinite(weight) and 0 <= weight <= _WEIGHT_BOUND):
        raise DataError(f"site {session.site} has the weight {weight}", "weights are finite and at least 0")
    weights = {"weight": np.float64(weight)}
    # W over two sets that differ in one site would be that site's size, so it is always the sum over all.
    name = name or f"weights {session.round_ + 1}"
    category = labels.CLASS_WEIGHTS
    found = weighted_sum(session, weights, 1.0, bound=_WEIGHT_BOUND, name=name, everyone=True, category=category)
    assert found is not None
    return found


def _scales(
    session: Session,
    rest: _Floats,
    bound: float | None,
    factor: float,
    purpose: str,
    own: ElementScales,
    *,
    everyone: bool,
) -> Scales:
    """Of all float arrays: one that is public where each element has its own, and one for each array of the `rest`."""
    sites = len(session.sites)
    units = dict.fromkeys(own.exponents, scale_for_exponent(0, 64, sites))
    if bound is not None:
        chosen = Scales({n: scale_for(bound, 8 * a.itemsize, sites) for n, a in rest.items()})
    else:
        seen = rest if session.leads else {n: np.empty(0, a.dtype) for n, a in rest.items()}  # the leader's count
        what = f"scale of arrays of {purpose}"
        chosen = choose_scales(session, largest_values(seen), factor, what, everyone=everyone)
    return Scales({**chosen.by_name, **units}, chosen.salt or own.salt, chosen.lost, own.exponents)
