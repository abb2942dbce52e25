"""Runs on both ranks of test_text_sharded.py: a transformer of which each holds rows, and one on one rank."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from fsdp_ranks import away, digest, same

from fedhpc.mpi import collectives
from fedhpc.mpi.collectives import Group, SerialGroup
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.trainer import TorchTrainer

TRAIN = TrainSettings(lr=0.1, batch_size=5, local_steps=5, clip_norm=0.5)


def trainer(store: Path, group: Group, backend: str) -> TorchTrainer:
    options = {"vocabulary": 9, "tokenizer_sha256": "ef" * 32, "context": 7, "width": 6, "layers": 2, "heads": 2}
    task = TaskSettings("transformer", options=options, held_out=0.3)
    compute = ComputeSettings(device="cpu", backend=backend)  # type: ignore[arg-type]
    return open_trainer(task, TRAIN, compute, data=store, source=None, group=group, site="a", seed=5)


def check(group: Group, store: Path) -> None:
    with trainer(store, group, "fsdp") as sharded, trainer(store, SerialGroup("a"), "serial") as whole:
        assert sharded.model.tokens.weight.to_local().shape[0] < 9  # type: ignore[union-attr,operator]
        assert digest(sharded.tensors()) == digest(whole.tensors())  # type: ignore[arg-type]
        for round_ in (1, 2):
            found, expected = sharded.measure(), whole.measure()
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-5)
            for one in (sharded, whole):
                one.train(round_, one.tensors())
        same(group, digest(sharded.tensors()))
        assert away(sharded.tensors(), whole.tensors()) < 1e-6


if __name__ == "__main__":
    from mpi4py import MPI

    check(collectives.MpiGroup(MPI.COMM_WORLD, "site a"), Path(sys.argv[1]))
