"""A model as a file: what is hashed, in which order, and what is refused before a federation is named by it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedhpc.errors import ConfigError, DataError, PolicyError
from fedhpc.federation.ranges import forms_of
from fedhpc.federation.state_tensors import model_sha256
from fedhpc.train.start_file import LAYOUT, SHA256, agreed_sha256, fitting_file, read_start_file

LOGISTIC = {"name": "logistic", "options": {"features": 9}}
MODULE = {"name": "module", "source_sha256": "0" * 64}


def tensors() -> dict[str, Any]:
    """As the logistic task has them; not in the order of their names, which is that of the file."""
    draw = np.random.default_rng(1)
    shapes = {"feature_mean": (9,), "feature_scale": (9,), "network.weight": (1, 9), "network.bias": (1,)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, model: dict[str, Any] | None = None, **header: str) -> Path:
    save_file(tensors() if model is None else model, path, metadata=header or None)
    return path


def test_the_hash_is_over_the_tensors_in_the_order_of_the_model(tmp_path: Path) -> None:
    expected = model_sha256(tensors())
    assert expected != model_sha256(dict(sorted(tensors().items())))
    plain, said = write(tmp_path / "a"), write(tmp_path / "b", **{LAYOUT: json.dumps(list(tensors()))})
    assert agreed_sha256(plain, LOGISTIC, public=False) == expected  # the task says the order
    assert agreed_sha256(said, MODULE, public=False) == expected  # the header says it
    with pytest.raises(ConfigError, match="in which order") as refused:
        agreed_sha256(plain, MODULE, public=False)
    assert LAYOUT in refused.value.hint


def test_a_model_that_could_be_guessed_from_its_hash(tmp_path: Path) -> None:
    small = {"weight": np.zeros(14, np.float32), "bias": np.zeros((), np.float32)}
    header = {LAYOUT: '["weight", "bias"]'}
    path = write(tmp_path / "a", small, **header)
    with pytest.raises(ConfigError, match="15 numbers") as refused:
        agreed_sha256(path, MODULE, public=False)
    assert "`fedhpc federation next` without a file" in refused.value.hint
    assert agreed_sha256(path, MODULE, public=True) == model_sha256(small)
    large = small | {"bias": np.zeros(2, np.float32)}
    assert agreed_sha256(write(tmp_path / "b", large, **header), MODULE, public=False) == model_sha256(large)


def test_a_header_that_says_another_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "a", **{SHA256: "0" * 64, LAYOUT: json.dumps(list(tensors()))})
    with pytest.raises(DataError, match="is damaged"):
        agreed_sha256(path, LOGISTIC, public=False)


@pytest.mark.parametrize("layout", ['["feature_mean"]', '["x", "y"]', "{}", "[1]", "nonsense", "[" * 100_000])
def test_a_header_with_a_layout_that_is_none(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / "a", **{LAYOUT: layout})
    with pytest.raises(DataError):
        agreed_sha256(path, LOGISTIC, public=False)


@pytest.mark.parametrize("data", [b"", b"\0" * 64, pickle.dumps({"weight": [1.0] * 20}), b"\xff" * 8 + b"{}"])
def test_a_file_that_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not a safetensors file"):
        read_start_file(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_start_file(tmp_path)


def test_what_a_site_refuses(tmp_path: Path) -> None:
    built, agreed = forms_of(tensors()), model_sha256(tensors())
    file = read_start_file(write(tmp_path / "a"))
    assert list(file.fit(built, agreed, "bern")) == list(built)
    with pytest.raises(PolicyError, match=r"site bern: .* is not the model that the federation begins from"):
        file.fit(built, "0" * 64, "bern")
    for change, told in (
        ({"network.bias": np.zeros(2, np.float32)}, r"network.bias is float32 \[1\], .* it is float32 \[2\]"),
        ({"network.bias": np.zeros(1)}, r"network.bias is float32 \[1\], .* it is float64 \[1\]"),
        ({"more": np.zeros(1)}, "it lacks the tensor more"),
    ):
        with pytest.raises(DataError, match=told):
            file.fit(built | forms_of(change), agreed, "bern")
    del built["network.bias"]
    with pytest.raises(DataError, match=r"it also has the tensor network\.bias"):
        file.fit(built, agreed, "bern")


def test_a_file_for_a_task_that_is_fixed(tmp_path: Path) -> None:
    found = fitting_file(write(tmp_path / "a"), LOGISTIC)
    assert (found.sha256, list(found.tensors)) == (model_sha256(tensors()), list(tensors()))
    other = tensors() | {"network.weight": np.zeros((2, 9), np.float32)}
    with pytest.raises(DataError, match=r"network.weight is float32 \[2, 9\], in this federation's task it is"):
        fitting_file(write(tmp_path / "b", other), LOGISTIC)
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors().items()}
    with pytest.raises(DataError, match="is float64"):
        fitting_file(write(tmp_path / "c", wide), LOGISTIC)
    with pytest.raises(DataError, match=r"it lacks the tensor network\.bias"):
        fitting_file(write(tmp_path / "d", {n: t for n, t in tensors().items() if n != "network.bias"}), LOGISTIC)
    with pytest.raises(DataError, match="another model"):
        fitting_file(write(tmp_path / "a"), {"name": "cnn", "options": {"classes": 2, "side": 8, "channels": [2, 2]}})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_save_is_told(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="not a safetensors file") as refused:
        read_start_file(tmp_path / "x.pt")
    assert "save_file(" in refused.value.hint
