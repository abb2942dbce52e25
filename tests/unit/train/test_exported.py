"""An exported model in use: the same scores as five lines of PyTorch, and refusals that name the tensor."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from harness import ROOT
from safetensors.numpy import save_file
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from fedhpc.cli.predict import evaluate, predict
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import write_store
from fedhpc.errors import ConfigError, DataError, FedhpcError
from fedhpc.report.row_scores import write_scores
from fedhpc.train.exported import open_scorer, read_exported
from fedhpc.train.intervals import hanley_mcneil, wilson
from fedhpc.train.state import floating, read_shared
from fedhpc.train.tasks import logistic, mlp

ROWS = 5000
LOGISTIC = {"name": "logistic", "options": {"features": 3}}
MLP = {"name": "mlp", "options": {"features": 3, "hidden": [5], "classes": 4}}


def store(path: Path, classes: int = 2) -> tuple[Path, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((ROWS, 3)).astype(np.float32)
    y = (x[:, 0] + rng.standard_normal(ROWS) > 0).astype(np.int64) if classes == 2 else rng.integers(classes, size=ROWS)
    ids = np.frombuffer(rng.bytes(32 * ROWS), np.uint8).reshape(ROWS, 32)
    features = FeatureSet(tuple(Feature(n) for n in "abc"), Label("ill"), (3,))
    write_store(path, site="s", feature_set=features, features=x, labels=y, row_ids=ids, created="2026-01-01")
    return path, x, y


def model_file(path: Path, task: dict[str, object], model: torch.nn.Module, *, said: bool = True) -> Path:
    torch.manual_seed(7)
    with torch.no_grad():
        for tensor in floating(model).values():
            tensor.copy_(torch.randn_like(tensor).abs() + 0.1)
    save_file(read_shared(floating(model)), path, metadata={"task": json.dumps(task)} if said else {"round": "3"})
    return path


def scores_of(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open() as file:
        head, *rows = csv.reader(file)
    assert head[0] == "row_id"
    return [row[0] for row in rows], np.array([[float(v) for v in row[1:]] for row in rows])


def test_logistic_scores_and_metrics_are_those_of_torch_and_scikit_learn(tmp_path: Path) -> None:
    data, x, y = store(tmp_path / "data.h5")
    model = logistic.model(LOGISTIC["options"])  # type: ignore[arg-type]
    file = model_file(tmp_path / "m.safetensors", LOGISTIC, model)
    scorer = open_scorer(read_exported(file), data)
    assert write_scores(scorer, tmp_path / "scores.csv") == ROWS
    ids, scores = scores_of(tmp_path / "scores.csv")
    with torch.no_grad():
        expected = torch.sigmoid(model(torch.from_numpy(x)))[:, 0].numpy()
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)
    assert len(set(ids)) == ROWS
    assert (tmp_path / "scores.csv").stat().st_mode & 0o777 == 0o600

    done = CliRunner().invoke(evaluate, [str(file), "--data", str(data), "--json"], catch_exceptions=False)
    found = json.loads(done.output)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(y, expected), abs=1e-3)
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(y, expected > 0.5))
    assert found["loss"]["value"] == pytest.approx(log_loss(y, expected), rel=1e-5)
    for name in ("auc", "accuracy"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["loss"]["low"] is None
    assert all(metric["n"] == ROWS for metric in found.values())
    assert not [name for name in found if name.endswith("half_width")]


def test_several_classes_have_a_column_each(tmp_path: Path) -> None:
    data, x, y = store(tmp_path / "data.h5", 4)
    model = mlp.model(MLP["options"])  # type: ignore[arg-type]
    file = model_file(tmp_path / "m.safetensors", MLP, model)
    out = tmp_path / "scores.csv"
    words = [str(file), "--data", str(data), "--out", str(out)]
    assert "scores of 5000 rows" in CliRunner().invoke(predict, words, catch_exceptions=False).output
    assert out.read_text().splitlines()[0] == "row_id,score_0,score_1,score_2,score_3"
    _, scores = scores_of(out)
    with torch.no_grad():
        expected = torch.softmax(model(torch.from_numpy(x)).double(), 1).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-9)
    sums = open_scorer(read_exported(file), data).sums()
    assert int(sums["accuracy"]) == int((expected.argmax(1) == y).sum())
    refused = CliRunner().invoke(predict, words)
    assert isinstance(refused.exception, ConfigError)


def test_refused(tmp_path: Path) -> None:
    data, _, _ = store(tmp_path / "data.h5")
    model = logistic.model(LOGISTIC["options"])  # type: ignore[arg-type]
    silent = model_file(tmp_path / "silent.safetensors", LOGISTIC, model, said=False)
    wide = model_file(tmp_path / "wide.safetensors", LOGISTIC, logistic.model({"features": 4}))
    other = model_file(tmp_path / "other.safetensors", LOGISTIC, mlp.model(MLP["options"]))  # type: ignore[arg-type]
    (tmp_path / "torch.pt").write_bytes(b"PK\x03\x04")
    cases: list[tuple[Path, type[FedhpcError], str]] = [
        (silent, ConfigError, "does not say what model it holds"),
        (wide, DataError, r"feature_mean is float32 \[4\], in this task's model it is float32 \[3\]"),
        (other, DataError, "lacks the tensor network.weight"),
        (tmp_path / "torch.pt", DataError, "not a safetensors file"),
        (tmp_path / "none", ConfigError, "no such file"),
    ]
    for file, kind, words in cases:
        with pytest.raises(kind, match=words):
            open_scorer(read_exported(file), data)
    federation = tmp_path / "federation.toml"
    federation.write_text('[task]\nname = "logistic"\noptions = { features = 3 }\n')
    assert open_scorer(read_exported(silent, federation), data).n == ROWS


def test_a_task_of_ones_own_says_what_a_score_is(tmp_path: Path) -> None:
    import hashlib

    text = (
        "import torch\nfrom fedhpc.train.tasks.logistic import dataset, loss, model, sums\n"
        "def predict(model, batch):\n    return model(batch[0])[:, 0] * 2\n"
    )
    data, x, _ = store(tmp_path / "data.h5")
    for source, words in ((text, ""), (text.split("def predict")[0], "does not say what the score of a row is")):
        (tmp_path / "task.py").write_text(source)
        sha256 = hashlib.sha256(source.encode()).hexdigest()
        task = {"name": "module", "source_sha256": sha256, "options": {"features": 3}}
        model = logistic.model(LOGISTIC["options"])  # type: ignore[arg-type]
        file = model_file(tmp_path / "m.safetensors", task, model)
        scorer = open_scorer(read_exported(file), data, tmp_path / "task.py")
        if words:
            with pytest.raises(ConfigError, match=words):
                write_scores(scorer, tmp_path / "b.csv")
            assert not (tmp_path / "b.csv").exists()
            continue
        write_scores(scorer, tmp_path / "a.csv")
        with torch.no_grad():
            np.testing.assert_allclose(
                scores_of(tmp_path / "a.csv")[1][:, 0], 2 * model(torch.from_numpy(x))[:, 0].numpy(), rtol=1e-6
            )


def test_intervals() -> None:
    # Wilson: 81 of 263, Newcombe 1998, Stat. Med. 17:857, table I: 0.2553 to 0.3662.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) is None
    rng = np.random.default_rng(2)
    labels = np.repeat([1, 0], [80, 120])
    drawn = [roc_auc_score(labels, rng.standard_normal(200) + 1.2 * labels) for _ in range(400)]
    low, high = hanley_mcneil(float(np.mean(drawn)), 80, 120) or (0.0, 0.0)
    assert (high - low) / 2 / 1.96 == pytest.approx(np.std(drawn), rel=0.15)
    assert hanley_mcneil(1.0, 5, 5) == (1.0, 1.0)
    assert hanley_mcneil(0.5, 0, 5) is None


def test_the_five_lines_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(
        r"```python\n(import torch\nfrom safetensors.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    data, x, _ = store(tmp_path / "data.h5")
    model = logistic.model(LOGISTIC["options"])  # type: ignore[arg-type]
    file = model_file(tmp_path / "model.safetensors", LOGISTIC, model)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    write_scores(open_scorer(read_exported(file), data), tmp_path / "scores.csv")
    expected = names["probability"](torch.from_numpy(x))
    np.testing.assert_allclose(scores_of(tmp_path / "scores.csv")[1], expected.numpy(), rtol=1e-5)
