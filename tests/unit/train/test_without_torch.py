"""Which settings of a site take NumPy and which take torch, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import call, write_rows

from fedhpc.errors import ConfigError, DataError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.linear.numpy_trainer import NumpyTrainer
from fedhpc.train.linear.without_torch import trains_with_numpy
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.trainer import TorchTrainer

TASK = TaskSettings("logistic", options={"features": 4})
TRAIN = TrainSettings(lr=0.1, local_steps=1)
NEEDS_TORCH: dict[str, dict[str, Any]] = {
    "task.name = 'mlp'": {"task": TaskSettings("mlp")},
    "task.weights_sha256": {"task": TaskSettings("logistic", weights_sha256="0" * 64)},
    "train.precision = 'bf16'": {"train": TrainSettings(lr=0.1, local_steps=1, precision="bf16")},
    "compute.device = 'cuda'": {"compute": {"device": "cuda"}},
    "compute.workers = 2": {"compute": {"workers": 2}},
    "compute.threads = 2": {"compute": {"threads": 2}},
    "compute.activation_checkpointing": {"compute": {"activation_checkpointing": True}},
}


@pytest.mark.parametrize("backend", ["auto", "numpy"])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_logistic_regression_takes_numpy(backend: Any, device: Any) -> None:
    assert trains_with_numpy(TASK, TRAIN, ComputeSettings(backend=backend, device=device))


@pytest.mark.parametrize("setting", NEEDS_TORCH)
def test_what_numpy_cannot_do_takes_torch_or_is_refused(setting: str) -> None:
    more = NEEDS_TORCH[setting]
    task, train, compute = more.get("task", TASK), more.get("train", TRAIN), more.get("compute", {})
    assert not trains_with_numpy(task, train, ComputeSettings(**compute))
    with pytest.raises(ConfigError, match=r"compute\.backend = 'numpy'") as refused:
        trains_with_numpy(task, train, ComputeSettings(backend="numpy", **compute))
    assert f"and {setting} asks for more" in refused.value.what
    assert "backend = 'auto'" in refused.value.hint


@pytest.mark.parametrize("backend", ["serial", "ddp", "fsdp", "mpi", "horovod"])
def test_another_backend_is_torch(backend: Any) -> None:
    assert not trains_with_numpy(TASK, TRAIN, ComputeSettings(backend=backend))


def opened(path: Path, task: TaskSettings = TASK, **compute: Any) -> Any:
    return open_trainer(
        task, TRAIN, ComputeSettings(device="cpu", **compute), data=path, source=None,
        group=SerialGroup("site a"), site="a", seed=0,
    )  # fmt: skip


def test_both_open_the_same_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.h5", "a", 30)
    with opened(tmp_path / "a.h5", data_memory_mib=3) as plain, opened(tmp_path / "a.h5", backend="serial") as torch_:
        assert isinstance(plain, NumpyTrainer)
        assert isinstance(torch_, TorchTrainer)
        np.testing.assert_array_equal(plain.train_rows, torch_.train_rows)
        np.testing.assert_array_equal(plain.held_out_rows, torch_.held_out_rows)
        np.testing.assert_array_equal(plain.inputs(plain.train_rows), torch_.inputs(plain.train_rows))
        assert plain.forms() == torch_.forms()
        assert plain.averaged() == torch_.averaged()
        assert plain.features == torch_.features
        assert plain._dataset.store.memory_bytes == 3 << 20


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.h5", "a", 30)
    with pytest.raises(DataError, match="a row holds 4 features, and the task expects 3"):
        opened(tmp_path / "a.h5", TaskSettings("logistic", options={"features": 3}))
    with pytest.raises(DataError, match="other features than the federation agreed on"):
        opened(tmp_path / "a.h5", TaskSettings("logistic", options={"features": 4}, features_sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"task\.options"):
        opened(tmp_path / "a.h5", TaskSettings("logistic", options={"features": 4, "bin": 3}))


def test_a_task_that_needs_torch_says_so_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "a.h5", "a", 30)
    monkeypatch.delitem(sys.modules, "fedhpc.train.open_torch_trainer", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("fedhpc.train.") and "linear" not in name]:
        if hasattr(sys.modules[name], "torch"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="trains with torch, which is not installed") as refused:
        opened(tmp_path / "a.h5", backend="serial")
    assert "fedhpc[train]" in refused.value.hint
    with opened(tmp_path / "a.h5") as trainer:
        assert isinstance(trainer, NumpyTrainer)


def test_the_trainer_and_what_it_needs_import_no_torch() -> None:
    """Also the demo's own ranks, and the file that an epoch begins from."""

    modules = (
        "fedhpc.app.run", "fedhpc.train.linear.open_numpy_trainer", "fedhpc.train.start_file", "fedhpc.cli",
        "fedhpc.demo.heart.compare", "fedhpc.demo.heart.relayed", "fedhpc.demo.heart.relayed_site",
    )  # fmt: skip
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    call([sys.executable, "-c", code]).ok()
