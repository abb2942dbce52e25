"""Who carries which bytes in a job of sites of any sizes, and in which order: pure plans."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.federation.vector import parts
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.sums.in_job.segments import Chunk, Segment, carried, schedule, segments

MIB = 1 << 20
RAILS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
SIZES = st.integers(0, 60 * MIB) | st.integers(0, 60).map(lambda n: n * MIB)
Plan = dict[tuple[int, int], list[Chunk]]  # by (site, rank)


def layout_of(nbytes: int) -> Layout:
    """Lanes of both widths, and gaps."""
    half = nbytes // 8
    return Layout([Tensor("a", "float32", (half,)), Tensor("n", "int64", (3,)), Tensor("b", "float64", (half // 2,))])


def plan(layout: Layout, rails: Sequence[int], chunk_bytes: int) -> Plan:
    every = [(site, rank) for site, count in enumerate(rails) for rank in range(count)]
    return {(s, r): schedule(layout, carried(layout.nbytes, rails, s, r), chunk_bytes) for s, r in every}


def longest(planned: Plan) -> int:
    """Bytes until the last rank is done, if a chunk takes as long as it is and begins when all its owners are free.

    AssertionError where all ranks wait for each other.
    """
    waiting = {rank: list(chunks) for rank, chunks in planned.items()}
    free = dict.fromkeys(waiting, 0)
    while any(waiting.values()):
        heads = {rank: chunks[0] for rank, chunks in waiting.items() if chunks}
        ready = {c for c in heads.values() if all(heads.get(owner) == c for owner in enumerate(c.owners))}
        assert ready, "every rank waits for another one"
        for chunk in ready:
            begun = max(free[owner] for owner in enumerate(chunk.owners))
            for owner in enumerate(chunk.owners):
                free[owner] = begun + chunk.stop - chunk.start
                waiting[owner].pop(0)
    return max(free.values())


@given(SIZES, RAILS)
def test_every_byte_has_one_owner_in_each_site(nbytes: int, rails: list[int]) -> None:
    found = segments(nbytes, rails)
    assert [s.start for s in found] == [0, *(s.stop for s in found[:-1])][: len(found)]
    assert (found[-1].stop if found else 0) == nbytes
    assert all(s.start < s.stop and s.start % TREE_BLOCK_BYTES == 0 for s in found)
    for site, count in enumerate(rails):
        for rank, (start, stop) in enumerate(parts(nbytes, count)):
            own = carried(nbytes, rails, site, rank)
            assert own == [s for s in found if start <= s.start < stop]
            assert sum(s.stop - s.start for s in own) == stop - start


@given(SIZES, RAILS)
def test_few_sets_of_ranks_meet_whatever_is_summed(nbytes: int, rails: list[int]) -> None:
    of_long = {s.owners for s in segments(10_000 * MIB, rails)}
    assert len(of_long) <= sum(rails) - len(rails) + 1
    assert {s.owners for s in segments(nbytes, rails)} <= of_long


@given(SIZES, RAILS)
def test_segments_of_one_turn_share_no_rank(nbytes: int, rails: list[int]) -> None:
    for a, b in itertools.combinations(segments(nbytes, rails), 2):
        shared = any(x == y for x, y in zip(a.owners, b.owners, strict=True))
        assert not (shared and a.turn == b.turn)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12 * MIB), RAILS, st.sampled_from([MIB, 3 * MIB + 16, 16 * MIB, 400_000]))
def test_owners_have_the_same_chunks_in_an_order_that_ends(nbytes: int, rails: list[int], chunk_bytes: int) -> None:
    layout = layout_of(nbytes)
    planned = plan(layout, rails, chunk_bytes)
    longest(planned)
    for site in range(len(rails)):
        chunks = sorted((c for (s, _), own in planned.items() if s == site for c in own), key=lambda c: c.start)
        pieces = [p for c in chunks for p in layout.pieces(c.start, c.stop)]
        assert sum((p.stop - p.start) // p.tensor.lane_bytes for p in pieces) == layout.lanes
        assert all(a.stop <= b.start for a, b in itertools.pairwise(chunks))


@pytest.mark.parametrize("rails", [(2, 3), (4, 6, 8), (8, 12, 16), (7, 8), (1, 4), (2, 3, 4, 5), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("chunk_bytes", [MIB, 16 * MIB])
@pytest.mark.parametrize("nbytes", [40_000_000, 400_000_000])
def test_no_rank_waits_long(rails: tuple[int, ...], chunk_bytes: int, nbytes: int) -> None:
    """Against the rank that carries most: it cannot be done sooner. In rising order (7, 8) takes seven times that."""
    layout = Layout([Tensor("a", "float32", (nbytes // 4,))])
    most = max(stop - start for count in rails for start, stop in parts(layout.nbytes, count))
    assert longest(plan(layout, rails, chunk_bytes)) <= 1.21 * most


@given(st.integers(0, 40 * MIB), st.integers(1, 9), st.integers(1, 6))
def test_sites_of_equal_size_go_through_their_parts_in_order(nbytes: int, rails: int, sites: int) -> None:
    found = segments(nbytes, [rails] * sites)
    held = [(rank, part) for rank, part in enumerate(parts(nbytes, rails)) if part[0] < part[1]]
    assert found == [Segment(start, stop, (rank,) * sites, 0) for rank, (start, stop) in held]
    layout = layout_of(nbytes)
    chunks = schedule(layout, carried(layout.nbytes, [rails] * sites, 0, 0), MIB)
    assert [c.start for c in chunks] == sorted(c.start for c in chunks)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["float32", "float64", "int64"]), st.integers(0, 3000)), max_size=6),
    st.integers(1, 600).map(lambda n: 16 * n),
)
def test_chunks_hold_every_lane_once(shapes: list[tuple[str, int]], chunk_bytes: int) -> None:
    layout = Layout([Tensor(f"t{i}", kind, (n,)) for i, (kind, n) in enumerate(shapes)])
    chunks = schedule(layout, segments(layout.nbytes, [1, 1]), chunk_bytes)
    pieces = [p for c in chunks for p in layout.pieces(c.start, c.stop)]
    assert sum((p.stop - p.start) // p.tensor.lane_bytes for p in pieces) == layout.lanes
    at = 0
    for chunk in chunks:
        assert at <= chunk.start < chunk.stop <= chunk.start + chunk_bytes
        assert chunk.start % 16 == 0
        assert {p.tensor.bits for p in layout.pieces(chunk.start, chunk.stop)} <= {chunk.bits}
        assert (chunk.stop - chunk.start) % (chunk.bits // 8) == 0
        at = chunk.stop
