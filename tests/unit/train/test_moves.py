"""A model between shards and ranges: what is read, cut anywhere, is written back to the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thread_ranks import ThreadGroup, run_ranks

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.moves import Moves, whole_at_leader, whole_bytes
from fedhpc.train.shards import Shard, model_shards, named_shards

WHOLE = {
    "table": torch.randn(103, 6, generator=torch.Generator().manual_seed(1)),
    "one": torch.tensor([7.5]),
    "none": torch.zeros(7, 0),
    "bias": torch.arange(36.0),
    "wide": torch.arange(10, dtype=torch.float64).reshape(5, 2) / 3,
    "short": torch.arange(12.0).reshape(4, 3).to(torch.bfloat16),
}


def rows(name: str, rank: int, ranks: int, kind: str = "") -> Shard:
    """As FSDP2 deals them out."""
    tensor = WHOLE[name]
    step = -(-tensor.shape[0] // ranks)
    first, last = min(len(tensor), rank * step), min(len(tensor), (rank + 1) * step)
    kind = kind or ("float64" if tensor.dtype == torch.float64 else "float32")
    row = int(np.prod(tensor.shape[1:])) * np.dtype(kind).itemsize
    return Shard(name, tuple(tensor.shape), kind, first * row, last * row, tensor[first:last].clone())


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_shards_become_ranges_and_go_back(ranks: int) -> None:
    offsets, at = {}, 8  # something else lies before
    for name, tensor in WHOLE.items():
        offsets[name] = at
        at += tensor.numel() * (8 if tensor.dtype == torch.float64 else 4)
    step = -(-at // ranks // 4) * 4  # doubles are cut in two
    ranges = [(min(at, r * step), min(at, (r + 1) * step)) for r in range(ranks)]

    def rank(group: ThreadGroup) -> bytes:
        shards = [rows(name, group.rank, ranks) for name in WHOLE]
        moves = Moves(group, shards, offsets, ranges)
        start, stop = ranges[group.rank]
        mine = np.full(stop - start, 99, np.uint8)
        moves.gather(mine, window=64)
        before = [shard.local.clone() for shard in shards]
        for shard in shards:
            shard.local.zero_()
        moves.scatter_from(lambda a, b, into: np.copyto(into, mine[a - start : b - start]), window=48)
        for shard, values in zip(shards, before, strict=True):
            assert torch.equal(shard.local, values), shard.name
        whole = whole_at_leader(group, shards)
        assert list(whole) == ([] if group.rank else list(WHOLE))
        for name, tensor in () if group.rank else WHOLE.items():
            assert (whole[name] == tensor.to(getattr(torch, whole[name].dtype.name)).numpy()).all(), name
        return mine.tobytes()

    joined = b"".join(run_ranks(ranks, rank))
    expected = b"".join((t if t.dtype == torch.float64 else t.float()).numpy().tobytes() for t in WHOLE.values())
    assert joined == b"\x63" * 8 + expected


def test_a_model_that_every_rank_holds_is_not_sent() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    model.append(torch.nn.Linear(5, 3))
    model[2].weight = torch.nn.Parameter(model[0].weight.detach().T)  # not in the order of its rows

    def rank(group: ThreadGroup) -> None:
        shards = model_shards(model)
        assert [s.name for s in shards] == [n for n, t in model.state_dict().items() if t.is_floating_point()]
        offsets, at = {}, 0
        for shard in shards:
            offsets[shard.name] = at
            at += whole_bytes(shard)
        half = at // 8 * 4
        ranges = [(0, half), (half, at)]
        moves = Moves(group, shards, offsets, ranges)
        assert moves.moved_bytes == 0
        start, stop = ranges[group.rank]
        mine = np.zeros(stop - start, np.uint8)
        moves.gather(mine)
        flat = b"".join(t.detach().numpy().tobytes() for t in model.state_dict().values() if t.is_floating_point())
        assert mine.tobytes() == flat[start:stop]

    run_ranks(2, rank)
    shards = model_shards(model)
    values = np.arange(15, dtype=np.float32)
    (last,) = (s for s in shards if s.name == "2.weight")
    last.write(4, 56, values[1:14].view(np.uint8))
    assert model[2].weight.detach().numpy().reshape(-1)[1:14].tolist() == values[1:14].tolist()
    assert not model[2].weight.is_contiguous()


def test_bits_are_moved_as_they_are() -> None:
    tensors = {"m": torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "step": torch.tensor(3.0), "n": torch.tensor([7])}
    arrays = whole_at_leader(SerialGroup(), named_shards(tensors))
    assert [(a.dtype.name, a.shape) for a in arrays.values()] == [("int16", (2,)), ("float32", ()), ("int64", (1,))]
    assert torch.from_numpy(arrays["m"]).view(torch.bfloat16).tolist() == [1.5, -2.0]


def test_ranks_must_hold_one_model_together() -> None:
    def other(group: ThreadGroup) -> str:
        shards = [rows("bias", group.rank, 2), rows("one" if group.rank else "table", group.rank, 2)]
        with pytest.raises(ConfigError) as caught:
            whole_at_leader(group, shards)
        return caught.value.what

    def part(group: ThreadGroup) -> str:
        with pytest.raises(ConfigError) as caught:
            whole_at_leader(group, [rows("bias", group.rank, 3), rows("one", group.rank, 3)])
        return caught.value.what

    assert set(run_ranks(2, other)) == {"site a: the ranks of the site hold models of different tensors"}
    assert set(run_ranks(2, part)) == {"site a: the ranks of the site do not hold all of bias together"}
