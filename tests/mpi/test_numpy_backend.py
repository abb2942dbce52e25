"""The task logistic trains without torch by default: no rank imports it, and the model is the one that torch trains."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import LOGISTIC, Site, call, mpirun, write_federation

RANKS_SCRIPT = Path(__file__).with_name("numpy_ranks.py")
RANKS = {"aa": 1, "bb": 2, "cc": 3}
ROWS = {"aa": 24, "bb": 40, "cc": 33}
TASK = LOGISTIC | {"standardise": True}
SGD = {"optimizer": "sgd", "lr": 0.2, "momentum": 0.5, "batch_size": 8, "local_steps": 3, "clip_norm": 1.0}
ADAMW = {"optimizer": "adamw", "lr": 0.05, "weight_decay": 0.1, "batch_size": 8, "local_steps": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {"sgd": ("fedprox", SGD), "adamw": ("fedavg", ADAMW)}
NUMPY = dict.fromkeys(RANKS, "auto")
TORCH = {"aa": "serial", "bb": "ddp", "cc": "mpi"}
MIXED = {"aa": "serial", "bb": "numpy", "cc": "numpy"}


def trained(
    tmp_path: Path, sides: dict[str, dict[str, str]], *, torch: bool
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """{case and side: (final tensors, metrics)} of sites of 1, 2 and 3 ranks, all in one job."""
    names = []
    for side, backends in sides.items():
        for case, (strategy, train) in CASES.items():
            sites = {n: Site(rows=ROWS[n], ranks=RANKS[n], compute={"backend": backends[n]}) for n in RANKS}
            name = f"{case} {side}"
            write_federation(tmp_path / name, sites, rounds=2, strategy={"name": strategy}, task=TASK, train=train)
            names.append(name)
    done = mpirun(6, [RANKS_SCRIPT, *(tmp_path / name for name in names)], warm=torch).ok()
    said = Counter(tuple(json.loads(line)) for line in done.out.splitlines() if line.startswith("["))
    assert said == {(name, torch): 6 for name in names}, done.text
    found = {}
    for name in names:
        with np.load(tmp_path / name / "final.npz") as file:
            found[name] = (dict(file), json.loads((tmp_path / name / "metrics.json").read_text()))
    return found


@pytest.mark.mpi
def test_no_rank_imports_torch_and_the_model_is_that_of_torch(tmp_path: Path) -> None:
    """Models are float32: each step of torch rounds to it a few times, of NumPy once."""
    found = trained(tmp_path, {"numpy": NUMPY}, torch=False)
    expected = trained(tmp_path, {"torch": TORCH, "mixed": MIXED}, torch=True)
    for name, (others, other_metrics) in expected.items():
        tensors, metrics = found[f"{name.split()[0]} numpy"]
        assert np.abs(tensors["network.weight"]).max() > 1e-3
        assert list(tensors) == list(others)
        for key, tensor in tensors.items():
            assert (tensor.dtype, tensor.shape) == (others[key].dtype, others[key].shape)
            np.testing.assert_allclose(tensor, others[key], atol=2e-5, err_msg=f"{name} {key}")
        assert metrics.keys() == other_metrics.keys()
        assert metrics["loss"] == pytest.approx(other_metrics["loss"], rel=1e-5)


@pytest.mark.mpi
def test_status_report_and_export_of_a_run_import_no_torch(tmp_path: Path) -> None:
    write_federation(tmp_path, 2, rounds=1, task=TASK, secure={"accept_two_sites": True})
    mpirun(2, [RANKS_SCRIPT, tmp_path], timeout=100).ok()
    code = "import sys; from fedhpc.cli import cli; cli(standalone_mode=False); assert 'torch' not in sys.modules"
    for words in (["status"], ["report"], ["export"]):
        more = [tmp_path / "model.safetensors"] if words == ["export"] else []
        call([sys.executable, "-c", code, *words, tmp_path / "run", *more], timeout=100).ok()
    from safetensors.torch import load_file

    from fedhpc.train.tasks import logistic

    model = logistic.model({"features": 4})
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with np.load(tmp_path / "final.npz") as file:
        np.testing.assert_array_equal(model.state_dict()["network.weight"].numpy(), file["network.weight"])
