"""A whole federation in one job that is told to stop: all ranks keep their work and end with 75, and it goes on."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import Completed, Site, mpi_words, start, until, write_federation

STEPS = 5
TASK = """
import os
import signal
import time
from pathlib import Path

import torch

from fedhpc.train.tasks import logistic

steps = iter(range(1 << 30))
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.2)
        self.b = torch.nn.Linear(8, 1)

    def forward(self, x):
        return self.b(self.drop(torch.relu(self.norm(self.a(x)))))[:, 0]


def model(options):
    return Model()


def dataset(path, options):
    return logistic.dataset(path, {"features": 4})


def loss(model, batch):
    here = next(steps) + 1 if torch.is_grad_enabled() else 0  # a step, and no check at the start
    if os.environ.get("STOP_ITSELF") == f"{rank} {here}":
        os.kill(os.getpid(), signal.SIGUSR2)
    if os.environ.get("STOP_AT") == str(here):
        Path(os.environ["REACHED"], rank).touch()
        told = signal.getsignal(signal.SIGUSR2).__self__
        end = time.monotonic() + 60
        while not told.by and time.monotonic() < end:
            time.sleep(0.01)
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1].float())


def sums(model, batch):
    return {"n": torch.tensor(len(batch[1])), "loss": model(batch[0]).sum()}
"""


def federation(folder: Path, ranks: int) -> Path:
    sites = {name: Site(rows=30 + 7 * i, ranks=ranks) for i, name in enumerate(("aa", "bb"))}
    made = write_federation(
        folder,
        sites,
        rounds=2,
        secure={"accept_two_sites": True},
        strategy={"name": "diloco"},
        task={"name": "module", "held_out": 0.25, "source_sha256": hashlib.sha256(TASK.encode()).hexdigest()},
        train={"optimizer": "adamw", "lr": 0.02, "batch_size": 8, "local_steps": STEPS},
    )
    (folder / "task.py").write_text(TASK)
    for file in (folder / "sites").glob("*.toml"):
        file.write_text(file.read_text().replace("[data]\n", "[data]\ntask_source = '../task.py'\n"))
    return made


def run(
    made: Path,
    ranks: int,
    env: Mapping[str, str] | None = None,
    told: signal.Signals | None = None,
    *,
    warm: bool = True,
) -> Completed:
    """The job to its end; `told`: the launcher gets this signal once every rank is at the step of STOP_AT."""
    reached = made.parent / "reached"
    reached.mkdir(exist_ok=True)
    words = mpi_words(2 * ranks, ["-m", "fedhpc", "run", made, "--sites", made.parent / "sites"], warm=warm)
    code = {"FEDHPC_EXIT_FILE": str(made.parent / "code")}
    with start(words, env={"REACHED": str(reached), **code, **(env or {})}) as job:
        if told is not None:
            until(lambda: len(list(reached.iterdir())) == 2 * ranks, 90, "all ranks are at the step")
            job.process.send_signal(told)
        return job.finish(120)


def final(done: Completed) -> str:
    found = re.search(r"sha256 ([0-9a-f]{64})", done.ok().out)
    assert found
    return found[1]


def outboxes(made: Path) -> list[Path]:
    return sorted((made.parent / "run").glob("*/outbox/local.work"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """By ranks of a site."""
    return {r: final(run(federation(tmp_path_factory.mktemp(f"whole{r}"), r), r)) for r in (1, 2)}


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "at"), [(1, 2), (2, STEPS + 3)])
def test_usr2_to_the_launcher(tmp_path: Path, unbroken: dict[int, str], ranks: int, at: int) -> None:
    """In the middle of the first and of the second round; with two ranks BatchNorm sees other rows on each."""
    made = federation(tmp_path, ranks)
    done = run(made, ranks, {"STOP_AT": str(at)}, signal.SIGUSR2)
    assert done.code == 75, done.text
    assert f"stopped: stopped in round {1 + at // STEPS}, after {at % STEPS} steps: told to by SIGUSR2" in done.err
    assert done.err.count("stopped: ") == 1  # rank 0 speaks for all
    assert "Traceback" not in done.err
    assert "MPI_ABORT" not in done.err  # `python -m mpi4py` would add it, and end ranks that still write
    assert (tmp_path / "code").read_text() == "75\n"  # for the batch script
    assert len(outboxes(made)) == 2
    again = run(made, ranks)
    assert final(again) == unbroken[ranks]
    assert outboxes(made) == []


@pytest.mark.mpi
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_mpirun_that_is_ended_loses_the_round_and_says_so(
    tmp_path: Path, unbroken: dict[int, str], told: signal.Signals
) -> None:
    """Open MPI 5 sends SIGTERM after a quarter of a second, and SIGKILL a quarter of a second later.

    What its ranks write in that time is not shown; whether they keep anything is a matter of luck.
    """
    made = federation(tmp_path, 1)
    done = run(made, 1, {"STOP_AT": str(STEPS + 2)}, told, warm=False)
    assert done.code != 0
    stopped, hint = done.err.splitlines()[-2:]
    assert stopped.startswith("stopped in the middle of round 2: mpirun leaves its ranks half a second")
    assert re.fullmatch("hint: run it again: it goes on (after round 1|from the work .*), to the same model; .*", hint)
    assert "SIGUSR2 to mpirun keeps the round's work" in hint
    assert final(run(made, 1)) == unbroken[1]


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "which"), [(1, f"1 {STEPS + 1}"), (2, "3 2")])
def test_a_signal_that_reaches_one_rank_stops_all(
    tmp_path: Path, unbroken: dict[int, str], ranks: int, which: str
) -> None:
    """Its site stops at that step; the other site at the end of its round, and both keep what they have."""
    made = federation(tmp_path, ranks)
    done = run(made, ranks, {"STOP_ITSELF": which})
    assert done.code == 75, done.text
    assert "told to by SIGUSR2" in done.err
    assert "MPI_ABORT" not in done.err
    assert len(outboxes(made)) == 2
    assert final(run(made, ranks)) == unbroken[ranks]


@pytest.mark.mpi
def test_every_job_stopped_at_its_fourth_step(tmp_path: Path, unbroken: dict[int, str]) -> None:
    made = federation(tmp_path, 1)
    codes: list[int] = []
    while not codes or codes[-1] == 75:
        assert len(codes) < 12
        codes.append(run(made, 1, {"STOP_ITSELF": "0 4"}).code)
    assert set(codes) == {75, 0}
    assert final_again(made) == unbroken[1]


def final_again(made: Path) -> str:
    """The hash that a finished site has noted."""
    found: dict[str, Any] = json.loads((made.parent / "run" / "aa" / "finished.json").read_text())
    return str(found["model_sha256"])
