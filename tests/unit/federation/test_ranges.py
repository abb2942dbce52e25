"""Which elements of a model each rank holds: every one once, as the lanes of the sum are shared out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import run_ranks

from fedhpc.federation import vector as vector_module
from fedhpc.federation.ranges import Form, Forms, Held, forms_of
from fedhpc.federation.vector import Vector, parts
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.secure.ring import Layout, Tensor

FORMS = st.lists(
    st.tuples(st.sampled_from(["float32", "float64"]), st.lists(st.integers(0, 7), max_size=3)), min_size=1, max_size=7
)


def forms_from(drawn: list[tuple[str, list[int]]]) -> Forms:
    return {f"t{i}": Form(np.dtype(kind), tuple(shape)) for i, (kind, shape) in enumerate(drawn)}


def layout_of(forms: Forms, *, wide: bool = False, salted: bool = True) -> Layout:
    tensors = [Tensor(n, "float64" if wide else f.dtype.name, f.shape) for n, f in forms.items()]
    return Layout(tensors, salted=salted)


@given(drawn=FORMS, ranks=st.integers(1, 9), wide=st.booleans(), salted=st.booleans())
def test_every_element_has_one_rank_the_one_that_carries_its_lane(
    drawn: list[tuple[str, list[int]]], ranks: int, wide: bool, salted: bool
) -> None:
    forms = forms_from(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_module, "TREE_BLOCK_BYTES", 64)  # whole blocks of a small vector
        layout = layout_of(forms, wide=wide, salted=salted)
        bounds = parts(layout.nbytes, ranks)
    group: Any = SerialGroup()
    seen: dict[str, list[int]] = {name: [] for name in forms}
    for rank in range(ranks):
        group.rank, group.size = rank, ranks
        held = Held.of_parts(group, forms, layout, bounds)
        lanes = Vector(layout, bounds[rank]).held()
        for name, form in forms.items():
            start, stop = held.cut(name)
            seen[name] += range(start, stop)
            assert lanes[name].shape == held.piece_shape(name)
            whole = np.arange(form.size, dtype=form.dtype).reshape(form.shape)
            assert held.piece(name, whole).reshape(-1).tolist() == list(range(start, stop))
            assert [cut for cut in held.cuts(name) if cut.rank == rank] == (
                [(rank, start, stop)] if start < stop else []
            )
    assert seen == {name: list(range(form.size)) for name, form in forms.items()}


def test_where_every_rank_holds_all() -> None:
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(())}
    for held in run_ranks(2, lambda site: Held(site, forms_of(tensors))):
        assert held.replicated
        assert {n: p.shape for n, p in held.pieces(tensors).items()} == {"a": (2, 3), "b": ()}
        assert held.cuts("a") == [(0, 0, 6)]
