"""The exported model is the newest valid checkpoint, says where it comes from, and is the same file everywhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import load_file

import fedhpc.report.export as export_module
from fedhpc.cli.report import export
from fedhpc.errors import ConfigError, DataError, StorageError
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.state_tensors import model_sha256
from fedhpc.report.export import export_model

CONFIG = b'name = "Herz \xc3\xa9 \\"x\\""\n'
SHA = hashlib.sha256(CONFIG).digest()


def tensors(round_: int) -> dict:
    return {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T + round_,
        "scale": np.array(round_ + 0.5, dtype=np.float64),
        "empty": np.zeros((0, 3), np.float32),
    }


class Store:
    """Checkpoints as small JSON files, so that these tests need neither HDF5 nor torch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def rounds(self) -> list[int]:
        return sorted(int(p.stem[6:]) for p in self.directory.glob("round-*.h5") if p.read_bytes() != b"invalid")

    def load(self, round_: int) -> Checkpoint:
        text = (self.directory / f"round-{round_:06}.h5").read_text()
        if text == "damaged":
            raise DataError(f"round {round_} is damaged")
        return Checkpoint(round_, round_, bytes.fromhex(text), tensors(round_))


@pytest.fixture(autouse=True)
def _store(monkeypatch):
    monkeypatch.setattr(export_module, "_store", Store)


def make(path: Path, sites: dict[str, list[int]], models: dict[str, str] | None = None) -> Path:
    """`models`: what each site's records say of every model; "" for the truth."""
    path.mkdir()
    (path / "federation.toml").write_bytes(CONFIG)
    for site, rounds in sites.items():
        folder = path / site / "checkpoints"
        folder.mkdir(parents=True)
        for n in rounds:
            (folder / f"round-{n:06}.h5").write_text(SHA.hex())
        if models:
            rows = [
                {"round": n, "rounds": 9, "sites": ["b", "a"], "model_sha256": models[site] or model_sha256(tensors(n))}
                for n in rounds
            ]
            (path / site / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "numpy") as opened:
        return opened.metadata()


def test_the_newest_checkpoint_of_all_sites_is_written(tmp_path):
    run = make(tmp_path / "run", {"a": [1, 2], "b": [2, 3]}, {"a": "", "b": ""})
    done = export_model(run, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert sorted(found) == sorted(tensors(3))
    for name, tensor in tensors(3).items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()
    assert (done["site"], done["round"], done["tensors"], done["parameters"]) == ("b", 3, 3, 7)
    assert done["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    try:
        ours = version("fedhpc")
    except PackageNotFoundError:
        ours = "unknown"
    assert metadata(tmp_path / "model.safetensors") == done["metadata"]
    assert done["metadata"] == {
        "federation": 'Herz é "x"',
        "config_sha256": SHA.hex(),
        "round": "3",
        "model_sha256": model_sha256(tensors(3)),
        "sites": '["a", "b"]',
        "fedhpc_version": ours,
        "layout": '["layer.weight", "scale", "empty"]',
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "run"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_file_is_the_same_in_every_process(tmp_path):
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_export as t
t.export_module._store = t.Store
t.export_model(Path({str(tmp_path / "run")!r}), Path(sys.argv[1]))
"""
    make(tmp_path / "run", {"a": [1]}, {"a": ""})
    digests = set()
    for i in range(3):  # the hash tables of safetensors are seeded once per process
        subprocess.run([sys.executable, "-c", program, str(tmp_path / f"{i}.st")], check=True, timeout=120)
        digests.add(hashlib.sha256((tmp_path / f"{i}.st").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_damaged_newest_checkpoint_gives_way_to_another(tmp_path):
    run = make(tmp_path / "run", {"a": [1, 3], "b": [2]})
    (run / "a" / "checkpoints" / "round-000003.h5").write_text("damaged")
    done = export_model(run, tmp_path / "m")
    assert (done["round"], done["site"]) == (2, "b")
    assert done["metadata"]["model_sha256"] == done["model_sha256"] == model_sha256(tensors(2))
    assert "sites" not in done["metadata"]


def test_an_existing_file_is_kept_without_force(tmp_path):
    run = make(tmp_path / "run", {"a": [1]})
    (tmp_path / "m").write_text("keep")
    with pytest.raises(ConfigError, match="m exists") as raised:
        export_model(run, tmp_path / "m")
    assert "--force" in raised.value.hint
    assert (tmp_path / "m").read_text() == "keep"
    export_model(run, tmp_path / "m", force=True)
    assert sorted(load_file(tmp_path / "m")) == sorted(tensors(1))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    run = make(tmp_path / "run", {"a": [1]})
    (tmp_path / "m").write_text("keep")

    def full_disk(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module.os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        export_model(run, tmp_path / "m", force=True)
    assert (tmp_path / "m").read_text() == "keep"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "run"]


def test_a_missing_directory_is_a_storage_error(tmp_path):
    run = make(tmp_path / "run", {"a": [1]})
    with pytest.raises(StorageError, match="cannot write"):
        export_model(run, tmp_path / "no" / "m")


def test_sites_that_disagree_are_refused(tmp_path):
    run = make(tmp_path / "run", {"a": [1], "b": [1]}, {"a": "", "b": "bb"})
    with pytest.raises(DataError, match="the sites disagree on the model after round 1") as raised:
        export_model(run, tmp_path / "m")
    assert f"a has {model_sha256(tensors(1))[:16]}; b has bb; the checkpoint of a has" in raised.value.hint
    assert not (tmp_path / "m").exists()


def test_a_checkpoint_that_is_not_the_model_that_was_recorded_is_refused(tmp_path):
    run = make(tmp_path / "run", {"a": [1]}, {"a": "aa"})
    with pytest.raises(DataError, match="the sites disagree on the model after round 1"):
        export_model(run, tmp_path / "m")


def test_a_checkpoint_of_another_federation_is_refused(tmp_path):
    run = make(tmp_path / "run", {"a": [1]})
    (run / "federation.toml").write_bytes(CONFIG + b"\n")
    with pytest.raises(DataError, match="belongs to another federation"):
        export_model(run, tmp_path / "m")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run directory"):
        export_model(tmp_path, tmp_path / "m")


def test_no_checkpoint_says_where_it_looked(tmp_path):
    run = make(tmp_path / "run", {"a": []})
    with pytest.raises(ConfigError, match="has no checkpoint") as raised:
        export_model(run, tmp_path / "m")
    assert raised.value.hint == f"looked in {run}/*/checkpoints: 1 site folders, 0 checkpoints"


@pytest.mark.parametrize("text", ["damaged", "invalid"])
def test_only_damaged_checkpoints_are_bad_data(tmp_path, text):
    run = make(tmp_path / "run", {"a": [1]})
    (run / "a" / "checkpoints" / "round-000001.h5").write_text(text)
    with pytest.raises(DataError, match=r"no checkpoint in .* is valid"):
        export_model(run, tmp_path / "m")


def test_the_command_prints_what_it_wrote(tmp_path):
    run = make(tmp_path / "run", {"a": [4]})
    arguments = [str(run), str(tmp_path / "m")]
    result = CliRunner().invoke(export, arguments, catch_exceptions=False)
    assert result.output.startswith(f"{tmp_path}/m: round 4, 3 tensors, 7 parameters, ")
    with pytest.raises(ConfigError, match="exists"):
        CliRunner().invoke(export, arguments, catch_exceptions=False)
    assert CliRunner().invoke(export, [*arguments, "--force"], catch_exceptions=False).exit_code == 0


def test_a_real_checkpoint_is_exported(tmp_path, monkeypatch):
    checkpoint = pytest.importorskip("fedhpc.train.checkpoint_files")
    monkeypatch.setattr(export_module, "_store", checkpoint.Hdf5Checkpoints)
    run = make(tmp_path / "run", {"a": []})
    held = {name: np.require(t, requirements="C") for name, t in tensors(5).items()}
    checkpoint.Hdf5Checkpoints(run / "a" / "checkpoints").save(Checkpoint(5, 6, SHA, held, ledger=bytes(32)))
    assert export_model(run, tmp_path / "m")["round"] == 5
    found = load_file(tmp_path / "m")
    assert {n: t.tobytes() for n, t in found.items()} == {n: t.tobytes() for n, t in held.items()}


def keep_best(run: Path, site: str, round_: int) -> None:
    best = run / site / "checkpoints" / "best"
    best.mkdir()
    (best / f"round-{round_:06}.h5").write_text(SHA.hex())


def test_the_best_round_and_a_round_by_its_number(tmp_path: Path) -> None:
    run = make(tmp_path / "run", {"a": [5, 6], "b": [5, 6]})
    keep_best(run, "a", 3)
    keep_best(run, "b", 3)
    for given, round_ in (({}, 6), ({"best": True}, 3), ({"round_": 5}, 5), ({"round_": 3}, 3)):
        done = export_model(run, tmp_path / "m.safetensors", force=True, **given)
        assert (done["round"], done["site"]) == (round_, "a")
        assert load_file(tmp_path / "m.safetensors")["scale"] == round_ + 0.5
    with pytest.raises(ConfigError, match="no checkpoint of round 4") as refused:
        export_model(run, tmp_path / "m.safetensors", force=True, round_=4)
    assert "there is one of 3, 5, 6" in refused.value.lines()


def test_a_best_round_that_was_never_measured(tmp_path: Path) -> None:
    run = make(tmp_path / "run", {"a": [5, 6]})
    with pytest.raises(ConfigError, match="has no best round") as refused:
        export_model(run, tmp_path / "m.safetensors", best=True)
    assert "keep = " in refused.value.lines()
    assert not (tmp_path / "m.safetensors").exists()
    done = CliRunner().invoke(export, [str(run), str(tmp_path / "m"), "--best", "--round", "5"])
    assert isinstance(done.exception, ConfigError)


def test_a_model_card(tmp_path: Path) -> None:
    run = make(tmp_path / "run", {"a": [5, 6], "b": [5, 6]}, {"a": "", "b": ""})
    text = (run / "federation.toml").read_text() + (
        '[task]\nname = "mlp"\nheld_out = 0.25\nfeatures_sha256 = "abc"\n[train]\nlr = 0.1\nkeep = "best:auc"\n'
    )
    (run / "federation.toml").write_text(text)
    for site in "ab":
        for round_ in (5, 6):
            (run / site / "checkpoints" / f"round-{round_:06}.h5").write_text(hashlib.sha256(text.encode()).hexdigest())
        metrics = {"auc": 0.75, "auc_half_width": 0.002, "odd|name": None}
        line = {"round": 7, "rounds": 9, "sites": ["a", "b"], "metrics": metrics}
        with (run / site / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    card = tmp_path / "card.md"
    words = [str(run), str(tmp_path / "m.safetensors"), "--card", str(card)]
    done = CliRunner().invoke(export, words, catch_exceptions=False)
    assert f"model card {card}" in done.output
    lines = card.read_text().splitlines()
    assert lines[0] == '# Herz é "x": a model of 2 sites (a, b)'
    for line in (
        "| task | mlp |",
        f"| SHA-256 of the model | `{model_sha256(tensors(6))}` |",
        f"| SHA-256 of federation.toml | `{hashlib.sha256(text.encode()).hexdigest()}` |",
        "| `layer.weight` | float32 | 3 × 2 |",
        "| `scale` | float64 | a number |",
        "| auc | 0.7500 | 0.0020 |",
        "| odd\\|name | n/a | – |",
        '| [train] keep | `"best:auc"` |',
    ):
        assert line in lines, line
    assert "25 % of each site's rows were kept from training." in card.read_text()
    assert card.read_text().count("*To be filled in by people.*") == 3
    refused = CliRunner().invoke(export, [*words[:1], str(tmp_path / "n.safetensors"), *words[2:]])
    assert isinstance(refused.exception, ConfigError)
    export_model(run, tmp_path / "m.safetensors", force=True, card=card, round_=5)
    assert "was not measured" in card.read_text()
