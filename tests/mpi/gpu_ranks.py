"""Runs on every rank of test_gpu.py, one for each GPU: backends on GPUs against one rank on the CPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from fsdp_ranks import SGD, away, digest, first, loss, same, sums
from train_fakes import make_task, make_trainer

from fedhpc.mpi.collectives import Group, MpiGroup, SerialGroup
from fedhpc.train.settings import ComputeSettings, TrainSettings


def trained(group: Group, settings: TrainSettings, backend: str, device: str) -> dict:
    compute = ComputeSettings(backend=backend, device=device)  # type: ignore[arg-type]
    model = first(settings.precision == "bf16")
    with make_trainer(
        settings, group=group, model=model, task=make_task(loss=loss, sums=sums), compute=compute
    ) as trainer:
        assert trainer.device.type == device
        for round_ in (1, 2):
            trainer.measure()
            trainer.train(round_, trainer.tensors())
        return trainer.tensors()


def main(out: Path) -> None:
    from mpi4py import MPI

    torch.backends.cuda.matmul.allow_tf32 = False
    group, alone = MpiGroup(MPI.COMM_WORLD, "site a"), SerialGroup("site a")
    for precision, bound in (("float32", 1e-4), ("bf16", 5e-2)):
        settings = dataclasses.replace(SGD, precision=precision)  # type: ignore[arg-type]
        expected = trained(alone, settings, "serial", "cpu")
        for backend in ("ddp", "fsdp", "mpi"):
            found = trained(group, settings, backend, "cuda")
            same(group, digest(found))
            assert away(found, expected) < bound, (backend, precision, away(found, expected))
            assert digest(trained(group, settings, backend, "cuda")) == digest(found), (backend, "the same bits again")
        assert away(trained(alone, settings, "serial", "cuda"), expected) < bound
    if group.rank == 0:
        out.write_text("all close")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
