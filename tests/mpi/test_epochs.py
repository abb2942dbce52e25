"""Epochs of whole runs in one MPI job: a site leaves, the others go on from the model that they had, or begin anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import FEDHPC, Completed, Site, call, edit, mpirun, write_federation, write_rows
from safetensors.numpy import load_file, save_file

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.run_folder import checkpoints
from fedhpc.data.store import SiteStore
from fedhpc.enrolment.next_epoch import Beginning
from fedhpc.enrolment.rehearsal import Rehearsal
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.state_tensors import TOTAL_WEIGHT
from fedhpc.secure.salt import NO_BLIND
from fedhpc.train.checkpoint_files import Hdf5Checkpoints
from fedhpc.train.held_out import split_rows

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(600)]

ROUNDS = 2
ALL = ("train", "measured", "weights")


def run(folder: Path, ranks: int, *more: str | Path, timeout: float = 120) -> Completed:
    words = ["-m", "fedhpc", "run", folder / "federation.toml", "--sites", folder / "sites", *more]
    return mpirun(ranks, words, timeout=timeout, warm=True)


def following(folder: Path, beginning: Beginning = Beginning()) -> None:  # noqa: B008 - frozen
    granted = Rehearsal(folder).next_epoch(beginning)
    assert not granted.problem


def checkpoint(run: Path, site: str) -> Checkpoint:
    """The newest."""
    store = Hdf5Checkpoints(run / site / "checkpoints")
    return store.load(max(store.rounds()))


def records(run: Path, site: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / site / "metrics.jsonl").read_text().splitlines()]


def measured_by_hand(folder: Path, sites: tuple[str, ...], model: Checkpoint) -> tuple[float, float]:
    """(loss, accuracy) of a logistic model over the held-out rows of some sites, without fedhpc's trainer."""
    t = model.tensors
    loss, right, n = 0.0, 0, 0
    for site in sites:
        store: Any = SiteStore.open(folder / "data" / f"{site}.h5")
        every = np.arange(int(store.n))
        labels = np.asarray(store.labels(every)).astype(np.int64)
        _, held_out = split_rows(labels.size, 0.2, 0, site, labels)
        x = (store.features(held_out) - t["feature_mean"]) / t["feature_scale"]
        logit = (x @ t["network.weight"].T + t["network.bias"])[:, 0].astype(np.float64)
        y = labels[held_out]
        loss += float(np.logaddexp(0, np.where(y == 1, -logit, logit)).sum())
        right, n = right + int(((logit > 0) == (y == 1)).sum()), n + y.size
    return loss / n, right / n


@pytest.mark.parametrize(
    ("weights", "lane_bits"), [("declared", 32), ("summed", 32), ("declared", 64), ("summed", 64), ("uniform", 32)]
)
def test_a_hospital_leaves_and_the_others_go_on(tmp_path: Path, weights: str, lane_bits: int) -> None:
    """The shipped heart example: full batches, a model of zeros. Begun again from scratch over three hospitals, the two
    first sums would differ by the numbers of the one that left."""
    folder = tmp_path / "heart"
    call([*FEDHPC, "new", folder, "--ranks", "1", "--rounds", str(ROUNDS)], timeout=60).ok()
    names = ("cleveland", "hungary", "switzerland", "va")
    edit(folder / "federation.toml", 'mode = "pairwise"', f'lane_bits = {lane_bits}\nmode = "pairwise"')
    if weights == "declared":
        for name, samples in zip(names, (242, 235, 98, 160), strict=True):
            edit(folder / "federation.toml", f'name = "{name}"\n', f'name = "{name}"\nsamples = {samples}\n')
    run(folder, 4).ok()
    old = checkpoint(folder / "run", "hungary")
    accept = [word for name in (ALL if weights == "summed" else ALL[:2]) for word in ("--accept-difference", name)]
    told = call([*FEDHPC, "federation", "revoke", folder, "va", *accept]).ok()
    agreement = Agreement.open(folder / "federation.toml")
    assert agreement.strategy.weights == ("samples" if weights == "summed" else weights)
    assert ("weights =" in told.out) == (weights != "summed")
    run(folder, 3).ok()
    rest = names[:3]
    for site in rest:
        new = checkpoint(folder / "run-1", site)
        assert new.round_ == ROUNDS
        assert new.config == agreement.hash
    first, *_, last = records(folder / "run-1", "cleveland")
    loss, accuracy = measured_by_hand(folder, rest, old)
    assert first["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert first["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert last["metrics"]["loss"] < first["metrics"]["loss"]
    new = checkpoint(folder / "run-1", "cleveland")
    for name in ("feature_mean", "feature_scale"):  # not summed again: the difference would be the site that left
        assert new.tensors[name].tobytes() == old.tensors[name].tobytes()
    assert (TOTAL_WEIGHT in new.outer) == (weights == "summed")
    if weights == "summed":
        assert new.outer[TOTAL_WEIGHT][0] < old.outer[TOTAL_WEIGHT][0]
    blinds = {checkpoint(folder / "run-1", site).blind for site in rest}
    assert len(blinds) == 1
    assert blinds != {NO_BLIND}
    assert not (folder / "sites" / "va.toml").exists()


def federation(folder: Path, rounds: int = ROUNDS) -> Path:
    """Three sites, one of them with two ranks, of which two rounds are done."""
    task = {"name": "mlp", "held_out": 0.25, "standardise": True, "options": {"features": 4, "hidden": [5]}}
    sites = {"aa": Site(rows=24), "bb": Site(rows=31, ranks=2), "cc": Site(rows=26)}
    write_federation(folder, sites, rounds=rounds, task=task, strategy={"name": "fedadam"})
    run(folder, 4).ok()
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federation(tmp_path_factory.mktemp("done") / "f")


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """Of a federation that is done; its ledger does not remember the run that it is a copy of."""
    folder = Path(shutil.copytree(done, tmp_path / "f"))
    for runs in (folder / "ledger").glob("*/runs"):
        shutil.rmtree(runs)
    return folder


def test_the_same_sites_take_their_w_over_and_measure_the_old_model_first(copy: Path) -> None:
    before = records(copy / "run", "aa")[-1]
    following(copy)
    run(copy, 4).ok()
    first = records(copy / "run-1", "aa")[0]
    assert first["metrics"] == before["metrics"]
    old, new = checkpoint(copy / "run", "cc"), checkpoint(copy / "run-1", "cc")
    assert new.outer[TOTAL_WEIGHT][0] == old.outer[TOTAL_WEIGHT][0]
    # and a third epoch goes on from the second
    following(copy, Beginning(rounds=1))
    run(copy, 4).ok()
    assert records(copy / "run-2", "bb")[0]["metrics"] == records(copy / "run-1", "bb")[-1]["metrics"]


def test_again_is_a_fresh_run_with_another_seed(copy: Path) -> None:
    following(copy, Beginning("again"))
    told = run(copy, 4).ok()
    assert "goes on" not in told.out
    assert records(copy / "run-1", "aa")[0]["metrics"] != records(copy / "run", "aa")[0]["metrics"]
    assert checkpoint(copy / "run-1", "aa").round_ == ROUNDS


@pytest.mark.parametrize("older", ["aa", "bb", "cc"])
def test_a_site_with_an_older_copy_is_told(copy: Path, older: str) -> None:
    """aa puts the model in; then it is the others that have another one."""
    newest = checkpoints(copy / "run" / older / "checkpoints")[ROUNDS]
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    following(copy)
    done = run(copy, 4)
    done.refused(77, "goes on from another model than site", "run the old epoch to its end at this site first")
    assert not list((copy / "run-1").glob("*/checkpoints/round-*"))


def test_a_site_that_lost_its_copy_is_told_and_may_name_another_place(copy: Path, tmp_path: Path) -> None:
    following(copy)
    (copy / "run").rename(tmp_path / "elsewhere")
    run(copy, 4).refused(65, "has no model of an epoch before this one", "--previous RUN")
    run(copy, 4, "--previous", copy / "sites").refused(64, "holds no model of an epoch before this one")
    run(copy, 4, "--previous", tmp_path / "elsewhere").ok()
    again = federation(tmp_path / "other", rounds=1)
    following(again)
    run(again, 4, "--previous", tmp_path / "elsewhere").refused(64, "holds no model of an epoch before this one")


def test_another_model_cannot_be_gone_on_from(copy: Path) -> None:
    following(copy)
    edit(copy / "federation.toml", "hidden = [5]", "hidden = [6]")
    run(copy, 4).refused(65, "the model of the epoch before is not the one that this task builds", "network.0.weight")


# --- from a file


def test_a_model_from_a_file_is_where_the_epoch_begins(copy: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    call([*FEDHPC, "export", copy / "run", model]).ok()
    call([*FEDHPC, "federation", "next", copy, "--from-model", model, "--rounds", "1"]).ok()
    agreement = Agreement.open(copy / "federation.toml")
    assert agreement.start.model == records(copy / "run", "aa")[-1]["model_sha256"]
    run(copy, 4).refused(64, "every site is given as a file", "--from-model FILE")
    run(copy, 4, "--from-model", tmp_path / "nowhere").refused(64, "no such file")
    other = {name: tensor + 1 for name, tensor in load_file(model).items()}
    save_file(other, tmp_path / "other.safetensors")
    run(copy, 4, "--from-model", tmp_path / "other.safetensors").refused(
        77, "is not the model that the federation begins"
    )
    save_file({name: t.astype(np.float64) for name, t in other.items()}, tmp_path / "wide.safetensors")
    run(copy, 4, "--from-model", tmp_path / "wide.safetensors").refused(65, "float64", "task it is float32")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04\x95garbage" * 20)  # what a pickle begins with
    run(copy, 4, "--from-model", tmp_path / "bad.safetensors").refused(65, "is not a safetensors file")
    run(copy, 4, "--from-model", model).ok()
    assert records(copy / "run-1", "cc")[0]["metrics"] == records(copy / "run", "cc")[-1]["metrics"]
    run(copy, 4).ok()  # it is done, and goes on from its checkpoint without the file


def test_the_file_may_stand_in_the_site_files(copy: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    call([*FEDHPC, "export", copy / "run", model]).ok()
    call([*FEDHPC, "federation", "next", copy, "--from-model", model, "--rounds", "1"]).ok()
    for path in (copy / "sites").glob("*.toml"):
        edit(path, "[data]\n", f'[data]\nstart_model = "{model}"\n')
    run(copy, 4).ok()
    following(copy)
    run(copy, 4, "--from-model", model).refused(64, "has no [start] model")


def test_a_small_model_is_not_named_by_its_hash(tmp_path: Path) -> None:
    """Whoever tries all models of a few numbers finds the one with this hash: federation.toml is public."""
    task = {"name": "logistic", "held_out": 0.25, "options": {"features": 4}}  # 5 numbers, and 8 of standardising
    write_federation(tmp_path / "f", 3, task=task, stores=False)
    for name in ("aa", "bb", "cc"):
        write_rows(tmp_path / "f" / "data" / f"{name}.h5", name, 20)
    run(tmp_path / "f", 3).ok()
    model = tmp_path / "model.safetensors"
    call([*FEDHPC, "export", tmp_path / "f" / "run", model]).ok()
    words = [*FEDHPC, "federation", "next", tmp_path / "f", "--from-model", model]
    before = (tmp_path / "f" / "federation.toml").read_bytes()
    call(words).refused(64, "13 numbers", "gives it away", "`fedhpc federation next` without a file")
    assert (tmp_path / "f" / "federation.toml").read_bytes() == before
    tensors = load_file(model)
    save_file(tensors, tmp_path / "plain.safetensors")  # nothing in its header: the task says the order
    call([*words[:-1], tmp_path / "plain.safetensors", "--public"]).ok()
    run(tmp_path / "f", 3, "--from-model", model).ok()
