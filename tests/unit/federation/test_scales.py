"""Scales from a count of sites per exponent: no value can be beyond its lane, and only the exponent shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import run_ranks

from fedhpc.errors import DataError
from fedhpc.federation.scales import (
    exponent_counts,
    exponent_scales,
    largest_of_site,
    largest_values,
    lost_to_rounding,
    refuse_beyond,
)
from fedhpc.secure.ring import Codec, Layout, Tensor, lane_bound

LOWEST = {"float32": -64, "float64": -512}


def marked(values: Any, kind: str, factor: float = 1.0) -> int:
    """The exponent that was marked."""
    counts = exponent_counts(largest_values({"x": np.asarray(values, dtype=kind)}), factor, "basel")["x"]
    assert counts.dtype == np.int64
    assert counts.sum() == 1
    assert set(counts.tolist()) <= {0, 1}
    return int(np.flatnonzero(counts)[0]) + LOWEST[kind]


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_marks(kind: str) -> None:
    assert marked([0.5, 0.1], kind) == 0
    assert marked([0.1, -0.75], kind) == 0
    assert marked([1.0], kind) == 1
    assert marked([-1.0, 0.0], kind) == 1
    assert marked([3.0, -100.0], kind) == 7
    assert marked([1.0], kind, factor=0.25) == -1
    lowest = LOWEST[kind]
    assert marked([0.0, -0.0], kind) == lowest
    assert marked([], kind) == lowest
    assert marked([2.0 ** (lowest - 30)], kind) == lowest
    assert marked([5.0], kind, factor=0.0) == lowest


def test_size_of_the_histogram_does_not_depend_on_the_data() -> None:
    for values in ([0.0], [1e15], []):
        arrays = {"a": np.array(values, dtype=np.float32), "b": np.array(values)}
        assert [c.size for c in exponent_counts(largest_values(arrays), 1.0, "a").values()] == [128, 1537]


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("bad", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_not_finite_is_named(kind: str, bad: float, what: str) -> None:
    with pytest.raises(DataError, match=f"tensor 'x' of site basel holds {what}"):
        marked([1.0, bad, 2.0], kind)


def test_diverged_float32_is_refused() -> None:
    assert marked([2.0**62], "float32") == 63
    with pytest.raises(DataError, match="tensor 'x' of site basel holds a value beyond"):
        marked([2.0**63], "float32")
    assert marked([float(np.finfo(np.float64).max)], "float64") == 1024


@given(
    sites=st.lists(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=5), min_size=2, max_size=6),
    kind=st.sampled_from(["float32", "float64"]),
    factor=st.floats(1e-6, 1.0),
)
def test_every_site_fits_the_chosen_scale(sites: list[list[float]], kind: str, factor: float) -> None:
    bits = 32 if kind == "float32" else 64
    arrays = [np.array(v, dtype=kind) for v in sites]
    counts = [exponent_counts(largest_values({"x": a}), factor, "basel")["x"] for a in arrays]
    scale = exponent_scales({"x": np.add.reduce(counts)}, {"x": bits}, len(sites))["x"]
    for a in arrays:
        layout = Layout([Tensor("x", kind, a.shape, scale)])
        buffer = np.zeros(layout.nbytes, dtype=np.uint8)
        buffer[: a.nbytes] = a.view(np.uint8)
        (piece,) = layout.pieces(0, layout.nbytes)
        Codec(len(sites), "basel", {"x": factor}).check(piece.values_in(buffer), piece)  # no site is refused
    largest = max(float(np.abs(a).max()) for a in arrays) * factor
    if largest >= 2.0 ** LOWEST[kind]:  # and at most two bits are wasted
        assert math.ldexp(largest, scale + 3) > lane_bound(bits, len(sites))


def test_lanes_keep_room_for_sites_that_were_lost_in_the_count() -> None:
    counts = np.zeros(128, dtype=np.int64)
    counts[64] = 2
    assert exponent_scales({"x": counts}, {"x": 32}, 2) == {"x": 29}
    # A site that was lost marks nothing: it may be in the sum that follows.
    assert exponent_scales({"x": counts}, {"x": 32}, 5) == {"x": 28}


@given(
    values=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=5),
    larger=st.integers(0, 120),
    kind=st.sampled_from(["float32", "float64"]),
)
def test_what_a_scale_rounds_to_nothing_is_found(values: list[float], larger: int, kind: str) -> None:
    """`lost_to_rounding` against the codec itself, where another site has marked a bin that lies `larger` higher."""
    bits = 32 if kind == "float32" else 64
    array = np.array(values, dtype=kind)
    marks = exponent_counts(largest_values({"x": array}), 1.0, "basel")
    top = min(int(np.flatnonzero(marks["x"])[0]) + larger, marks["x"].size - 1)
    other = np.zeros_like(marks["x"])
    other[top] = 1
    scales = exponent_scales({"x": marks["x"] + other}, {"x": bits}, 4)
    layout = Layout([Tensor("x", kind, array.shape, scales["x"])])
    buffer = np.zeros(layout.nbytes, dtype=np.uint8)
    buffer[: array.nbytes] = array.view(np.uint8)
    for piece in layout.pieces(0, layout.nbytes):
        Codec(4, "basel").encode(piece.values_in(buffer), piece.lanes_in(buffer), piece)
    all_zero = not buffer.any()
    largest = float(np.abs(array).max())
    if largest >= 2.0 ** LOWEST[kind] and math.ldexp(largest, scales["x"]) != 0.5:
        assert bool(lost_to_rounding(marks, scales, {"x": bits})) == all_zero
    elif largest == 0:
        assert lost_to_rounding(marks, scales, {"x": bits}) == []


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_refuse_beyond_is_exact(kind: str) -> None:
    bound = 0.1  # not a float32: its nearest float32 is the bound there
    at = np.dtype(kind).type(bound)
    fine = {"x": np.array([at, -at, 0], dtype=kind), "empty": np.zeros(0, dtype=kind)}
    refuse_beyond(largest_values(fine), bound, "basel")
    for value in (np.nextafter(at, np.dtype(kind).type(1)), -np.nextafter(at, np.dtype(kind).type(1))):
        with pytest.raises(DataError, match=r"tensor 'x' of site basel holds a value beyond the bound 0.1"):
            refuse_beyond(largest_values({"x": np.array([value], dtype=kind)}), bound, "basel")
    with pytest.raises(DataError, match="'x' of site basel holds NaN"):
        refuse_beyond(largest_values({"x": np.array([np.nan], dtype=kind)}), bound, "basel")


def test_the_largest_value_of_a_site_is_that_of_any_rank() -> None:
    """Whichever holds it: the scale, the bound and the look for NaN are the site's."""
    pieces = [
        {"a": np.float32([1.0, -2.0]), "b": np.empty(0), "c": np.float64([3.0])},
        {"a": np.float32([np.nan]), "b": np.float64([-7.0, 4.0]), "c": np.empty(0)},
        {"a": np.empty(0, np.float32), "b": np.float64([5.0]), "c": np.float64([-np.inf])},
    ]
    for found in run_ranks(3, lambda site: largest_of_site(site, pieces[site.rank])):
        assert np.isnan(found["a"].value)
        assert (found["b"].value, found["c"].value) == (7.0, np.inf)
        assert [each.dtype.name for each in found.values()] == ["float32", "float64", "float64"]
