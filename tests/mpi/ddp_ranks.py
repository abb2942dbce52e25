"""Runs on every rank of test_ddp.py: trains one site with DDP and writes what rank 0 must compare."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from train_fakes import make_task, make_trainer, rows

from fedhpc.errors import ConfigError, DataError
from fedhpc.mpi import collectives
from fedhpc.train.backends.open_backend import open_backend
from fedhpc.train.settings import ComputeSettings, TrainSettings
from fedhpc.train.standardise import standardise

CASES = {
    # 43 training rows: batches of 8 end in one of 3, so that three ranks have 3, 3, 2 rows and then 1, 1, 1
    "uneven": (TrainSettings(optimizer="sgd", lr=0.002, momentum=0.9, batch_size=8, local_epochs=2), {"norm": False}),
    # batches of 2, of which one of three ranks has no row at all, end in one of 3: two ranks have 2 and 1
    "empty shares": (
        TrainSettings(optimizer="adamw", lr=0.01, batch_size=2, local_epochs=1, clip_norm=0.7),
        {"norm": False},
    ),
    "accumulated": (
        TrainSettings(optimizer="sgd", lr=0.005, batch_size=10, local_steps=9, accumulation=3),
        {"norm": False},
    ),
    # two ranks take their shares of 3 and 2 rows in 3 and 2 pieces: they average once all the same
    "accumulated unevenly": (
        TrainSettings(optimizer="sgd", lr=0.005, batch_size=5, local_steps=9, accumulation=3),
        {"norm": False},
    ),
    "whole": (TrainSettings(optimizer="adamw", lr=0.01, batch_size=0, local_steps=4), {"norm": False}),
}


def site(group: Any, settings: TrainSettings, model: dict, **more: Any) -> Any:
    return make_trainer(settings, group=group, model={"dropout": 0.0} | model, proximal=0.1, **more)


def flat(arrays: dict) -> bytes:
    return b"".join(np.ascontiguousarray(v).tobytes() for v in arrays.values())


def main(out: Path) -> None:
    from mpi4py import MPI

    group = collectives.MpiGroup(MPI.COMM_WORLD, "site a")
    for name, (settings, model) in CASES.items():
        with site(group, settings, model) as trainer:
            assert isinstance(trainer._wrapped, torch.nn.parallel.DistributedDataParallel)
            wrapped = weakref.ref(trainer._wrapped)
            results = [trainer.train(r, trainer.tensors()) for r in range(2)]
            tensors, sums = trainer.tensors(), trainer.measure()
        assert wrapped() is None, "the wrapped model went before the process group"
        assert len({*group.gather_bytes(flat(tensors) + flat(sums) + repr(results[0].loss).encode())}) == 1, name
        alone = site(collectives.SerialGroup(), settings, model)
        expected = [alone.train(r, alone.tensors()) for r in range(2)]
        for key, value in alone.tensors().items():
            np.testing.assert_allclose(tensors[key], value, rtol=2e-4, atol=2e-5, err_msg=f"{name}: {key}")
        np.testing.assert_allclose([r.loss for r in results], [r.loss for r in expected], rtol=1e-4)
        assert sums["n"] == 10
        np.testing.assert_allclose(sums["loss"], alone.measure()["loss"], rtol=1e-3)

    # Batch norm and dropout: ranks see different rows, yet the site has one state, and it can be taken up again.
    settings = TrainSettings(optimizer="adamw", lr=0.01, batch_size=8, local_steps=5)
    with site(group, settings, {"dropout": 0.4}) as trainer:
        trainer.train(0, trainer.tensors())
        tensors, private = trainer.tensors(), trainer.private()
        assert tensors["norm.running_mean"].any()
        assert ("optimizer:a.weight:exp_avg" in private) == (group.rank == 0), "what is large is the leader's"
        shown = {name: array for name, array in private.items() if not name.startswith("optimizer:")}
        assert len({*group.gather_bytes(flat(tensors) + flat(shown))}) == 1
        assert len({row.tobytes() for row in private["random"]}) == group.size
        trainer.train(1, trainer.tensors())
        expected = flat(trainer.tensors())
    with site(group, settings, {"dropout": 0.4}) as trainer:
        trainer.load(tensors)
        trainer.restore(private if group.rank == 0 else {})
        trainer.train(1, trainer.tensors())
        assert flat(trainer.tensors()) == expected

    # A loop of one's own may hold its wrapped model for longer than the process group, up to the interpreter's exit.
    backend = open_backend(ComputeSettings(device="cpu"), group)
    kept = backend.wrap(torch.nn.Linear(2, 1))
    kept(torch.ones(1, 2)).sum().backward()
    backend.close()
    assert not {"reducer", "logger"} & vars(kept).keys(), "what would wait for the group's threads is gone"
    assert not torch.distributed.is_initialized()

    # A reducer that only a cycle holds is collected before the group goes: after it that would wait for good.
    backend = open_backend(ComputeSettings(device="cpu"), group)
    wrapped = backend.wrap(torch.nn.Linear(2, 1))
    cycle: list = [wrapped.reducer]
    cycle.append(cycle)
    held = weakref.ref(wrapped.reducer)
    del cycle
    backend.close()
    assert held() is None

    # Sums over the site's rows are the same on every rank.
    seen = []

    def collect(arrays: dict, **options: object) -> dict:
        seen.append(flat(arrays))
        return arrays

    with site(group, settings, {}) as trainer:
        standardise(collect, trainer)
        scale = trainer.tensors()["feature_scale"]
    x = rows().tensors[0][10:].numpy().astype(np.float64)
    np.testing.assert_allclose(scale, x.std(axis=0), rtol=1e-6)
    assert len({*group.gather_bytes(b"".join(seen))}) == 1

    # One rank's bad rows stop every rank with the same words.
    bad = rows()
    bad.tensors[0][20] = torch.nan
    with site(group, settings, {"norm": False}, dataset=bad, task=make_task()) as trainer:
        try:
            for round_ in range(3):
                trainer.train(round_, trainer.tensors())
            message = "no error"
        except DataError as error:
            message = error.what
    assert {*group.gather_bytes(message.encode())} == {message.encode()}
    assert "training loss is nan at step" in message

    for compute in (ComputeSettings("serial"), ComputeSettings("ddp", "cuda")):
        try:
            open_backend(compute, group)
            message = "no error"
        except ConfigError as error:
            message = error.what
        assert message.startswith("site a"), message
    if group.rank == 0:
        out.write_text("all equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
