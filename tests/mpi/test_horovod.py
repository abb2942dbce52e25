"""The real Horovod, where it is installed: sites that train with it sum as others do, and end as others do."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Site, mpirun, write_federation

from fedhpc.horovod.installed import look, require_fit

pytestmark = [pytest.mark.mpi, pytest.mark.horovod]
HERE = Path(__file__).parent
MLP = {"name": "mlp", "held_out": 0.25, "options": {"features": 4, "hidden": [16, 8], "dropout": 0.2}}
TASK = """
import os
import signal
import torch
from fedhpc.train.tasks import logistic

model, sums = logistic.model, logistic.sums
steps = [0]

def dataset(path, options):
    return logistic.dataset(path, options)

def loss(model, batch):
    steps[0] += 1
    if steps[0] == 30 and os.environ["OMPI_COMM_WORLD_RANK"] in RANKS:
        ACTION
    return logistic.loss(model, batch)
"""


def test_two_sites_of_two_ranks_with_unequal_numbers_of_steps(record_property: Any) -> None:
    done = mpirun(4, [HERE / "horovod_ranks.py"], timeout=240, warm=True).ok()
    record_property("training", json.loads(done.out.strip().splitlines()[-1]))


def test_its_libmpi_is_that_of_mpi4py() -> None:
    found = require_fit(look(os.environ, 300))
    assert found.version == "0.28.1"
    assert len(found.libraries) == 1
    assert not found.gloo


def test_their_masked_sums_are_those_of_ddp(tmp_path: Path, record_property: Any) -> None:
    """Epochs over unequal numbers of rows are unequal numbers of steps."""
    cases = ("ddp", "horovod", "again")
    for name in cases:
        compute = {"backend": name.replace("again", "horovod")}
        sites = {"aa": Site(rows=40, ranks=2, compute=compute), "bb": Site(rows=60, ranks=2, compute=compute)}
        train = {"lr": 0.1, "batch_size": 8, "local_epochs": 1, "momentum": 0.9}
        write_federation(tmp_path / name, sites, rounds=3, task=MLP, train=train, secure={"accept_two_sites": True})
    words = [HERE / "training_ranks.py", *(tmp_path / name for name in cases)]
    done = mpirun(4, words, timeout=240, warm=True).ok()
    lines = [json.loads(line) for line in done.out.splitlines() if line.startswith("[")]
    hashes = {name: sha256 for name, sha256, *_ in lines}
    assert hashes.keys() == set(cases), done.text
    assert hashes["again"] == hashes["horovod"]
    final = {n: np.concatenate([t.ravel() for t in np.load(tmp_path / n / "final.npz").values()]) for n in cases}
    off = float(np.linalg.norm(final["horovod"] - final["ddp"]) / np.linalg.norm(final["ddp"]))
    assert off <= 1e-6
    record_property("masked", {"off": off, "model_sha256": hashes})


FAIL = 'raise RuntimeError("a bad row at rank " + os.environ["OMPI_COMM_WORLD_RANK"])'
STOP = "os.kill(os.getpid(), signal.SIGUSR1)"


@pytest.mark.parametrize(
    ("action", "ranks", "code", "words"),
    [
        (FAIL, ["1"], 65, "RuntimeError: a bad row at rank 1"),
        (FAIL, ["0", "1"], 65, "RuntimeError: a bad row at rank"),
        (STOP, ["0"], 75, "submit it again"),
    ],
    ids=["one rank", "all ranks", "stopped"],
)
def test_how_a_job_ends_within_a_round(action: str, ranks: list[str], code: int, words: str, tmp_path: Path) -> None:
    """With the words and the exit code of what happened, not with those of a Horovod that has been shut down."""
    source = TASK.replace("RANKS", repr(ranks)).replace("ACTION", action)
    task = {"name": "module", "held_out": 0.0, "source_sha256": hashlib.sha256(source.encode()).hexdigest()}
    task["options"] = {"features": 4}
    sites = {"aa": Site(rows=40, ranks=2, compute={"backend": "horovod"})}
    federation = write_federation(tmp_path, sites, rounds=20, task=task)
    (tmp_path / "task.py").write_text(source)
    file = tmp_path / "sites" / "aa.toml"
    file.write_text(file.read_text().replace("[data]\n", "[data]\ntask_source = '../task.py'\n"))
    done = mpirun(2, ["-m", "fedhpc", "run", federation, "--sites", tmp_path / "sites"], timeout=60, warm=True)
    assert done.code == code, done.text
    assert words in done.err, done.text
    assert "HorovodInternalError" not in done.err, done.text
    assert "has been shut down" not in done.err, done.text
