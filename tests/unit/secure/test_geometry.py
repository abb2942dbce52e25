"""Where lanes lie: the offsets, runs and gaps that sites and relay share."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fakes import proposal_of

from fedhpc.errors import PolicyError
from fedhpc.secure.geometry import Geometry, refuse_lane_bits
from fedhpc.secure.messages import read_proposal
from fedhpc.secure.ring import Layout, Tensor

tensors_of_a_vector = st.lists(st.tuples(st.sampled_from([8, 16, 32, 64]), st.integers(0, 40)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(tensors_of_a_vector, st.integers(0, 30), st.integers(0, 30))
def test_every_byte_is_a_lane_or_a_gap(tensors: list[tuple[int, int]], low: int, high: int) -> None:
    """Against a picture of the vector, byte by byte: which tensor it is, None for a gap."""
    picture: list[int | None] = []
    firsts = []
    for index, (bits, lanes) in enumerate(tensors):
        picture += [None] * (-len(picture) % 16)
        firsts.append(len(picture))
        picture += [index] * (lanes * bits // 8)
    geometry = Geometry(tensors)
    assert geometry.offsets == firsts
    assert geometry.nbytes == len(picture)
    assert [geometry.end(i) for i in range(len(tensors))] == [
        first + bits * lanes // 8 for first, (bits, lanes) in zip(firsts, tensors, strict=True)
    ]
    start, stop = sorted((min(16 * low, len(picture)), min(16 * high, len(picture))))
    found: list[int | None] = [None] * (stop - start)
    for index, at, end, lane in geometry.stretches(start, stop):
        assert start <= at < end <= stop
        assert lane == (at - firsts[index]) * 8 // tensors[index][0]
        found[at - start : end - start] = [index] * (end - at)
    assert found == picture[start:stop]
    gaps = {byte for a, b in geometry.gaps(start, stop) for byte in range(a, b)}
    assert gaps == {byte for byte in range(start, stop) if picture[byte] is None}
    covered: set[int] = set()
    for at, end, bits in geometry.runs(start, stop):
        assert at % 16 == 0
        assert (end - at) % (bits // 8) == 0
        assert {tensors[i][0] for i in picture[at:end] if i is not None} == {bits}
        assert picture[end - 1] is not None
        covered |= set(range(at, end))
    assert covered | gaps == set(range(start, stop))


def test_runs_of_one_width_are_joined_over_gaps() -> None:
    geometry = Geometry([(32, 5), (32, 3), (64, 1), (32, 0), (64, 2)])
    assert geometry.offsets == [0, 32, 48, 64, 64]
    assert geometry.runs(0, 80) == [(0, 44, 32), (48, 80, 64)]
    assert geometry.runs(16, 64) == [(16, 44, 32), (48, 56, 64)]
    assert geometry.gaps(0, 80) == [(20, 32), (44, 48), (56, 64)]
    assert Geometry([]).runs(0, 0) == Geometry([]).gaps(0, 0) == []


def test_a_layout_has_the_geometry_of_its_lanes_and_of_its_values() -> None:
    layout = Layout([Tensor("w", "float32", (5,), 2, bits=8), Tensor("b", "float64", (3,), 2, bits=32)], salted=True)
    assert layout.geometry.tensors == tuple((b, n) for b, n in layout.shapes())
    assert (layout.offsets, layout.nbytes, layout.payload_bytes) == ([0, 16, 32], 72, 28)
    assert layout.values.offsets == [0, 32, 64]
    assert not layout.in_place
    assert [(p.values_start, p.values_stop) for p in layout.pieces(0, 72)] == [(0, 20), (32, 56), (64, 104)]
    assert layout.values_of(16, 48) == (32, 80)
    assert layout.values_of(72, 72) == (0, 0)
    same = Layout([Tensor("w", "float32", (5,), 2)], salted=True)
    assert same.in_place
    assert same.values is same.geometry
    assert same.values_of(0, 16) == (0, 16)


@pytest.mark.parametrize("bits", [0, 8, 16, 33, 128])
def test_widths_that_sites_do_not_sum_in(bits: int) -> None:
    with pytest.raises(PolicyError, match=f"READY has lanes of {bits} bits"):
        refuse_lane_bits(bits, "READY")
    for good in (32, 64):
        refuse_lane_bits(good, "READY")


@pytest.mark.parametrize("bits", [8, 16, 33])
def test_a_proposal_of_other_widths_is_refused(bits: int) -> None:
    """M0, at sites and relay; READY: tests/unit/relay/test_relay_parts.py."""
    assert read_proposal(proposal_of(3, tensors=((32, 5), (64, 5))).to_bytes(), 3).tensors == ((32, 5), (64, 5))
    with pytest.raises(PolicyError, match=f"M0.* has lanes of {bits} bits"):
        read_proposal(proposal_of(3, tensors=((32, 5), (bits, 5))).to_bytes(), 3)
