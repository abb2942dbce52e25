"""Gradients averaged by MPI: of every kind, in buckets, as the mean over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thread_ranks import ThreadGroup, run_ranks

from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.backends import mpi
from fedhpc.train.backends.mpi import average_gradients
from fedhpc.train.settings import ComputeSettings

KINDS = {"a": torch.float32, "b": torch.bfloat16, "c": torch.float64, "d": torch.float32, "e": torch.float16}


def gradient(name: str, rank: int) -> torch.Tensor | None:
    """Rank 1 has reached neither d nor e."""
    if name in "de" and rank == 1:
        return None
    draw = torch.Generator().manual_seed(10 * rank + ord(name))
    return torch.randn(5, 3, dtype=torch.float64, generator=draw).to(KINDS[name])


@pytest.mark.parametrize("bucket_bytes", [1, 100, 25 << 20])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_mean_of_all_ranks(ranks: int, bucket_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "BUCKET_BYTES", bucket_bytes)

    def rank(group: ThreadGroup) -> dict[str, torch.Tensor]:
        parameters = {n: torch.nn.Parameter(torch.zeros(5, 3, dtype=kind)) for n, kind in KINDS.items()}
        parameters["wide"] = torch.nn.Parameter(torch.zeros(3, 5).T)  # not in the order of its rows
        parameters["none"] = torch.nn.Parameter(torch.zeros(0))
        for name in KINDS:
            parameters[name].grad = gradient(name, group.rank)
        parameters["wide"].grad = torch.full((3, 5), float(group.rank)).T
        average_gradients(group, parameters)
        return {name: p.grad for name, p in parameters.items() if p.grad is not None}

    found = run_ranks(ranks, rank)
    for name, kind in KINDS.items():
        wide = torch.float64 if kind is torch.float64 else torch.float32
        given = [gradient(name, r) for r in range(ranks)]
        total = sum((g.to(wide) for g in given if g is not None), torch.zeros(5, 3, dtype=wide))
        for grads in found:
            assert grads[name].dtype == kind
            np.testing.assert_allclose(grads[name].double(), (total / ranks).to(kind).double(), rtol=1e-6, err_msg=name)
            assert torch.equal(grads[name], found[0][name])
    assert found[0]["wide"].tolist() == [[(ranks - 1) / 2] * 3] * 5


def test_a_sparse_gradient_becomes_dense() -> None:
    def rank(group: ThreadGroup) -> torch.Tensor:
        torch.manual_seed(0)
        table = torch.nn.Embedding(4, 2, sparse=True)
        if group.rank == 0:
            table(torch.tensor([1, 1])).sum().backward()
        average_gradients(group, {"table": table.weight})
        assert table.weight.grad is not None
        return table.weight.grad

    for grad in run_ranks(2, rank):
        assert grad.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


def test_one_rank_averages_with_nobody() -> None:
    from fedhpc.train.backends.open_backend import open_backend

    backend = open_backend(ComputeSettings(backend="mpi", device="cpu"), SerialGroup("site a"))
    model = backend.wrap(torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "left": torch.nn.Linear(2, 1)}))
    for now in (False, True):
        with backend.averaging(model, now=now):
            model["used"](torch.ones(1, 2)).sum().backward()
    assert model["used"].weight.grad.tolist() == [[2.0, 2.0]]
    assert backend.unreached(model) == ["left.weight", "left.bias"]
    assert float(backend.clip(model, 1.0)) == pytest.approx(12**0.5)
    backend.close()
