"""A run that is killed anywhere and started again ends with the model of an unbroken run, to the last bit."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest
from harness import Site, edit, ledger_entries, ledger_of, mpi_words, mpirun, start, until, write_federation

from fedhpc.agreement.run_folder import checkpoints
from fedhpc.enrolment.next_epoch import Beginning
from fedhpc.enrolment.rehearsal import Rehearsal

SCRIPT = Path(__file__).with_name("kill_ranks.py")
ROUNDS = 4
pytestmark = [pytest.mark.faults, pytest.mark.mpi]


def prepare(directory: Path, ranks: int = 1) -> list[str | Path]:
    """A federation for kill_ranks.py in `directory`, `ranks` of site aa; the words of a run without a fault."""
    counts = {"aa": ranks, "bbb": 1, "cccc": 1}
    sites = {name: Site(ranks=count, exchange={"chunk_bytes": 262144}) for name, count in counts.items()}
    strategy = {"name": "fedadam", "lr": 0.05}
    federation = write_federation(directory, sites, rounds=ROUNDS, strategy=strategy, stores=False)
    return [SCRIPT, federation, directory / "sites"]


def final(text: str) -> tuple[str, int]:
    """(hash, round it went on from) of a finished run."""
    found = re.search(r"^final ([0-9a-f]{64}) after (\d+)$", text, re.MULTILINE)
    assert found, text
    return found[1], int(found[2])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final hash of an unbroken run."""
    directory = tmp_path_factory.mktemp("unbroken")
    done = mpirun(3, [*prepare(directory), ""], timeout=60, cwd=directory, warm=True).ok()
    digest, started = final(done.out)
    assert started == 0
    return digest


def rounds_of(directory: Path, site: str) -> list[int]:
    """The rounds of the site's checkpoints."""
    return list(checkpoints(directory / "run" / site / "checkpoints"))


@pytest.mark.parametrize(
    ("point", "resumes_at", "held"),
    [
        # before the first checkpoint: in the statistic, and when one site has written round 0 and another has not
        ("bbb admit-after 2", 0, {"aa": [], "bbb": [], "cccc": []}),
        ("aa save-before 0", 0, {"aa": [], "bbb": [0], "cccc": [0]}),
        ("cccc save-half 0", 0, {"aa": [0], "bbb": [0], "cccc": []}),
        # between two sites' checkpoints of a later round, before and after the rename
        ("bbb save-before 2", 1, {"aa": [1, 2], "bbb": [0, 1], "cccc": [1, 2]}),
        ("aa save-half 3", 2, {"aa": [1, 2], "bbb": [2, 3], "cccc": [2, 3]}),
        ("cccc save-after 2", 2, {"aa": [1, 2], "bbb": [1, 2], "cccc": [1, 2]}),
        # one site's ledger has the round, the vector is not sent; and the other way round
        ("bbb admit-after 9", None, {}),
        ("aa admit-before 9", None, {}),
        # half of the vector is sent; all of it, and results are not compared
        ("cccc sum 2", 1, {}),
        ("bbb settle 8", None, {}),
        # after the last checkpoint, before the final metrics
        ("aa save-after 4", 4, {"aa": [3, 4], "bbb": [3, 4], "cccc": [3, 4]}),
    ],
)  # fmt: skip
def test_killed_at(
    tmp_path: Path, unbroken: str, point: str, resumes_at: int | None, held: dict[str, list[int]]
) -> None:
    words = prepare(tmp_path)
    frozen = tmp_path / "frozen"
    with start(mpi_words(3, [*words, point]), cwd=tmp_path) as job:
        until(lambda: frozen.exists() or job.process.poll() is not None, 60, f"the freeze at {point}")
        assert frozen.exists(), job.finish(1).text
        for site, rounds in held.items():  # the other sites go on as far as they can
            until(lambda s=site, r=rounds: rounds_of(tmp_path, s) == r, 20, f"{site} to hold {rounds}")
        job.kill()
    done = mpirun(3, [*words, ""], timeout=60, cwd=tmp_path, warm=True).ok()
    digest, started = final(done.out)
    assert digest == unbroken
    if resumes_at is not None:
        assert started == resumes_at
    check_ledgers(tmp_path)


@pytest.mark.parametrize(
    ("point", "after"),
    [("aa save-rank 2", 2), ("aa save-private 2", 1), ("aa save-index 2", 2), ("aa save-index 0", 1)],
)
def test_killed_between_the_files_of_a_round(tmp_path: Path, unbroken: str, point: str, after: int) -> None:
    """Of a site of two ranks, which goes on with `after` ranks, to the hash of one rank."""
    words = prepare(tmp_path, ranks=2)
    frozen = tmp_path / "frozen"
    with start(mpi_words(4, [*words, point]), cwd=tmp_path) as job:
        until(lambda: frozen.exists() or job.process.poll() is not None, 60, f"the freeze at {point}")
        assert frozen.exists(), job.finish(1).text
        job.kill()
    round_ = int(point.split()[2])
    assert rounds_of(tmp_path, "aa") == list(range(max(0, round_ - 2), round_))
    words = prepare(tmp_path, ranks=after)
    done = mpirun(2 + after, [*words, ""], timeout=60, cwd=tmp_path, warm=True).ok()
    assert final(done.out) == (unbroken, max(0, round_ - 1))
    check_ledgers(tmp_path)
    kept = [path.is_dir() for path in checkpoints(tmp_path / "run" / "aa" / "checkpoints").values()]
    assert kept == [after > 1] * 2


@pytest.fixture(scope="module")
def next_epoch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that is done, and the next epoch begun; the hash with which that ends if nothing breaks it."""
    directory = tmp_path_factory.mktemp("epochs") / "a"
    words = prepare(directory)
    mpirun(3, [*words, ""], timeout=60, cwd=directory, warm=True).ok()
    Rehearsal(directory).next_epoch(Beginning())
    unbroken = shutil.copytree(directory, directory.with_name("unbroken"))
    again = [SCRIPT, unbroken / "federation.toml", unbroken / "sites", ""]
    done = mpirun(3, again, timeout=60, cwd=unbroken, warm=True).ok()
    assert "goes on from the model" in done.out
    return directory, final(done.out)[0]


@pytest.mark.parametrize(
    "point",
    [
        # the sum `start`: its line in the ledger, half of it sent, before its results; then its checkpoint
        "aa admit-before 1",
        "bbb admit-after 1",
        "aa sum 1",
        "cccc sum 1",
        "bbb settle 1",
        "aa save-before 0",
        "cccc save-half 0",
        "bbb save-after 0",
    ],
)
def test_killed_around_the_sum_that_begins_an_epoch(tmp_path: Path, next_epoch: tuple[Path, str], point: str) -> None:
    directory = shutil.copytree(next_epoch[0], tmp_path / "a")
    words = [SCRIPT, directory / "federation.toml", directory / "sites"]
    with start(mpi_words(3, [*words, point]), cwd=directory) as job:
        frozen = directory / "frozen"
        until(lambda: frozen.exists() or job.process.poll() is not None, 60, f"the freeze at {point}")
        assert frozen.exists(), job.finish(1).text
        job.kill()
    done = mpirun(3, [*words, ""], timeout=60, cwd=directory, warm=True).ok()
    assert final(done.out)[0] == next_epoch[1]


def test_killed_at_random_times_again_and_again(tmp_path: Path, unbroken: str) -> None:
    """Start, kill, start, kill, …: each start gets a few sums further, and is killed somewhere in the next one."""
    words, draw = prepare(tmp_path), random.Random(20260101)
    ledger = ledger_of(tmp_path, "bbb")

    def lines() -> int:
        return ledger.read_bytes().count(b"\n") if ledger.exists() else 0

    for _ in range(5):
        with start(mpi_words(3, [*words, ""]), cwd=tmp_path) as job:
            goal = lines() + draw.randint(1, 3)
            until(lambda g=goal, j=job: lines() >= g or j.process.poll() is not None, 60, f"{goal} sums")
            time.sleep(draw.uniform(0, 0.03))
            assert job.process.poll() is None, "killed too late for a test"
            job.kill()
    done = mpirun(3, [*words, ""], timeout=60, cwd=tmp_path, warm=True).ok()
    assert final(done.out)[0] == unbroken
    check_ledgers(tmp_path)


def test_torn_line_at_the_end_of_a_ledger(tmp_path: Path, unbroken: str) -> None:
    """A kill inside the write of a ledger line leaves half a line; nothing was sent after it."""
    words = prepare(tmp_path)
    with start(mpi_words(3, [*words, "bbb admit-after 9"]), cwd=tmp_path) as job:
        until((tmp_path / "frozen").exists, 60, "the freeze")
        job.kill()
    ledger = ledger_of(tmp_path, "bbb")
    ledger.write_bytes(ledger.read_bytes()[:-50])
    done = mpirun(3, [*words, ""], timeout=60, cwd=tmp_path, warm=True).ok()
    assert final(done.out)[0] == unbroken
    check_ledgers(tmp_path)


def test_lost_run_directory_of_one_site_is_told(tmp_path: Path) -> None:
    words = prepare(tmp_path)
    mpirun(3, [*words, ""], timeout=60, cwd=tmp_path, warm=True).ok()
    for path in (tmp_path / "run" / "bbb" / "checkpoints").glob("*"):
        path.unlink()
    done = mpirun(3, [*words, ""], timeout=60, cwd=tmp_path, warm=True)
    done.refused(65, "only site aa, cccc has checkpoints", "no round is held by all sites")


def check_ledgers(directory: Path) -> None:
    """Every site has the same rounds with the same purposes, each once, whatever happened in between."""
    told = []
    for site in ("aa", "bbb", "cccc"):
        entries = ledger_entries(ledger_of(directory, site))
        told.append([(e["round"], e["purpose"], e["input"]) for e in entries])
        assert [e["round"] for e in entries] == list(range(1, len(entries) + 1))
    assert told[0] == told[1] == told[2]


TASK = """
import torch
from fedhpc.train.tasks import logistic
from fedhpc.train.tasks.logistic import dataset, loss, sums

def model(options):
    out = logistic.model(options)
    layers = [torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(9, 4)]
    net = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Sequential(*layers)])[0], out)
    net.bins = out.bins
    return net

def fill(name, shape, generator):
    return torch.rand(shape, generator=generator) - 0.5

def fsdp_units(model):
    return [model[0]]
"""


def test_real_training_killed_and_resumed(tmp_path: Path) -> None:
    """The same through `fedhpc run` with PyTorch: dropout, momentum, shuffled batches; sites of one rank, of two ranks
    that hold the model each, and of two that share it."""
    task = {"name": "module", "held_out": 0.25, "options": {"features": 4}}
    task["source_sha256"] = hashlib.sha256(TASK.encode()).hexdigest()
    (tmp_path / "task.py").write_text(TASK)
    train = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "batch_size": 7, "local_steps": 5}
    sites = {
        "aa": Site(rows=30),
        "bb": Site(rows=41, ranks=2, compute={"backend": "ddp"}),
        "cc": Site(rows=26, ranks=2, compute={"backend": "fsdp"}),
    }
    hashes = []
    for name in ("unbroken", "killed"):
        federation = write_federation(tmp_path / name, sites, rounds=20, task=task, train=train)
        for site in sites:
            edit(federation.parent / "sites" / f"{site}.toml", "[data]", "[data]\ntask_source = '../../task.py'")
        words = ["-m", "fedhpc", "run", federation, "--sites", federation.parent / "sites", "--json"]
        if name == "killed":
            with start(mpi_words(5, words)) as job:
                # Every site: a kill between two sites' writes goes on from the round before, as it should.
                until(
                    lambda: all(max(rounds_of(tmp_path / "killed", s), default=0) >= 6 for s in sites)
                    or job.process.poll() is not None,
                    90, "round 6",
                )  # fmt: skip
                assert job.process.poll() is None, job.finish(1).text
                job.kill()
        done = mpirun(5, words, timeout=120, warm=True).ok()
        result = json.loads(done.out.splitlines()[-1])
        hashes.append(result["final_model_sha256"])
        assert result["resumed_after_round"] >= (6 if name == "killed" else 0)
    assert hashes[0] == hashes[1]
