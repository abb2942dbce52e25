"""What a user can get wrong, through the real command line: each has its exit code and says what and where."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from harness import (
    FEDHPC,
    Completed,
    Site,
    call,
    edit,
    ledger_of,
    mpirun,
    start,
    until,
    without_blind,
    write_federation,
    write_rows,
)

pytestmark = pytest.mark.faults

RUN = ["-m", "fedhpc", "run"]
SUM_SCRIPT = Path(__file__).parents[1] / "mpi" / "sum_ranks.py"


def one_site(tmp_path: Path, **settings: Any) -> Path:
    """A federation of one site, which needs no MPI."""
    return write_federation(tmp_path, {"aa": Site()}, **({"rounds": 2} | settings))


def run_alone(federation: Path, *words: str | Path) -> Completed:
    """`fedhpc run` in one process."""
    return call([*FEDHPC, "run", federation, "--sites", federation.parent / "sites", *words], timeout=60)


def run_three(federation: Path, *, ranks: int = 3) -> Completed:
    """`fedhpc run` with one rank for each of three sites."""
    return mpirun(ranks, [*RUN, federation, "--sites", federation.parent / "sites"], timeout=60, warm=True)


# --- configuration, 64


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("federation.toml", "rounds =", "round =", ["federation: unknown key 'round'", "did you mean 'rounds'?"]),
        ("federation.toml", "[train]", "[trian]", ["unknown key 'trian'", "did you mean 'train'?"]),
        ("federation.toml", "lr = 0.2", "learning_rate = 0.2", ["train: unknown key 'learning_rate'", "valid names: "]),
        ("federation.toml", "lr = 0.2", "lr = 'fast'", ["train.lr = 'fast' has the wrong type", "a number"]),
        ("federation.toml", "held_out", "heldout", ["task: unknown key 'heldout'", "did you mean 'held_out'?"]),
        ("federation.toml", "'logistic'", "'logistics'", ["task.name = 'logistics'", "did you mean 'logistic'?"]),
        ("federation.toml", "features = 4", "feature = 4", ["unknown key 'feature'", "did you mean 'features'?"]),
        ("federation.toml", "rounds = 2", "rounds = 0", ["federation.rounds = 0"]),
        ("federation.toml", "rounds = 2", "rounds = ", ["federation.toml", "line 3"]),
        ("federation.toml", "protocol = 'fedhpc-secagg/3'", "", ["names no protocol", "older", "federation next"]),
        ("federation.toml", "secagg/3", "secagg/1", ["asks for the protocol 'fedhpc-secagg/1'", "federation next"]),
        ("federation.toml", "secagg/3", "secagg/2", ["asks for the protocol 'fedhpc-secagg/2'", "federation next"]),
        ("federation.toml", "secagg/3", "secagg/4", ["this build speaks fedhpc-secagg/3", "one version of fedhpc"]),
        ("sites/aa.toml", "ranks =", "rank =", ["site: unknown key 'rank'", "did you mean 'ranks'?"]),
        ("sites/aa.toml", "threads =", "thread =", ["compute: unknown key 'thread'", "did you mean 'threads'?"]),
        ("sites/aa.toml", "path = '../data", "paths = '../data", ["data: unknown key 'paths'", "did you mean 'path'?"]),
        ("sites/aa.toml", "[compute]", "[exchange]\nrails = 0\n[compute]", ["exchange.rails = 0"]),
        ("sites/aa.toml", "[compute]", "[exchange]\nchunk_bytes = 5000\n[compute]", ["exchange.chunk_bytes = 5000"]),
        ("sites/aa.toml", "name = 'aa'", "name = 'ab'", ["site 'ab' is not in the roster", "lists aa"]),
        ("sites/aa.toml", "ranks = 1", "ranks = 3", ["ask for 3 ranks (aa 3), but the job has 1", "mpirun -n 3"]),
    ],
)  # fmt: skip
def test_misspelt_settings(tmp_path: Path, file: str, old: str, new: str, words: list[str]) -> None:
    federation = one_site(tmp_path)
    edit(tmp_path / file, old, new)
    run_alone(federation).refused(64, *words)


def test_keys_of_the_roster(tmp_path: Path) -> None:
    """One key must not stand in the roster twice, also not in another spelling."""
    federation = write_federation(tmp_path, 3, stores=False)
    signs = [line.split("'")[1] for line in federation.read_text().splitlines() if line.startswith("sign")]
    text = federation.read_text()
    federation.write_text(text.replace(signs[1], signs[0]))
    run_alone(federation).refused(64, "two sites in the roster have the key")
    federation.write_text(text.replace(signs[1], signs[0].upper()))
    run_alone(federation).refused(64, "site bb: sign is not an Ed25519 public key")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere/federation.toml", "--sites", "x"], "cannot read nowhere/federation.toml"),
        (["run", "federation.toml"], "either sites="),
        (["run", "federation.toml", "--sites", "sites", "--site", "sites/aa.toml"], "either sites="),
        (["run", "federation.toml", "--sites", "sites/aa.toml"], "is not a directory"),
        (["run", "federation.toml", "--sites", "keys"], "has no file for site aa"),
        (["run"], "Missing argument"),
        (["run", "federation.toml", "--stes", "sites"], "No such option"),
        (["trian"], "No such command 'trian'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: list[str], message: str) -> None:
    one_site(tmp_path)
    done = call([*FEDHPC, *words], cwd=tmp_path, timeout=60)
    assert done.code == 64, done.text
    assert message in done.err
    assert "Traceback" not in done.err


# --- data, 65


def damage(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def put_nan(file: h5py.File) -> None:
    file["features"][3, 2] = np.nan


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", ["aa.h5"]),
        ("truncated", ["aa.h5"]),
        ("text", ["aa.h5"]),
        ("nan", ["aa.h5: NaN or infinite values in 'f2' (1 rows)"]),
        ("no rows", ["aa.h5 holds no rows"]),
        ("lengths", ["aa.h5", "lengths differ"]),
        ("narrow", ["a row holds 3 features, and the task expects 4"]),
    ],
)
def test_damaged_data(tmp_path: Path, fault: str, words: list[str]) -> None:
    federation = one_site(tmp_path)
    store = tmp_path / "data" / "aa.h5"
    match fault:
        case "missing":
            store.unlink()
        case "truncated":
            store.write_bytes(store.read_bytes()[:-100])
        case "text":
            store.write_text("a,b,c\n1,2,3\n")
        case "nan":
            damage(store, put_nan)
        case "no rows":
            write_rows(store, "aa", 0)
        case "lengths":
            damage(store, lambda file: file.attrs.modify("n_samples", 23))
        case "narrow":
            write_rows(store, "aa", 20, names=("x", "y", "z"))
    run_alone(federation).refused(65, *words)


@pytest.mark.mpi
def test_sites_with_other_features(tmp_path: Path) -> None:
    federation = write_federation(
        tmp_path,
        {"aa": Site(), "bb": Site(), "cc": Site(names=("f0", "f1", "f2", "age"))},
    )
    run_three(federation).refused(65, "site", "cc", "'f3' is only in", "'age' is only in")


def test_a_loss_that_diverges(tmp_path: Path) -> None:
    task = {"name": "mlp", "held_out": 0.0, "options": {"features": 4, "hidden": [8]}}
    train = {"optimizer": "sgd", "lr": 1e30, "batch_size": 0, "local_steps": 50}
    done = run_alone(one_site(tmp_path, task=task, train=train))
    done.refused(65, "site aa: the training loss is", "at step ", "(round 1)")


TASK = """
import torch
def model(options): return torch.nn.Linear(4, 1)
def dataset(path, options):
    from fedhpc.train.tasks import logistic
    return logistic.dataset(path, {"features": 4})
def loss(model, batch): return model(batch[0]).pow(2).mean()
def sums(model, batch): return {"n": torch.tensor(len(batch[0]))}
"""


def own_task(tmp_path: Path, source: str, sites: int = 1, agreed: str | None = None, **settings: Any) -> Path:
    """A federation whose task is `source`; the agreed one is `agreed`, if that differs."""
    sha256 = hashlib.sha256((source if agreed is None else agreed).encode()).hexdigest()
    task = {"name": "module", "held_out": 0.25, "source_sha256": sha256}
    federation = write_federation(tmp_path, sites, rounds=2, task=task, **settings)
    (tmp_path / "task.py").write_text(source)
    for site in (tmp_path / "sites").glob("*.toml"):
        edit(site, "[data]\n", "[data]\ntask_source = '../task.py'\n")
    return federation


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("import torch\n", "import torch\nimport nothing_of_this_name\n", 64, ["ModuleNotFoundError", "nothing_of_th"]),
        ("import torch\n", "def :\n", 64, ["SyntaxError"]),
        ("def sums", "def summs", 64, ["lacks sums()"]),
        ("torch.nn.Linear(4, 1)", "torch.nn.Linear(4, -1)", 64, ["site aa: model() of task"]),
        ("torch.nn.Linear(4, 1)", "3", 64, ["model() of task", "not a torch Module"]),
        ("def dataset(path, options):", "def dataset(path, options):\n    1 / 0", 65, ["site aa: dataset() of task"]),
        ("model(batch[0]).pow(2).mean()", "model(batch[1])", 65, ["site aa: loss() of task"]),
        (".mean()", "", 64, ["loss() of task", "one scalar tensor"]),
        ('{"n": torch', '{"m": torch', 64, ["sums() of task", "'n'"]),
    ],
)
def test_a_task_with_a_fault(tmp_path: Path, old: str, new: str, code: int, words: list[str]) -> None:
    assert old in TASK
    run_alone(own_task(tmp_path, TASK.replace(old, new))).refused(code, *words)


def test_a_task_that_was_not_agreed_on(tmp_path: Path) -> None:
    federation = own_task(tmp_path, TASK + "open('ran', 'w')\n", agreed=TASK)
    done = call([*FEDHPC, "run", federation, "--sites", tmp_path / "sites"], cwd=tmp_path, timeout=60)
    done.refused(77, "site aa", "task.py is not the task the federation agreed on")
    assert not (tmp_path / "ran").exists(), "the refused code was run"


NAN_AT_BB = TASK.replace(
    " return model(batch[0]).pow(2).mean()",
    # The loss is 1, and its gradient at one site is NaN.
    """
    import os
    nothing = (model.weight * 0).sum()
    return 1 + 0 * model.bias.sum() + (nothing.sqrt() if os.environ["OMPI_COMM_WORLD_RANK"] == "1" else nothing)""",
)


@pytest.mark.mpi
def test_an_update_with_nan(tmp_path: Path) -> None:
    # One step a round: after a second one the loss itself would be NaN.
    done = run_three(own_task(tmp_path, NAN_AT_BB, sites=3, train={"lr": 0.1, "local_steps": 1}))
    done.refused(65, "tensor 'model/weight' of site bb holds NaN", "at: site bb, rank 0")


@pytest.mark.mpi
def test_an_update_beyond_the_bound(tmp_path: Path) -> None:
    done = run_three(write_federation(tmp_path, 3, secure={"bound": 1e-6}))
    done.refused(65, "tensor 'model/network.weight' of site ", "beyond the bound 1e-06")


# --- files, 74


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, {"aa": Site(), "bb": Site()}, secure={"accept_two_sites": True})
    (tmp_path / "keys" / "aa.key").chmod(0o640)
    done = mpirun(2, [*RUN, federation, "--sites", tmp_path / "sites"], timeout=60, warm=True)
    done.refused(74, "aa.key can be read by others", "chmod 600")


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    federation = one_site(tmp_path, rounds=100_000)
    with start([*FEDHPC, "run", federation, "--sites", tmp_path / "sites"]) as first:
        until(lambda: (tmp_path / "run" / "aa" / "checkpoints" / "round-000003.h5").exists(), 60, "round 3")
        run_alone(federation).refused(74, f"another run is using {tmp_path / 'run' / 'aa'}", "federation next --again")
        run_alone(federation, "--out", tmp_path / "other").refused(74, "another run is using")
        assert first.process.poll() is None, "the first run goes on"
    lock = next((ledger_of(tmp_path, "aa").parent / "runs").glob("*.lock"))
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed run leaves no lock


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_a_full_disk_during_a_checkpoint(tmp_path: Path) -> None:
    """Round 1 has momenta to store and does not fit; the checkpoint of round 0 stays whole, and the run goes on."""
    settings: dict[str, Any] = {
        "task": {"name": "mlp", "held_out": 0.0, "options": {"features": 4, "hidden": [100, 100]}},
        "train": {"lr": 0.1, "momentum": 0.9, "batch_size": 5, "local_steps": 4},
    }
    hashes = []
    for name in ("roomy", "full"):
        federation = one_site(tmp_path / name, **settings)
        words = [*RUN, federation, "--sites", federation.parent / "sites", "--json"]
        if name == "full":
            done = call([sys.executable, "-c", LIMITED, str(70_000), *words], timeout=60)
            done.refused(74, "round-000001.h5")
            held = sorted(os.listdir(federation.parent / "run" / "aa" / "checkpoints"))
            assert held == ["round-000000.h5"], "no part of the new checkpoint stays"
        result = json.loads(call([sys.executable, *words], timeout=60).ok().out.splitlines()[-1])
        hashes.append(result["final_model_sha256"])
    assert hashes[0] == hashes[1]


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    federation = one_site(tmp_path)
    (tmp_path / "file").write_text("")
    run_alone(federation, "--out", tmp_path / "file" / "run").refused(74, "cannot make", "file/run")


# --- policy, 77


def test_too_few_sites_for_masks(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, 2, stores=False)
    run_alone(federation).refused(77, "2 sites with masking on", "accept_two_sites")


def test_another_federation_in_the_same_run_directory(tmp_path: Path) -> None:
    federation = one_site(tmp_path)
    run_alone(federation).ok()
    edit(federation, "seed = 0", "seed = 1")
    run_alone(federation).refused(77, "holds another federation", "they differ in [federation]", "--out")
    run_alone(federation, "--out", tmp_path / "other").ok()


def test_a_run_directory_of_0_1_0(tmp_path: Path) -> None:
    """Its federation.toml names no protocol; its checkpoints, if somebody exchanges the file, hold no blind."""
    federation = one_site(tmp_path)
    ways_out = ("fedhpc site ledger adopt", "fedhpc federation next --from-model")
    run_alone(federation).ok()
    kept = tmp_path / "run" / "federation.toml"
    kept.write_text("".join(line for line in federation.read_text().splitlines(True) if "protocol" not in line))
    run_alone(federation).refused(77, "run directory of fedhpc 0.1.0", *ways_out)
    kept.write_bytes(federation.read_bytes())
    for path in (tmp_path / "run" / "aa" / "checkpoints").iterdir():
        without_blind(path)
    run_alone(federation).refused(77, "fedhpc 0.1.0", *ways_out)


@pytest.mark.mpi
def test_a_key_that_is_not_in_the_roster(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, 3)
    (tmp_path / "keys" / "cc.key").write_text("17" * 32 + "\n")
    run_three(federation).refused(77, "the key file of site cc has the public key", "the roster says")


@pytest.mark.mpi
def test_an_altered_ledger(tmp_path: Path) -> None:
    """A line that was changed, one that was taken out, and one that was taken from another site's ledger."""
    federation = write_federation(tmp_path, 3, stores=False)
    # Sums alone make and read the ledger; `fedhpc run` does in the same place.
    words = [SUM_SCRIPT, federation, "sites", tmp_path / "sites", "plain"]
    mpirun(3, words, timeout=60).ok()
    ledger = ledger_of(tmp_path, "bb")
    whole = ledger.read_bytes()
    mpirun(3, words, timeout=60).ok()
    assert ledger.read_bytes().startswith(whole), "a ledger only grows"
    lines = ledger.read_bytes().splitlines(keepends=True)
    changed = [lines[0], lines[1].replace(b'"purpose":"', b'"purpose":"x'), *lines[2:]]
    assert changed != lines
    stolen = ledger_of(tmp_path, "aa").read_bytes().splitlines(keepends=True)[2:3]
    for number, fault in ((2, changed), (2, [lines[0], *lines[2:]]), (3, [*lines[:2], *stolen, *lines[3:]])):
        ledger.write_bytes(b"".join(fault))
        done = mpirun(3, words, timeout=60)
        done.refused(77, f"bb/ledger.jsonl, line {number}: ", "the ledger was altered")


@pytest.mark.mpi
def test_a_ledger_that_is_missing_or_older_than_a_checkpoint(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, 3, rounds=1)
    run_three(federation).ok()
    home, kept = ledger_of(tmp_path, "bb").parent, tmp_path / "kept"
    home.rename(kept)
    run_three(federation).refused(
        77, "the ledger of site bb ends at round 0, its checkpoint is from round", "[ledger] path"
    )
    shutil.rmtree(home)
    shutil.copytree(kept, home)
    ledger = home / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2]))  # from a backup: a whole chain
    run_three(federation).refused(77, "the ledger of site bb ends at round 1", "put the ledger's home back")
    (home / "ledger.key").write_bytes(b"another key")
    run_three(federation).refused(77, "ledger.key, is missing or damaged", "put the ledger's home back")
    ledger.unlink()
    run_three(federation).refused(77, "ledger.jsonl is missing, and its key is there")
    shutil.rmtree(home)
    kept.rename(home)
    run_three(federation).ok()


def test_a_run_directory_of_the_first_version(tmp_path: Path) -> None:
    federation = one_site(tmp_path)
    old = tmp_path / "run" / "aa" / "ledger.jsonl"
    old.parent.mkdir(parents=True)
    old.touch()
    done = run_alone(federation)
    done.refused(77, "is a run directory of fedhpc 0.1.0", f"fedhpc site ledger adopt {tmp_path / 'run'}")
    assert "fedhpc federation next --from-model" in done.err


@pytest.mark.mpi
def test_two_sites_with_one_home(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, 3, stores=False)
    for name in ("aa", "bb"):
        edit(tmp_path / "sites" / f"{name}.toml", f"path = '../ledger/{name}'", "path = '../ledger/all'")
    words = [SUM_SCRIPT, federation, "sites", tmp_path / "sites", "plain"]
    done = mpirun(3, words, timeout=60)
    assert done.code in (64, 74), done.text
    assert "the ledger's home" in done.err or "another run is using" in done.err
