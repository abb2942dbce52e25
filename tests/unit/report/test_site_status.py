"""`fedhpc status`: training rounds and the model's hash, of a run that goes on, was killed, or lies elsewhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhpc.app.life.history import Finished, keep_finished
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.state_tensors import model_sha256
from fedhpc.report.site_status import status_of_run, status_of_site, status_text
from fedhpc.train.checkpoint_files import Hdf5Checkpoints

TEXT = 'name = "heart"\n[federation]\nrounds = 9\n'
CONFIG = hashlib.sha256(TEXT.encode()).digest()


def tensors(round_: int) -> dict[str, np.ndarray]:
    return {"b": np.arange(6, dtype=np.float32) + round_, "a": np.array(round_ + 0.5)}


def known(round_: int) -> str:
    return model_sha256(tensors(round_))


def make(run: Path, site: str, *, records: list[int], checkpoints: list[int], **changes: Any) -> Path:
    folder = run / site
    folder.mkdir(parents=True)
    (run / "federation.toml").write_text(TEXT)
    store = Hdf5Checkpoints(folder / "checkpoints")
    for n in checkpoints:
        store.save(Checkpoint(n, 7 * n, CONFIG, tensors(n)))
    rows = [
        {"round": n, "rounds": 9, "metrics": {"loss": 1 / n, "auc": None}, "model_sha256": known(n)} | changes
        for n in records
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    make(tmp_path, "aa", records=[1, 2, 3], checkpoints=[2, 3])
    behind = make(tmp_path, "bb", records=[1, 2], checkpoints=[1, 2])
    (behind / "attempts").mkdir()
    for name in ("round-23.attempt", "round-21.attempt", ".round-21.attempt.tmp", "lock"):
        (behind / "attempts" / name).touch()
    (tmp_path / "report").mkdir()
    found = status_of_run(tmp_path)
    assert {k: v for k, v in found.items() if k != "sites"} == {
        "kind": "fedhpc-run",
        "run": str(tmp_path),
        "federation": "heart",
        "config": CONFIG.hex(),
        "round": 3,
        "rounds": 9,
        "model_sha256": known(3),
        "agree": True,
        "finished": False,
    }
    assert found["sites"] == [
        {
            "site": "aa",
            "round": 3,
            "rounds": 9,
            "model_sha256": known(3),
            "metrics": {"loss": 1 / 3, "auc": None},
            "train_loss": None,
            "finished": False,
            "pending_sums": [],
        },
        {
            "site": "bb",
            "round": 2,
            "rounds": 9,
            "model_sha256": known(2),
            "metrics": {"loss": 0.5, "auc": None},
            "train_loss": None,
            "finished": False,
            "pending_sums": [21, 23],
        },
    ]
    assert status_text(found).splitlines() == [
        "heart: round 3 of 9",
        f"model_sha256 {known(3)}",
        "aa  round 3  loss 0.3333  auc n/a",
        "bb  round 2  loss 0.5000  auc n/a  in a sum: 21, 23",
    ]


def test_without_held_out_rows_it_shows_the_training_loss(tmp_path: Path) -> None:
    nothing = {"loss": None, "auc": None, "auc_half_width": None}
    make(tmp_path, "aa", records=[1, 2], checkpoints=[2], metrics=nothing, train_loss=0.43)
    make(tmp_path, "bb", records=[1, 2], checkpoints=[2], metrics=nothing)
    found = status_of_run(tmp_path)
    assert [(s["metrics"], s["train_loss"]) for s in found["sites"]] == [(nothing, 0.43), (nothing, None)]
    assert status_text(found).splitlines()[2:] == ["aa  round 2  training loss 0.4300", "bb  round 2  no held-out rows"]


def test_a_checkpoint_without_its_record_counts(tmp_path: Path) -> None:
    """A kill between the two, or a site that caught up."""
    make(tmp_path, "aa", records=[1], checkpoints=[1, 5])
    found = status_of_run(tmp_path)
    assert (found["round"], found["model_sha256"]) == (5, known(5))


def test_before_the_first_round(tmp_path: Path) -> None:
    make(tmp_path, "aa", records=[], checkpoints=[0])
    found = status_of_run(tmp_path)
    assert (found["round"], found["rounds"], found["model_sha256"]) == (0, 9, known(0))
    (tmp_path / "aa" / "checkpoints" / "round-000000.h5").unlink()
    found = status_of_run(tmp_path)
    assert (found["round"], found["model_sha256"], found["agree"]) == (0, None, True)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    folder = make(tmp_path, "aa", records=[1], checkpoints=[1, 2])
    (folder / "checkpoints" / "round-000002.h5").write_bytes(b"damaged")
    assert status_of_run(tmp_path)["round"] == 1
    (folder / "metrics.jsonl").unlink()
    (folder / "checkpoints" / "round-000001.h5").write_bytes(b"damaged")
    with pytest.raises(DataError):
        status_of_run(tmp_path)


def test_sites_that_disagree(tmp_path: Path) -> None:
    make(tmp_path, "aa", records=[1], checkpoints=[1])
    make(tmp_path, "bb", records=[1], checkpoints=[1], model_sha256="ab" * 32)
    found = status_of_run(tmp_path)
    assert (found["model_sha256"], found["agree"]) == (None, False)
    text = status_text(found)
    assert "the sites disagree on the model after round 1:" in text
    assert known(1) in text
    assert "ab" * 32 in text


def test_a_run_that_has_finished(tmp_path: Path) -> None:
    folder = make(tmp_path, "aa", records=[9], checkpoints=[9])
    keep_finished(folder, Finished("00" * 32, known(9), 9, {}))  # of another federation.toml
    assert not status_of_run(tmp_path)["finished"]
    keep_finished(folder, Finished(CONFIG.hex(), known(9), 9, {}))
    found = status_of_run(tmp_path)
    assert found["finished"]
    assert status_text(found).splitlines()[0] == "heart: round 9 of 9, finished"


def test_what_is_written_by_others_is_not_trusted(tmp_path: Path) -> None:
    folder = make(tmp_path, "aa", records=[1], checkpoints=[1], rounds="many", metrics=[1], model_sha256=7)
    (tmp_path / "federation.toml").write_text("name = \x1b[2J")
    found = status_of_run(tmp_path)
    assert (found["round"], found["rounds"], found["model_sha256"]) == (1, None, known(1))
    assert "\x1b" not in status_text(found | {"federation": "\x1b[2J"})
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="is not the record of a round"):
        status_of_run(tmp_path)
    with pytest.raises(ConfigError, match="is not a run directory"):
        status_of_run(tmp_path / "none")


def test_a_site_is_found_from_its_file(tmp_path: Path) -> None:
    make(tmp_path / "leiden" / "run", "aa", records=[1], checkpoints=[1])
    make(tmp_path / "other", "aa", records=[1, 2], checkpoints=[2])
    file = tmp_path / "leiden" / "site.toml"
    text = '[site]\nname = "aa"\n'
    file.write_text(text)
    assert status_of_site(file)["round"] == status_of_site(file.parent)["round"] == 1
    assert status_of_site(file, tmp_path / "other")["round"] == 2
    with pytest.raises(ConfigError, match="site aa has no run yet"):
        status_of_site(file, tmp_path)
    file.write_text(text + 'directory = "../other/aa"\n')
    found = status_of_site(file)
    assert (found["round"], [s["site"] for s in found["sites"]]) == (2, ["aa"])
