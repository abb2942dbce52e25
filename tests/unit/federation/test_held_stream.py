"""A model and its state as one stream of which each rank holds a part: hashed, gathered, given out and spread."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from held_fakes import gather
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import run_ranks

from fedhpc.federation import held_stream
from fedhpc.federation.held_stream import Entry, HeldStream, joined, whole_tensors
from fedhpc.federation.ranges import Forms, Held, forms_of
from fedhpc.secure.suite import SHA256

BLOCK = 24


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and windows of a few bytes, so that small tensors cross them."""
    monkeypatch.setattr(held_stream, "TREE_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(held_stream, "WINDOW_BYTES", 40)
    monkeypatch.setattr(held_stream, "_MIXED_AT_ONCE", 2)


def tensors_from(drawn: list[tuple[str, list[int]]]) -> dict[str, Any]:
    draw = np.random.default_rng(len(drawn))
    return {f"t{i}": np.asarray(draw.standard_normal(shape), kind) for i, (kind, shape) in enumerate(drawn)}


def held_by(site: Any, forms: Forms, cuts: list[float]) -> Held:
    """Each rank a run of the elements; `cuts` [size - 1] in 0..1."""
    total = sum(form.size for form in forms.values())
    at = [0, *(round(cut * total) for cut in sorted(cuts)), total]
    return Held(site, forms, list(itertools.pairwise(at)))


MODELS = st.lists(
    st.tuples(st.sampled_from(["float32", "float64"]), st.lists(st.integers(0, 5), max_size=2)), min_size=1, max_size=6
)
CUTS = st.lists(st.floats(0, 1), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(drawn=MODELS, cuts=CUTS)
def test_a_state_that_no_rank_holds_whole(drawn: list[tuple[str, list[int]]], cuts: list[float]) -> None:
    """Model, a state that is sorted in another order, and a tail that all ranks have."""
    tensors, tail = tensors_from(drawn), np.array([7], "<i8")
    outer = {f"v/{name}": tensor * 2 for name, tensor in sorted(tensors.items(), reverse=True)}
    whole = [*tensors.values(), *outer.values(), tail]
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in whole)
    blocks = [hashlib.sha256(data[i : i + BLOCK]).digest() for i in range(0, len(data), BLOCK)]

    def work(site: Any) -> None:
        held = held_by(site, forms_of(tensors), cuts)
        mine: list[Entry] = [(n, t) for n, t in held.pieces(tensors).items()]
        mine += [(n[2:], np.array(held.piece(n[2:], t))) for n, t in outer.items()]
        stream = HeldStream(held, [*mine, (None, tail.copy())])
        assert stream.nbytes == len(data)
        assert stream.tree(SHA256) == SHA256.root(len(data), blocks)
        assert stream.sha256() == hashlib.sha256(data).hexdigest()
        got = b"".join(window.tobytes() for window in stream.to_leader())
        assert got == (data if site.rank == 0 else b"")
        empty: list[Entry] = [(n, np.zeros_like(t)) for n, t in mine]
        again = HeldStream(held, [*empty, (None, np.zeros(1, "<i8"))])
        again.from_leader(joined(whole).read if site.rank == 0 else lambda start, stop, into: pytest.fail("asked"))
        assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(empty, mine, strict=True))
        found = gather(held, {n: (n, t) for n, t in held.pieces(tensors).items()})
        assert found.keys() == (tensors.keys() if site.rank == 0 else set())
        assert all((found[n] == tensors[n]).all() and found[n].shape == tensors[n].shape for n in found)
        everything = whole_tensors(held, held.pieces(tensors))
        assert list(everything) == list(tensors)
        assert all((everything[n] == tensors[n]).all() and everything[n].shape == tensors[n].shape for n in tensors)

    run_ranks(len(cuts) + 1, work)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_state_that_every_rank_holds(ranks: int) -> None:
    tensors = {"a": np.arange(30, dtype=np.float32), "b": np.arange(9.0).reshape(3, 3)}
    data = b"".join(t.tobytes() for t in tensors.values())

    def work(site: Any) -> None:
        stream = HeldStream(Held(site, forms_of(tensors)), list(tensors.items()))
        assert stream.tree(SHA256) == SHA256.tree(data)
        assert stream.sha256() == hashlib.sha256(data).hexdigest()
        assert b"".join(w.tobytes() for w in stream.to_leader()) == (data if site.rank == 0 else b"")
        empty = {n: np.zeros_like(t) for n, t in tensors.items()}
        HeldStream(Held(site, forms_of(tensors)), list(empty.items())).from_leader(joined(list(tensors.values())).read)
        assert all((empty[n] == t).all() for n, t in tensors.items())

    run_ranks(ranks, work)
