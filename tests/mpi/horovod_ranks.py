"""Runs on the four ranks of test_horovod.py: two sites of two ranks train with the real Horovod, each for itself.

They take unequal numbers of steps, and are compared with DDP's ranks and with one rank. Rank 0 writes one line of JSON.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from train_fakes import Net, make_trainer

from fedhpc.errors import ConfigError
from fedhpc.mpi import collectives
from fedhpc.train.backends.open_backend import open_backend
from fedhpc.train.settings import ComputeSettings, TrainSettings

HOROVOD = ComputeSettings(backend="horovod", device="cpu")
DDP = ComputeSettings(backend="ddp", device="cpu")
CASES = {
    "sgd": TrainSettings(lr=0.002, momentum=0.9, batch_size=8, local_epochs=1, clip_norm=0.7),
    "sgd, accumulated": TrainSettings(lr=0.005, batch_size=10, local_epochs=1, accumulation=3),
    "adamw": TrainSettings(optimizer="adamw", lr=0.01, batch_size=7, local_epochs=1),
}
RELATIVE = {"sgd": 1e-6, "sgd, accumulated": 1e-6, "adamw": 1e-4}  # of the whole model, not of a tensor


def trained(group: Any, settings: TrainSettings, compute: ComputeSettings, n: int) -> tuple[np.ndarray, int]:
    torch.manual_seed(0)
    model = Net(dropout=0.0, norm=False)
    with make_trainer(settings, group=group, model=model, compute=compute, n=n, proximal=0.1) as trainer:
        steps = sum(trainer.train(round_, trainer.tensors()).steps for round_ in range(2))
        return np.concatenate([t.ravel() for t in trainer.tensors().values()]), steps


def same(group: Any, array: np.ndarray) -> None:
    assert len({*group.gather_bytes(np.ascontiguousarray(array).tobytes())}) == 1


def gradients(group: Any) -> None:
    """Of 16 bits, in a layout of their own, sparse, and of what one rank's rows do not reach; against their mean."""
    torch.manual_seed(group.rank)
    images = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    model = torch.nn.ModuleDict(
        {
            "images": images,
            "table": torch.nn.Embedding(4, 2, sparse=True),
            "short": torch.nn.Linear(3, 3, bias=False).to(torch.bfloat16),
            "mine": torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False) for _ in range(group.size)),
            "nobody": torch.nn.Linear(2, 2),
        }
    )

    def passes(model: torch.nn.ModuleDict, rank: int) -> torch.Tensor:
        picture = torch.full((1, 3, 3, 3), 1.0 + rank).to(memory_format=torch.channels_last)
        short = (model["short"].weight * (256.0 if rank == 0 else 2.0)).float().sum()
        mine = model["mine"][rank].weight.sum() * 3
        return model["images"](picture).sum() + model["table"](torch.tensor([rank])).sum() + short + mine

    backend = open_backend(HOROVOD, group)
    wrapped = backend.wrap(model)
    plain = copy.deepcopy(model)  # with the leader's parameters
    for now in (False, True):
        with backend.averaging(wrapped, now):
            passes(wrapped, group.rank).backward()
    (sum(passes(plain, rank) for rank in range(group.size)) * (2 / group.size)).backward()  # type: ignore[union-attr]
    for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None, name
        expected = torch.zeros_like(two) if two.grad is None else two.grad.to_dense()
        assert torch.equal(one.grad, expected), (name, one.grad, expected)
    others = [f"mine.{rank}.weight" for rank in range(group.size) if rank != group.rank]
    assert backend.unreached(wrapped) == [*others, "nobody.weight", "nobody.bias"]
    backend.close()


def again(group: Any) -> None:
    """Three ranks that hand over their gradients at other times get the same bits again."""
    sizes = (3, 17, 64, 100, 257, 1000, 33, 4096, 5000, 12)
    torch.manual_seed(group.rank)
    slopes = [torch.randn(size) for size in sizes]
    model = torch.nn.ParameterList([torch.zeros(size) for size in sizes])
    draw = random.Random(group.rank)
    for parameter in model:
        parameter.register_hook(lambda _: time.sleep(0.004 * draw.random() * (draw.random() < 0.3)))
    backend = open_backend(HOROVOD, group)
    wrapped = backend.wrap(model)
    results = set()
    for _ in range(20):
        model.zero_grad()
        with backend.averaging(wrapped, now=True):
            sum((p * slope).sum() for p, slope in zip(model, slopes, strict=True)).backward()  # type: ignore[union-attr]
        results.add(b"".join(p.grad.numpy().tobytes() for p in model))
    backend.close()
    assert len(results) == 1, f"{len(results)} different averages"


def main() -> None:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    number = world.Get_rank() // 2
    group = collectives.MpiGroup(world.Split(number), f"site {'ab'[number]}")
    alone = collectives.SerialGroup(group.label)
    found: dict[str, Any] = {"steps": {}, "horovod against ddp": {}, "horovod against one rank": {}}
    for name, settings in CASES.items():
        n = (30, 53)[number]
        mine, steps = trained(group, settings, HOROVOD, n)
        same(group, mine)
        ddp, _ = trained(group, settings, DDP, n)
        one, _ = trained(alone, settings, HOROVOD, n)
        found["steps"][name] = sorted({int(s) for s in world.allgather(steps)})
        for what, other in (("horovod against ddp", ddp), ("horovod against one rank", one)):
            off = max(world.allgather(float(np.linalg.norm(mine - other) / np.linalg.norm(other))))
            found[what][name] = off
            assert off <= RELATIVE[name], (what, name, off)
        assert len(found["steps"][name]) == 2, "the sites must take unequal numbers of steps"
    gradients(group)
    three = world.Split(0 if world.Get_rank() < 3 else MPI.UNDEFINED)
    if three != MPI.COMM_NULL:
        again(collectives.MpiGroup(three, "site of three"))
    world.Barrier()

    # Whoever has started Horovod in this process keeps it.
    import horovod.torch as hvd

    hvd.init(comm=world)
    try:
        open_backend(HOROVOD, group)
        words = "no error"
    except ConfigError as error:
        words = error.what
    assert "is already initialised in this process" in words, words
    hvd.shutdown()
    if world.Get_rank() == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
