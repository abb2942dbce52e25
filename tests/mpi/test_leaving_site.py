"""Audit 2 with whole runs: a site leaves, and nobody gets its W, its features or its update from two runs unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import FEDHPC, LOGISTIC, Completed, Site, call, mpirun, write_federation

pytestmark = pytest.mark.mpi

FOUR = ("aa", "bb", "cc", "dd")
THREE = FOUR[:3]
FULL_BATCH = {"optimizer": "sgd", "lr": 0.5, "batch_size": 0, "local_steps": 2}  # as `fedhpc federation new` ships it
BATCHES = {"optimizer": "sgd", "lr": 0.2, "batch_size": 8, "local_steps": 3}
CLASSES = ["train", "weights", "standardise", "measured"]


def federation(folder: Path, names: tuple[str, ...], *, standardise: bool = True, **more: Any) -> Path:
    """federation.toml of these sites in `folder`, whose ledgers and data stay when it is written anew."""
    shutil.rmtree(folder / "sites", ignore_errors=True)
    sites = {name: Site(rows=30 + 7 * i, samples=30 + 7 * i) for i, name in enumerate(names)}
    task = LOGISTIC | {"standardise": standardise}
    return write_federation(folder, sites, **({"rounds": 1, "task": task, "train": FULL_BATCH} | more))


def run(path: Path, sites: int, out: str) -> Completed:
    words = ["-m", "fedhpc", "run", path, "--sites", path.parent / "sites", "--out", path.parent / out, "--json"]
    return mpirun(sites, words, timeout=120, warm=True)


def test_a_site_that_left(tmp_path: Path) -> None:
    run(federation(tmp_path, FOUR), 4, "first").ok()
    # The same file without it: the first statistic is asked about before anything leaves.
    done = run(federation(tmp_path, THREE), 3, "second")
    done.refused(77, "'standardise'", "those of dd", "fedhpc federation next --accept-difference 'standardise'")
    # With statistics accepted, training is asked about by its own name; W and features have been accepted then.
    some = {"accept_difference": ["weights", "standardise", "measured"]}
    run(federation(tmp_path, THREE, secure=some), 3, "third").refused(77, "'train'", "those of dd")
    run(federation(tmp_path, THREE, secure={"accept_difference": CLASSES}), 3, "last").ok()
    words = [*FEDHPC, "site", "ledger", "show", "--json", "--site", tmp_path / "sites" / "aa.toml"]
    shown = json.loads(call(words, timeout=60).ok().out)
    assert set(CLASSES) <= shown["classes"].keys()
    assert {r["category"] for r in shown["refused"]} == {"standardise", "train"}
    assert all("those of dd" in r["reason"] for r in shown["refused"])


@pytest.mark.parametrize(("weights", "lanes"), [("samples", 64), ("declared", 32)])
def test_the_same_update_without_the_site(tmp_path: Path, weights: str, lanes: int) -> None:
    """The same seed, a zero model and all rows: the first update is the old one, whatever W and lanes.

    Another seed changes the order in which rows are added, so the last bits: a near repeat, which is asked about.
    """
    more: dict[str, Any] = {"standardise": False, "strategy": {"weights": weights}}
    run(federation(tmp_path, FOUR, secure={"lane_bits": lanes}, **more), 4, "first").ok()
    for width in (32, 64):
        secure = {"lane_bits": width, "accept_difference": CLASSES}
        path = federation(tmp_path, THREE, rounds=2, secure=secure, **more)
        done = run(path, 3, f"lanes {width}")
        done.refused(77, "holds the same numbers as an earlier sum", "those of dd", "fedhpc federation next")
    secure = {"lane_bits": lanes, "accept_difference": CLASSES}
    run(federation(tmp_path, THREE, seed=9, secure=secure, **(more | {"train": BATCHES})), 3, "batches").ok()


def test_daily_work_over_one_roster(tmp_path: Path) -> None:
    """A sweep with one ledger: other rates, other seeds, the same again in another directory."""
    hashes = []
    for number, (seed, lr) in enumerate([(0, 0.5), (0, 0.1), (3, 0.5), (0, 0.5)]):
        path = federation(tmp_path, THREE, seed=seed, train=FULL_BATCH | {"lr": lr})
        done = run(path, 3, f"run {number}").ok()
        hashes.append(json.loads(done.out.splitlines()[-1])["final_model_sha256"])
    assert hashes[0] == hashes[3]
    assert hashes[0] != hashes[1]
