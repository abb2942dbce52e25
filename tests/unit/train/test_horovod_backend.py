"""The adapter of Horovod, on a stand-in of its interface: what is averaged, when, and what is refused."""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
import torch
from horovod_fakes import FakeHorovod, ThreadGroup, on_ranks
from train_fakes import Net, make_trainer

from fedhpc.errors import ConfigError, InternalError, InterruptedRun, PeersError
from fedhpc.mpi.collectives import MpiGroup, SerialGroup
from fedhpc.mpi.lent import communicator_for_horovod
from fedhpc.train.backends import horovod
from fedhpc.train.backends.horovod import HorovodBackend
from fedhpc.train.backends.open_backend import open_backend
from fedhpc.train.settings import ComputeSettings, TrainSettings

CPU = torch.device("cpu")
COMPUTE = ComputeSettings(backend="horovod", device="cpu")


@pytest.fixture
def hvd(monkeypatch: pytest.MonkeyPatch) -> FakeHorovod:
    monkeypatch.setattr(HorovodBackend, "_left_open", False)
    monkeypatch.setattr(horovod, "communicator_for_horovod", lambda group: group)
    monkeypatch.delenv("HOROVOD_FUSION_THRESHOLD", raising=False)
    fake = FakeHorovod()
    monkeypatch.setitem(sys.modules, "horovod.torch", fake)
    return fake


def opened(group: ThreadGroup) -> HorovodBackend:
    return HorovodBackend(group, CPU, deterministic=False)


def told(results: list[Any]) -> set[str]:
    """What the one error says that every rank raises."""
    assert all(isinstance(r, ConfigError) for r in results), results
    return {f"{r.what} | {r.hint}" for r in results}


# --- the same update


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_site_trains_as_one_rank_does(ranks: int, hvd: FakeHorovod) -> None:
    settings = TrainSettings(
        optimizer="sgd", lr=0.01, momentum=0.9, batch_size=7, local_steps=5, accumulation=2, clip_norm=0.7
    )

    torch.manual_seed(0)  # for all threads together
    first = Net(dropout=0.0, norm=False)

    def train(group: Any) -> tuple[dict[str, np.ndarray], float]:
        model = copy.deepcopy(first)
        with make_trainer(settings, group=group, model=model, proximal=0.1, compute=COMPUTE) as trainer:
            loss = [trainer.train(round_, trainer.tensors()).loss for round_ in range(2)][-1]
            return trainer.tensors(), loss

    expected, loss = train(SerialGroup("site a"))
    results = on_ranks(ranks, train)
    for tensors, loss_of_rank in results:
        assert loss_of_rank == pytest.approx(loss, rel=1e-5)
        for name, value in expected.items():
            np.testing.assert_allclose(tensors[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
            assert tensors[name].tobytes() == results[0][0][name].tobytes()


def test_gradients_are_local_until_a_pass_averages(hvd: FakeHorovod) -> None:
    """And the ranks begin with the leader's parameters."""

    def work(group: ThreadGroup) -> list[list[float]]:
        backend = opened(group)
        model = torch.nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(5.0 + group.rank)
        wrapped = backend.wrap(model)
        assert wrapped is model
        seen = [model.weight.tolist()[0]]
        for now in (False, True):
            with backend.averaging(wrapped, now):
                (wrapped(torch.ones(1, 1)) * (1 + 2 * group.rank)).sum().backward()
            assert model.weight.grad is not None
            seen.append(model.weight.grad.tolist()[0])
        backend.close()
        return seen

    assert on_ranks(2, work) == [[[5.0], [1.0], [4.0]], [[5.0], [3.0], [4.0]]]


def test_averages_begin_within_the_backward_pass(hvd: FakeHorovod) -> None:
    seen: list[bool] = []

    def work(group: ThreadGroup) -> None:
        backend = opened(group)
        model = backend.wrap(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)))
        inputs = torch.ones(1, 1, requires_grad=True)
        inputs.register_hook(lambda _: seen.append(any("1.weight" in name for name, _ in group.ranks.sent)))
        with backend.averaging(model, now=True):
            model(inputs).sum().backward()
        backend.close()

    assert on_ranks(1, work) == [None]
    assert seen == [True]


def test_sixteen_bits_are_averaged_in_float32_and_that_is_said_once(
    hvd: FakeHorovod, caplog: pytest.LogCaptureFixture
) -> None:
    def work(group: ThreadGroup) -> float:
        backend = opened(group)
        model = torch.nn.Linear(2, 2).to(torch.bfloat16)
        backend.wrap(model)
        for _ in range(2):
            model.zero_grad()
            with backend.averaging(model, now=True):
                # 256 + 1 has no bfloat16, and half of it has
                (model.weight * (256.0 if group.rank == 0 else 2.0)).sum().backward()
        assert model.weight.grad is not None
        assert model.weight.grad.dtype == torch.bfloat16
        backend.close()
        return float(model.weight.grad[0, 0])

    with caplog.at_level(logging.WARNING, "fedhpc.train"):
        assert on_ranks(2, work) == [129.0, 129.0]
    assert [r.getMessage() for r in caplog.records] == [
        "site a: gradients of weight and the like are bfloat16: Horovod averages them in float32"
    ]


def test_what_the_rows_of_one_rank_do_not_reach(hvd: FakeHorovod) -> None:
    """It gives zeros, also for a parameter that only it has frozen since."""

    def work(group: ThreadGroup) -> tuple[list[str], list[float | None]]:
        backend = opened(group)
        model = torch.nn.ModuleDict({n: torch.nn.Linear(1, 1, bias=False) for n in ("a", "b", "c")})
        backend.wrap(model)
        model["c"].requires_grad_(group.rank == 0)
        with backend.averaging(model, now=True):
            (model["ab"[group.rank]].weight + model["c"].weight).sum().backward()
        grads = [p.grad for p in model.parameters()]
        backend.close()
        return backend.unreached(model), [None if g is None else float(g) for g in grads]

    assert on_ranks(2, work) == [(["b.weight"], [0.5, 0.5, 0.5]), (["a.weight"], [0.5, 0.5, None])]


def test_gradients_of_every_layout(hvd: FakeHorovod) -> None:
    """Horovod refuses those that are not contiguous, and sums sparse ones in another way."""

    def work(group: ThreadGroup) -> None:
        backend = opened(group)
        images = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        table = torch.nn.Embedding(4, 2, sparse=True)
        model = torch.nn.ModuleList([images, table])
        backend.wrap(model)
        with backend.averaging(model, now=True):
            picture = torch.full((1, 3, 3, 3), 1.0 + group.rank).to(memory_format=torch.channels_last)
            (images(picture).sum() + table(torch.tensor([group.rank])).sum()).backward()
        assert images.weight.grad is not None
        assert not images.weight.grad.is_contiguous()
        assert images.weight.grad.unique().tolist() == [1.5]
        assert table.weight.grad is not None
        assert table.weight.grad.tolist() == [[0.5, 0.5]] * 2 + [[0.0, 0.0]] * 2
        backend.close()

    assert on_ranks(2, work) == [None, None]


# --- what cannot go on


def test_a_parameter_that_one_pass_reaches_twice(hvd: FakeHorovod) -> None:
    def work(group: ThreadGroup) -> None:
        backend = opened(group)
        model = torch.nn.Linear(1, 1)
        backend.wrap(model)
        with backend.averaging(model, now=True):
            for _ in range(2):
                model(torch.ones(1, 1)).sum().backward()

    words = told(on_ranks(1, work)).pop()
    assert "site a: one backward pass reaches" in words
    assert "twice" in words
    assert "use_reentrant=False" in words


def test_horovod_that_is_not_there_at_one_rank(hvd: FakeHorovod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank says so before one waits, and how to build it in one line."""
    mine = threading.local()
    real = importlib.import_module

    def load(name: str) -> Any:
        if name == "horovod.torch" and mine.rank == 1:
            raise ModuleNotFoundError(f"No module named {name}")
        return real(name)

    def work(group: ThreadGroup) -> None:
        mine.rank = group.rank
        opened(group)

    monkeypatch.setattr(horovod.importlib, "import_module", load)
    monkeypatch.setattr(horovod.importlib.util, "find_spec", lambda name: None)
    (words,) = told(on_ranks(2, work))
    assert words.startswith("site a, rank 1: Horovod is not installed | ")
    assert "make horovod" in words
    assert "python -m fedhpc.horovod" in words


@pytest.mark.parametrize(
    ("facts", "device", "words"),
    [
        ({"mpi": False}, CPU, ("is built without MPI", "make horovod")),
        ({}, torch.device("cuda", 0), ("built for the CPU", "HOROVOD_GPU_OPERATIONS=NCCL")),
    ],
    ids=["mpi", "cuda"],
)
def test_a_horovod_that_is_not_fit(
    facts: dict[str, bool], device: torch.device, words: tuple[str, ...], hvd: FakeHorovod
) -> None:
    hvd.facts |= facts
    (said,) = told(on_ranks(2, lambda group: HorovodBackend(group, device, deterministic=True)))
    assert [word for word in words if word not in said] == []


def test_a_horovod_without_its_library(hvd: FakeHorovod, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be imported all the same, and prints a warning only."""
    monkeypatch.setitem(sys.modules, "horovod.torch", types.ModuleType("horovod.torch"))
    (said,) = told(on_ranks(2, opened))
    assert "has no part for PyTorch" in said


def test_a_horovod_that_the_users_own_code_has_started(hvd: FakeHorovod) -> None:
    def work(group: ThreadGroup) -> None:
        hvd.init(comm=group)
        opened(group)

    (said,) = told(on_ranks(2, work))
    assert "already initialised in this process" in said


def test_another_rank_that_has_ended(hvd: FakeHorovod) -> None:
    def work(group: ThreadGroup) -> None:
        backend = opened(group)
        model = torch.nn.Linear(1, 1)
        backend.wrap(model)
        if group.rank == 1:
            backend.close()
            return
        with backend.averaging(model, now=True):
            model(torch.ones(1, 1)).sum().backward()

    failed, _ = on_ranks(2, work)
    assert isinstance(failed, PeersError)
    assert "Horovod has been shut down" in failed.what


def test_a_rank_that_fails_leaves_horovod_to_the_others(hvd: FakeHorovod) -> None:
    """Shutting it down would end their averages, and they would tell of that. The next backend begins anew."""

    def work(group: ThreadGroup) -> bool:
        backend = opened(group)
        model = torch.nn.Linear(1, 1)
        backend.wrap(model)
        try:
            with backend.averaging(model, now=True):
                raise ValueError("a bad row")
        except ValueError:
            backend.close()
            left = hvd.is_initialized()
        group.ranks.sent.clear()
        group.barrier()
        again = opened(group)
        again.wrap(model)
        with again.averaging(model, now=True):
            model(torch.ones(1, 1)).sum().backward()
        again.close()
        return left and not hvd.is_initialized()

    assert on_ranks(2, work) == [True, True]


def test_ranks_that_are_stopped_together_stop_horovod(hvd: FakeHorovod) -> None:
    """They end MPI before they leave, and its thread would still talk."""

    def work(group: ThreadGroup) -> bool:
        backend = opened(group)
        try:
            raise InterruptedRun("told to stop", agreed=True)
        except InterruptedRun:
            backend.close()
        return hvd.is_initialized()

    assert on_ranks(2, work) == [False, False]


# --- which ranks, and how


def test_one_rank_needs_no_horovod() -> None:
    assert open_backend(COMPUTE, SerialGroup("site a")).name == "serial"


@pytest.mark.parametrize("deterministic", [True, False])
def test_bits_do_not_depend_on_what_is_added_together(
    deterministic: bool, hvd: FakeHorovod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horovod.os, "environ", environment := {})
    on_ranks(2, lambda group: HorovodBackend(group, CPU, deterministic=deterministic).close())
    assert environment == ({"HOROVOD_FUSION_THRESHOLD": "0"} if deterministic else {})


def test_the_communicator_goes_out_only_where_threads_may_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = types.SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 2)
    mpi = types.SimpleNamespace(THREAD_MULTIPLE=3, Query_thread=lambda: 3)
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=mpi))
    assert communicator_for_horovod(MpiGroup(comm, "site a")) is comm  # type: ignore[arg-type]
    with pytest.raises(InternalError):
        communicator_for_horovod(SerialGroup("site a"))
    mpi.Query_thread = lambda: 1
    with pytest.raises(ConfigError, match="one thread at a time"):
        communicator_for_horovod(MpiGroup(comm, "site a"))  # type: ignore[arg-type]
