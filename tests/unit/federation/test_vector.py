"""Parts of a vector for the rails, and named views of its buffer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.errors import DataError, InternalError
from fedhpc.federation.vector import Vector, parts, sum_kind
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.transcript import TREE_BLOCK_BYTES


@given(
    st.integers(0, 40 * TREE_BLOCK_BYTES) | st.integers(0, 40).map(lambda n: n * TREE_BLOCK_BYTES), st.integers(1, 64)
)
def test_parts_cover_exactly_in_whole_blocks(nbytes: int, rails: int) -> None:
    found = parts(nbytes, rails)
    assert len(found) == rails
    at = 0
    for start, stop in found:
        assert start == at
        assert start <= stop
        assert start % TREE_BLOCK_BYTES == 0 or start == stop == nbytes
        at = stop
    assert at == nbytes
    sizes = [stop - start for start, stop in found]
    blocks = math.ceil(nbytes / TREE_BLOCK_BYTES)
    assert max(sizes) <= math.ceil(blocks / rails) * TREE_BLOCK_BYTES


def test_parts_golden() -> None:
    block = TREE_BLOCK_BYTES
    assert parts(100, 3) == [(0, 100), (100, 100), (100, 100)]
    assert parts(2 * block + 5, 2) == [(0, 2 * block), (2 * block, 2 * block + 5)]
    assert parts(0, 2) == [(0, 0), (0, 0)]


def test_vector_views_share_the_buffer() -> None:
    vector = Vector(Layout([Tensor("a", "float32", (2, 3)), Tensor("n", "int64", ()), Tensor("b", "float64", (0, 4))]))
    vector.fill({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)})
    assert vector.buffer[:24].view(np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    assert vector.buffer[24:32].tolist() == [0] * 8  # the gap
    assert vector.buffer[32:40].view(np.int64).tolist() == [7]
    vector.view("a")[1, 2] = 9
    assert vector.buffer[20:24].view(np.float32)[0] == 9
    assert {n: v.shape for n, v in vector.views().items()} == {"a": (2, 3), "n": (), "b": (0, 4)}
    with pytest.raises(KeyError):
        vector.view("c")
    with pytest.raises(TypeError):
        vector.fill({"n": np.array(0.5)})


def test_a_rank_may_hold_a_part() -> None:
    """Values of a narrow and a wide tensor, cut in the middle of both, and of the salt."""
    layout = Layout([Tensor("a", "float32", (64,), 0, 8), Tensor("n", "int64", (6,))], salted=True)
    whole = Vector(layout)
    whole.fill({"a": np.arange(64, dtype=np.float32), "n": np.arange(6)})
    whole.put_salt(np.arange(11, 16))
    assert whole.salt.tolist() == [11, 12, 13, 14, 15]
    assert whole.whole() is whole.buffer
    spans = {(0, 48): (0, 192), (48, 80): (192, 272), (80, 128): (272, 320), (128, 152): (320, 344), (0, 0): (0, 0)}
    for (start, stop), span in spans.items():
        part = Vector(layout, (start, stop))
        assert (part.first, part.first + part.buffer.size) == span
        part.buffer[:] = whole.buffer[span[0] : span[1]]
        for piece in layout.pieces(start, stop):
            assert part.of(piece).tolist() == whole.of(piece).tolist()
        assert part.shared(start, stop) is None
        part.put_salt(np.arange(21, 26))
        salt: list[int] = []
        for piece in layout.pieces(start, stop):
            if piece.tensor is layout.tensors[-1]:
                salt = list(range(21, 26))[piece.lane :][: part.of(piece).size]
                assert part.of(piece).tolist() == salt
        assert part.salt.tolist() == salt
        for use in (part.whole, part.views):
            with pytest.raises(InternalError, match="holds a part of the vector only"):
                use()


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("f4", "float32"),
        ("f8", "float64"),
        ("?", "int64"),
        ("i1", "int64"),
        ("u4", "int64"),
        ("i8", "int64"),
        ("u8", "int64"),
    ],
)
def test_sum_kind(dtype: str, kind: str) -> None:
    assert sum_kind("x", np.ones(3, dtype=dtype)) == kind


@pytest.mark.parametrize("array", [np.ones(2, "f2"), np.ones(2, "c8"), np.array(["a"]), np.array([2**63], dtype="u8")])
def test_sum_kind_refuses_by_name(array: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match="'x'"):
        sum_kind("x", array)
