"""Runs on 3 ranks of test_collectives.py: the door to MPI, kind by kind, with small and with ordinary pieces."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fedhpc.errors import DataError, InternalError
from fedhpc.mpi import collectives
from fedhpc.mpi import world as mpi_world
from fedhpc.mpi.byte_moves import Plan, agree, move

group = mpi_world.start().group
me, size = group.rank, group.size
assert size == 3
group.label = "site hungary"


def drawn(kind: str, shape: tuple[int, ...], rank: int) -> np.ndarray:
    draw = np.random.default_rng([7, rank, *kind.encode()])
    if np.dtype(kind).kind == "f":
        return draw.integers(-1000, 1000, shape).astype(kind)  # sums of small whole numbers are exact
    info = np.iinfo(kind)
    return draw.integers(info.min, info.max, shape, dtype=kind, endpoint=True)


def everything() -> None:
    for kind in collectives.SUMMABLE:
        for shape in ((), (0,), (1,), (7,), (3, 5, 2), (1000,)):
            array = drawn(kind, shape, me)
            group.sum(array)
            with np.errstate(over="ignore"):
                expected = drawn(kind, shape, 0) + drawn(kind, shape, 1) + drawn(kind, shape, 2)
            assert array.tobytes() == expected.tobytes(), (kind, shape)
            assert array.shape == shape
    for kind in collectives.MOVABLE:
        for root in range(size):
            for shape in ((), (0,), (5, 3), (100,)):
                array = drawn(kind, shape, me)
                group.broadcast(array, root)
                assert array.tobytes() == drawn(kind, shape, root).tobytes(), (kind, root, shape)
    for n in (0, 1, 2, 3, 8, 1000):
        for bounds in ([(0, n), (n, n), (n, n)], [(i * n // 3, (i + 1) * n // 3) for i in range(3)]):
            whole = drawn("uint8", (n,), 9)
            mine = np.zeros(n, np.uint8)
            mine[slice(*bounds[me])] = whole[slice(*bounds[me])]
            group.gather_parts(mine, bounds)
            assert (mine == whole).all()


everything()
for limit in (1, 3, 7):  # many pieces; counts that divide and that do not
    collectives.MAX_COUNT = limit
    everything()
collectives.MAX_COUNT = 1 << 28

# Messages around the size of the first allgather, and far beyond; each rank another length.
for n in (0, 1, 1019, 1020, 1021, 5 << 20):
    for root in range(size):
        message = bytes([root]) * n
        assert group.broadcast_bytes(message if me == root else None, root) == message
    sizes = [n, 0, max(0, n - 1)]
    assert group.gather_bytes(bytes([me]) * sizes[me]) == [bytes([r]) * k for r, k in enumerate(sizes)]
    assert group.gather_bytes(bytes([me]) * n) == [bytes([r]) * n for r in range(size)]

# Every rank sends every rank another number of bytes, to some none; and a stream moves from shares of rows to ranges.
for scale in (0, 1, 100_000):
    counts = [[(3 * i + j) % 4 * scale for j in range(size)] for i in range(size)]  # [from, to]
    sent = np.concatenate([np.full(counts[me][j], 16 * me + j, np.uint8) for j in range(size)])
    received = np.zeros(sum(row[me] for row in counts), np.uint8)
    group.alltoall(sent, counts[me], received, [row[me] for row in counts])
    assert (received == np.concatenate([np.full(counts[i][me], 16 * i + me, np.uint8) for i in range(size)])).all()
stream = np.random.default_rng(5).integers(0, 256, 1 << 20, dtype=np.uint8)
plan = Plan([[(0, 700_000)], [(700_000, 700_004)], [(700_004, 1 << 20)]], [[(0, 1 << 19)], [], [(1 << 19, 1 << 20)]])
agree(group, plan)
mine = np.zeros_like(stream)
move(group, plan, lambda a, b, into: np.copyto(into, stream[a:b]), lambda a, b, data: np.copyto(mine[a:b], data), 4096)
half = {0: slice(0, 1 << 19), 1: slice(0, 0), 2: slice(1 << 19, 1 << 20)}[me]
assert (mine[half] == stream[half]).all()
assert np.count_nonzero(mine) == np.count_nonzero(stream[half])

# What every rank refuses alike leaves no rank waiting.
with pytest.raises(InternalError, match="site hungary, rank"):
    group.broadcast_bytes(b"x" * (collectives.MAX_MESSAGE_BYTES + 1) if me == 0 else None)
with pytest.raises(InternalError, match="site hungary, rank"):
    group.broadcast_bytes(None)
with pytest.raises(InternalError, match="site hungary, rank"):
    group.gather_bytes(b"x" * (collectives.MAX_MESSAGE_BYTES + 1))
with pytest.raises(InternalError, match="site hungary, rank"):
    group.gather_bytes(b"x" * (collectives.MAX_MESSAGE_BYTES // 2))

# The door is shut for what MPI adds wrongly.
frozen = np.ones(4)
frozen.flags.writeable = False
for array, words in (
    (torch.ones(4, dtype=torch.bfloat16), "torch.Tensor of torch.bfloat16"),
    (torch.ones(4), "torch.Tensor of torch.float32"),
    (np.ones(4, np.float16), "float16"),
    (np.ones(4, np.complex64), "complex64"),
    (np.ones(4, np.int16), "int16"),
    (np.ones(4, bool), "bool"),
    (np.ones(4, np.uint8), "uint8"),
    (np.ones(4, "V2"), "V2"),  # how ml_dtypes' bfloat16 looks to a NumPy without it
    (np.ones(4, object), "object"),
    (np.ones(4, ">f8"), ">f8"),
    (np.ones(4, ">i4"), ">i4"),
    (np.ones((4, 4))[:, ::2], "not C-contiguous"),
    (np.ones((4, 4)).T[:, :2], "not C-contiguous"),
    (np.asfortranarray(np.ones((4, 4))), "not C-contiguous"),
    (frozen, "read-only"),
    ([1.0, 2.0], "builtins.list"),
    (1.0, "builtins.float"),
):
    with pytest.raises(DataError) as caught:
        group.sum(array)  # type: ignore[arg-type]
    assert words in caught.value.what, (words, caught.value.what)
    assert f"site hungary, rank {me} of 3" in caught.value.what
    assert "sum" in caught.value.what
    assert caught.value.hint
    if words not in ("uint8",):
        with pytest.raises(DataError, match=f"site hungary, rank {me} of 3"):
            group.broadcast(array)  # type: ignore[arg-type]
try:
    import ml_dtypes
except ImportError:
    pass
else:
    with pytest.raises(DataError, match="bfloat16"):
        group.sum(np.ones(4, ml_dtypes.bfloat16))
group.barrier()
sys.stdout.write("rank done\n")
