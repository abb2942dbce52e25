"""Bytes that move between ranks: every wanted byte arrives once, from a rank that holds it, whatever the spans are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import ThreadGroup, run_ranks

from fedhpc.errors import InternalError
from fedhpc.mpi.byte_moves import Plan, Span, agree, move, window_bytes
from fedhpc.mpi.collectives import SerialGroup

Spans = list[list[Span]]
EDGES = st.sampled_from([(0, 3), (1,), (7, 0), (5,), (2, 3)])
SHAPES = st.lists(st.one_of(EDGES, st.lists(st.integers(0, 9), max_size=3).map(tuple)), max_size=8)


def row_shards(shapes: list[tuple[int, ...]], ranks: int) -> Spans:
    """As FSDP2 deals out rows: equal numbers to the first ranks, and what is left to one of them."""
    held: Spans = [[] for _ in range(ranks)]
    at = 0
    for shape in shapes:
        rows = shape[0] if shape else 1
        row = 4 * int(np.prod(shape[1:], dtype=np.int64))
        step = -(-rows // ranks)
        for rank in range(ranks):
            first, last = min(rows, rank * step), min(rows, (rank + 1) * step)
            held[rank].append((at + first * row, at + last * row))
        at += rows * row
    return held


def ranges(nbytes: int, ranks: int, block: int = 16) -> Spans:
    step = -(-nbytes // (block * ranks)) * block
    return [[(min(nbytes, r * step), min(nbytes, (r + 1) * step))] for r in range(ranks)]


def total(spans: list[Span]) -> int:
    return sum(b - a for a, b in spans)


def moved(plan: Plan, held: Spans, wanted: Spans, data: list[np.ndarray], window: int) -> list[np.ndarray]:
    """What the ranks have after the move: `data` are the bytes of their spans, one after the other."""
    size = max([b for spans in (*held, *wanted) for _, b in spans], default=0)

    def rank(group: ThreadGroup) -> np.ndarray:
        mine, got, times = (np.zeros(size, np.uint8) for _ in range(3))
        at = 0
        for a, b in held[group.rank]:
            mine[a:b] = data[group.rank][at : at + b - a]
            at += b - a

        def read(start: int, stop: int, into: np.ndarray) -> None:
            assert any(a <= start and stop <= b for a, b in held[group.rank])
            into[:] = mine[start:stop]

        def write(start: int, stop: int, values: np.ndarray) -> None:
            got[start:stop] = values
            times[start:stop] += 1

        agree(group, plan)
        move(group, plan, read, write, window)
        expected = np.zeros(size, np.uint8)
        for a, b in wanted[group.rank]:
            expected[a:b] = 1
        assert (times == expected).all()
        return np.concatenate([np.zeros(0, np.uint8), *(got[a:b] for a, b in wanted[group.rank])])

    return run_ranks(plan.ranks, rank)


def of(spans: list[Span], stream: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.uint8), *(stream[a:b] for a, b in spans)])


@settings(deadline=None, max_examples=40)
@given(shapes=SHAPES, ranks=st.integers(1, 9), window=st.integers(1, 200), seed=st.integers(0, 99))
def test_shards_become_ranges_and_come_back(shapes: list[tuple[int, ...]], ranks: int, window: int, seed: int) -> None:
    held = row_shards(shapes, ranks)
    nbytes = sum(map(total, held))
    wanted = ranges(nbytes, ranks)
    stream = np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
    plan = Plan(held, wanted)
    assert int(plan.moved_bytes.sum()) + sum(total(plan.own(r)) for r in range(ranks)) == nbytes
    got = moved(plan, held, wanted, [of(spans, stream) for spans in held], window)
    assert (np.concatenate([np.zeros(0, np.uint8), *got]) == stream).all()
    back = moved(Plan(wanted, held), wanted, held, got, window)
    for spans, values in zip(held, back, strict=True):
        assert (values == of(spans, stream)).all()


@settings(deadline=None, max_examples=25)
@given(data=st.data(), ranks=st.integers(1, 5), n=st.integers(0, 60))
def test_any_spans(data: st.DataObject, ranks: int, n: int) -> None:
    def spans() -> list[Span]:
        cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=8)))
        return list(zip(cuts[::2], cuts[1::2], strict=False))

    held, wanted = [spans() for _ in range(ranks)], [spans() for _ in range(ranks)]
    stream = np.arange(n, dtype=np.uint8)
    there = {i for spans_ in held for a, b in spans_ for i in range(a, b)}
    asked = {i for spans_ in wanted for a, b in spans_ for i in range(a, b)}
    if not asked <= there:
        with pytest.raises(InternalError, match="no rank holds byte"):
            Plan(held, wanted)
        return
    plan = Plan(held, wanted)
    got = moved(plan, held, wanted, [of(spans_, stream) for spans_ in held], 7)
    for rank in range(ranks):
        assert (got[rank] == of(wanted[rank], stream)).all()
        mine = {i for a, b in held[rank] for i in range(a, b)}
        kept = {i for a, b in plan.own(rank) for i in range(a, b)}
        assert kept == mine & {i for a, b in wanted[rank] for i in range(a, b)}, "nothing travels that is here already"


def test_from_two_ranks_to_three_to_one_and_back() -> None:
    shapes = [(103, 36), (1,), (7, 0), (36,), (0, 4)]
    nbytes = sum(map(total, row_shards(shapes, 2)))
    stream = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
    got = stream
    for ranks in (2, 3, 1, 2):
        held, wanted = row_shards(shapes, ranks), ranges(nbytes, ranks)
        parts = moved(Plan(wanted, held), wanted, held, [of(spans, got) for spans in wanted], 1000)
        got = np.concatenate(moved(Plan(held, wanted), held, wanted, parts, 1000))
        assert (got == stream).all()
    assert [b - a for spans in row_shards(shapes, 3) for a, b in spans[:2]] == [
        n * size for n, size in ((35, 144), (1, 4), (35, 144), (0, 4), (33, 144), (0, 4))
    ]


def test_a_copy_that_all_hold_comes_from_the_first() -> None:
    """Buffers: the leader's count."""
    held: Spans = [[(0, 8), (8, 12)], [(8, 12)], [(8, 12), (12, 20)]]
    plan = Plan(held, [[], [(0, 20)], [(8, 10)]])
    assert plan.between(0, 1) == [(0, 8)]
    assert plan.own(1) == [(8, 12)]
    assert plan.between(2, 1) == [(12, 20)]
    assert plan.own(2) == [(8, 10)]
    assert Plan([held[0], [], []], [[], [], [(4, 12)]]).between(0, 2) == [(4, 8), (8, 12)]
    assert plan.moved_bytes.tolist() == [[0, 8, 0], [0, 0, 0], [0, 8, 0]]


def test_what_no_rank_may_plan() -> None:
    with pytest.raises(InternalError, match=r"5\.\.9 come after 8"):
        Plan([[(0, 8), (5, 9)]], [[]])
    with pytest.raises(InternalError, match="between 1 and 2 ranks"):
        Plan([[]], [[], []])

    def differ(group: ThreadGroup) -> str:
        plan = Plan([[(0, 4)], []], [[], [(0, 4 - group.rank)]])
        with pytest.raises(InternalError, match="site a: the ranks plan different moves") as caught:
            agree(group, plan)
        return caught.value.what

    assert len(set(run_ranks(2, differ))) == 1


def test_windows_are_bounded() -> None:
    assert [window_bytes(r) for r in (1, 8, 16, 1 << 30)] == [8 << 20, 8 << 20, 4 << 20, 16]
    assert all(window_bytes(r) % 16 == 0 for r in range(1, 300))


def test_the_serial_door_checks_as_mpi_s_does() -> None:
    group = SerialGroup("site a")
    out = np.zeros(3, np.uint8)
    group.alltoall(np.arange(3, dtype=np.uint8), [3], out, [3])
    assert out.tolist() == [0, 1, 2]
    for sent, received in (([2], [3]), ([3], [2]), ([3, 0], [3]), ([-3], [3])):
        with pytest.raises(InternalError, match="site a, rank 0 of 1"):
            group.alltoall(np.zeros(3, np.uint8), sent, out, received)
