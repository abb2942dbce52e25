"""A scale for each element: no neighbour's unit takes its digits, and all that is told is the size of the largest."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest
from federation_fakes import FakeSums, Meeting, session_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from train_fakes import make_trainer

from fedhpc.app.federation import Federation
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation import element_scales
from fedhpc.federation.element_scales import MOST_ELEMENTS, with_own_scales
from fedhpc.federation.party import Checked, Summed
from fedhpc.federation.session import Session
from fedhpc.federation.stages import Stages
from fedhpc.secure.elements import NO_VALUE, exponents_of, scaled
from fedhpc.secure.largest import largest
from fedhpc.secure.ring import Codec, Layout, Tensor, lane_bound, scale_for_exponent
from fedhpc.train.settings import TrainSettings
from fedhpc.train.standardise import standardise

LARGEST = float(np.finfo(np.float64).max) / 8
FLOATS = st.floats(-LARGEST, LARGEST)


def summed(values: list[Any], sites: int = 3, **how: Any) -> Any:
    """What site 1 gets, where site u gives values[u - 1]."""
    meeting = Meeting(sites)
    return meeting.run(lambda session: Federation(session).sum({"x": values[session.party.number - 1]}, **how))[1]


# --- exact powers of two


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.floats(1e-12, 1.0))
def test_exponents_bound_the_products(values: list[float], weight: float) -> None:
    array = np.array(values)
    for x, e in zip(values, exponents_of(array, weight).tolist(), strict=True):
        if x == 0:
            assert e == NO_VALUE
        else:
            mantissa, exponent = math.frexp(x)
            part, more = math.frexp(mantissa * weight)
            assert e == exponent + more
            assert 0.5 <= abs(part) < 1


@pytest.mark.parametrize("x", [5e-324, 1e-310, 1e-200, 0.3, -1.0, 1e300, 1.7e308])
def test_scaling_neither_overflows_nor_loses_digits_on_the_way(x: float) -> None:
    (e,) = exponents_of(np.array([x]), 0.7)
    (found,) = scaled(np.array([x]), 0.7, np.array([61 - e], np.int32))
    mantissa, exponent = math.frexp(x)
    assert found == math.ldexp(mantissa * 0.7, exponent + 61 - int(e))
    assert 2.0**60 <= abs(found) <= 2.0**61


def test_lanes_of_many_elements_cut_anywhere() -> None:
    """More than a tile, in pieces, beside another tensor: every lane has its own exponent."""
    count = 70_001
    draw = np.random.default_rng(4)
    values = np.ldexp(draw.uniform(-1, 1, count), draw.integers(-900, 900, count))
    exponents = exponents_of(values, 0.3)
    layout = Layout([Tensor("n", "int64", (5,)), Tensor("x", "float64", (count,), scale_for_exponent(0, 64, 3))])
    buffer = np.zeros(layout.nbytes, np.uint8)
    buffer[layout.offsets[1] :] = values.view(np.uint8)
    codec = Codec(3, "basel", {"x": 0.3}, None, {"x": exponents})
    cuts = [0, 16, 1 << 15, 1 << 18, layout.nbytes]
    pieces = [p for low, high in itertools.pairwise(cuts) for p in layout.pieces(low, high)]
    for piece in pieces:
        codec.check(piece.values_in(buffer), piece)
        codec.encode(piece.values_in(buffer), piece.lanes_in(buffer), piece)
    lanes = buffer[layout.offsets[1] :].view("<i8")
    assert (np.abs(lanes) >= 2**60).all()
    for piece in reversed(pieces):
        codec.decode(piece.lanes_in(buffer), piece.values_in(buffer), piece)
    np.testing.assert_allclose(buffer[layout.offsets[1] :].view("<f8"), values * 0.3, rtol=4e-16)
    buffer[layout.offsets[1] :] = values.view(np.uint8)
    low = Codec(3, "basel", {"x": 0.3}, None, {"x": exponents - np.int32(2)})
    with pytest.raises(DataError, match="beyond the bound"):
        low.check(pieces[-1].values_in(buffer), pieces[-1])


# --- sums


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=6))
@example([(1e300, 5e-324, 0.0), (5e-324, 5e-324, -5e-324), (0.0, 0.0, 0.0), (1e9, -1e9, 1e-3), (1e-200, 0.0, 0.0)])
def test_each_element_is_as_exact_as_its_own_largest_value(rows: list[tuple[float, float, float]]) -> None:
    found = summed([np.array([row[u] for row in rows]) for u in range(3)])
    for row, total, quantum in zip(rows, found["x"], found.quantum["x"], strict=True):
        top = max(abs(x) for x in row)
        assert abs(total - math.fsum(row)) <= 6 * 2.0**-52 * top
        assert quantum <= 2.0**-52 * top
        assert (quantum == 0) <= (top < 2.0**-1010)  # where the sum is exact


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("sites", [3, 4, 10])
def test_both_kinds_with_sites_that_hold_zero_alone(kind: type, sites: int) -> None:
    column = np.array([2e-38, 0.1, 1.0, 3e30, 0.0], kind)
    mine = [column if u == 1 else column * 0 for u in range(sites)]
    found = summed(mine, sites)["x"]
    assert found.dtype == kind
    assert found.tolist() == column.tolist()


@pytest.mark.parametrize("sites", [4, 9, 30])
def test_large_numbers_that_cancel_leave_the_small_ones(sites: int) -> None:
    values = [np.array([x]) for x in (1e16, -1e16, 1.0, 1.0, *[0.0] * (sites - 4))]
    assert summed(values, sites)["x"][0] == 2.0


def test_means_with_and_without_weights() -> None:
    x = np.array([1e300, 1e-300, -3.0, 0.0, 1e9])

    def work(session: Session) -> Any:
        me = session.party.number
        return Federation(session).mean({"x": x * me}), Federation(session).mean({"x": x * me}, weight=me)

    plain, weighted = Meeting(3).run(work)[1]
    np.testing.assert_allclose(plain["x"], 2 * x, rtol=1e-15)
    np.testing.assert_allclose(weighted["x"], x * 14 / 6, rtol=1e-15)


def test_stochastic_rounding_takes_the_scales_too() -> None:
    x = np.array([1e9, 1e-9, 0.0])
    meeting = Meeting(3, secure={"rounding": "stochastic"})
    found = meeting.run(lambda session: Federation(session).sum({"x": x}))[1]
    np.testing.assert_allclose(found["x"], 3 * x, rtol=1e-15)


def test_a_bound_has_one_grid_unless_each_element_is_asked_to_have_one() -> None:
    x = np.array([1e9, 1e-12, 1e-300])
    assert summed([x] * 3, bound=1e9)["x"].tolist()[1:] == [0.0, 0.0]
    fine = summed([x] * 3, bound=1e9, per_element=True)
    np.testing.assert_allclose(fine["x"][:2], 3 * x[:2], rtol=1e-15)
    with pytest.raises(DataError, match="beyond the bound"):
        summed([x, x * 2, x], bound=1e9, per_element=True)
    with pytest.raises(ConfigError, match="skip=True"):
        summed([x] * 3, bound=1e9, per_element=True, skip=True)


def test_a_sum_beyond_float64_is_refused_at_every_site() -> None:
    with pytest.raises(DataError, match="the sum of 'x' is beyond float64"):
        summed([np.array([1.7e308])] * 3)
    with pytest.raises(DataError, match="the sum of 'x' is beyond float32"):
        summed([np.array([3e38], np.float32)] * 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "how", [{}, {"per_element": True}, {"per_element": False}, {"bound": 9.0, "per_element": True}]
)
def test_what_is_not_finite_is_refused_before_anything_is_asked(bad: float, how: dict[str, Any]) -> None:
    meeting = Meeting(1)
    session = meeting.session(1)
    with pytest.raises(DataError, match=r"'x' of site s1 holds"):
        Federation(session).sum({"fine": 1.0, "x": np.array([1.0, bad])}, **how)
    assert meeting.plans == []


def test_a_sum_of_one_number_costs_one_sum_of_marks_and_one_with_a_bound_none() -> None:
    meeting = Meeting(3)
    sizes: dict[str, int] = {}
    meeting.noted = lambda plan, layout: sizes.update({plan.purpose: layout.payload_bytes})

    def work(session: Session) -> None:
        Federation(session).sum(1.0, name="one")
        Federation(session).sum(1.0, name="two", bound=2.0)
        Federation(session).sum({"n": 1, "none": np.zeros(0)}, name="three")

    meeting.run(work)
    assert list(sizes) == ["scale of one", "one", "two", "three"]
    assert sizes["scale of one"] <= 8 * 263


def test_the_smallest_arrays_have_scales_of_elements() -> None:
    arrays = {"a": np.zeros(MOST_ELEMENTS), "b": np.zeros(3), "c": np.zeros(MOST_ELEMENTS - 3), "d": np.zeros(0)}
    assert with_own_scales(arrays, None, None) == ["b", "c"]
    assert with_own_scales(arrays, 1.0, None) == with_own_scales(arrays, None, False) == []
    assert set(with_own_scales(arrays, 1.0, True)) == set(with_own_scales(arrays, None, True)) == {"a", "b", "c"}


def test_large_and_small_arrays_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales of elements in slices, and one for each larger array, in the same sum."""
    monkeypatch.setattr(element_scales, "MOST_ELEMENTS", 60)
    monkeypatch.setattr(element_scales, "_MOST_CELLS", 263 * 25)
    draw = np.random.default_rng(0)
    units = 10.0 ** draw.integers(-12, 12, 40)
    arrays = {"small": units * draw.normal(size=40), "other": np.float32([1e-9, 1e9]), "large": draw.normal(size=70)}
    meeting = Meeting(3)
    found = meeting.run(lambda session: Federation(session).sum({**arrays, "n": 1}, name="all"))[1]
    assert [p.purpose for p in meeting.plans] == [
        "scale of all", "scale 2 of all", "scale of arrays of all", "all",
    ]  # fmt: skip
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], 3 * array.astype(float), rtol=1e-6 if name == "other" else 1e-14)
    assert isinstance(found.quantum["large"], float)
    assert found.quantum["small"].shape == (40,)
    # Where sums fixed scales, what stands in M0 is keyed with their S.
    assert [plan.layout_key == b"" for plan in meeting.plans] == [True, True, True, False]


# --- what is told, and what the ledger knows


class Noting(FakeSums):
    """Notes what site 1's ledger would know each sum by, and what sums of marks showed."""

    seen: dict[str, list[Any]]

    def open(self, checked: Checked, stages: Stages) -> Summed:
        plan, mark = checked.plan, checked.mark
        if self._party.number == 1:
            self.seen.setdefault(plan.purpose, []).append((mark.value, mark.fingerprint, plan.category))
        summed = super().open(checked, stages)
        if self._party.number == 1 and plan.category == "scale":
            self.seen.setdefault("levels", []).append(largest(checked.vector.view("x")).tolist())
        return summed


def noted(values: dict[int, Any], **how: Any) -> dict[str, list[Any]]:
    meeting, seen = Meeting(3), {}  # type: ignore[var-annotated]

    def work(session: Session) -> None:
        party = session.party
        mine = session_of(party, type("Noted", (Noting,), {"seen": seen})(meeting, party))
        Federation(mine).sum({"x": values[party.number]}, name="x", **how)

    meeting.run(work)
    return seen


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_same_numbers_beside_others_are_the_same_source(kind: type) -> None:
    """Rule 5a: whatever exponents the others' numbers lead to, and in whatever lanes they travel."""
    mine = np.array([0.1, 7.0, 0.0], kind)
    first = noted({1: mine, 2: mine, 3: mine})["x"][0]
    larger = noted({1: mine, 2: mine * kind(1e9), 3: mine * 0})["x"][0]
    bounded = noted({1: mine, 2: mine, 3: mine}, bound=8.0)["x"][0]
    changed = noted({1: mine * kind(2), 2: mine, 3: mine})["x"][0]
    assert first[0] == larger[0] == bounded[0] != changed[0]
    assert len({first[1], larger[1], bounded[1], changed[1]}) == 4  # but it is not the same vector of one round


def test_the_sites_learn_one_level_for_each_element() -> None:
    one = noted({1: np.array([1.0, 0.0]), 2: np.array([100.0, 0.0]), 3: np.array([-1e-9, 5.0])})
    other = noted({1: np.array([1.0, 0.0]), 2: np.array([3.0, -1.0]), 3: np.array([99.0, 2.0])})
    assert one["levels"] == other["levels"]
    assert one["scale of x"][0][2] == "scale"


class Exaggerating(FakeSums):
    """Site 3 marks the largest size for every element, and adds nothing."""

    def open(self, checked: Checked, stages: Stages) -> Summed:
        if self._party.number == 3 and checked.plan.category == "scale":
            for cells in checked.vector.views().values():
                cells += 1
        return super().open(checked, stages)


def test_a_false_mark_is_told_and_makes_no_constant(caplog: pytest.LogCaptureFixture) -> None:
    meeting = Meeting(3)
    seen: list[Any] = []

    def work(session: Session) -> None:
        party = session.party
        mine = session_of(party, Exaggerating(meeting, party))
        seen.append(Federation(mine).sum({"x": np.array([1.0, 2.0]) * (party.number != 3)}))

    with caplog.at_level(logging.WARNING, logger="fedhpc.federation"):
        meeting.run(work)
    assert [found["x"].tolist() for found in seen] == [[0.0, 0.0]] * 3
    assert all((found.quantum["x"] > 1e280).all() for found in seen)  # so it does not count as exact
    assert caplog.text.count("'x': 2 of 2 values are rounded to a grid that is not small") == 2

    def standardised(session: Session) -> str:
        trainer = make_trainer(TrainSettings(lr=0.1, local_steps=1), held_out=0)
        mine = session_of(session.party, Exaggerating(meeting, session.party))
        with pytest.raises(DataError) as caught:
            standardise(Federation(mine).sum, trainer)
        return caught.value.what

    assert set(meeting.run(standardised).values()) == {
        "features 0, 1, 2, 3, 4: the deviation is too small to be told from 0"
    }


def test_a_site_is_never_refused_for_a_scale() -> None:
    """The lanes of every site fit for every size within a bin, also at its edges."""
    for top in (1.0, np.nextafter(1.0, 0), 2.0**8, np.nextafter(2.0**8, 0), 2.0**-8, 1.5):
        for sites in (3, 5, 10):
            found = summed([np.array([top])] * sites, sites)
            assert found["x"][0] == sites * top
            assert found.quantum["x"][0] * lane_bound(64, sites) >= top
