"""The same model whatever the units of the columns: whole runs over MPI, from stores to the AUC."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Site, mpirun, write_federation

from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import write_store
from fedhpc.train.held_out import split_rows

RANKS_SCRIPT = Path(__file__).with_name("training_ranks.py")
COLUMNS = ("age", "sex", "creatinine", "date", "platelets")
ROWS = {"aa": 150, "bb": 120, "cc": 100}
RANKS = {"aa": 1, "bb": 2, "cc": 1}
TASK = {"name": "logistic", "held_out": 0.2, "standardise": True, "options": {"features": len(COLUMNS)}}
TRAIN = {"optimizer": "sgd", "lr": 0.5, "batch_size": 0, "local_steps": 5}
UNITS: dict[str, dict[str, float]] = {
    "plain": {},
    "per millilitre": {"platelets": 1e6},
    "per litre, nanoseconds": {"platelets": 1e9, "date": 1e16},
}


def rows_of(name: str, units: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """x float32 [rows, 5] in these units, y int64 [rows]; the labels follow from the plain numbers."""
    rows = ROWS[name]
    draw = np.random.default_rng(list(name.encode()))
    age, sex = draw.uniform(40, 84, rows), draw.integers(0, 2, rows)
    creatinine, date, platelets = (
        np.exp(draw.normal(0, 0.3, rows)),
        draw.normal(170, 1, rows),
        draw.normal(250, 60, rows),
    )
    risk = (age - 62) / 13 + sex + 2 * (creatinine - 1) + (date - 170) - (platelets - 250) / 60
    x = np.stack([age, sex, creatinine, date, platelets], axis=1) * [units.get(column, 1.0) for column in COLUMNS]
    return x.astype(np.float32), (risk + draw.logistic(size=rows) > 0.5).astype(np.int64)


def write(folder: Path, units: dict[str, float]) -> list[np.ndarray]:
    """A federation whose stores have these units; the training rows of each site."""
    write_federation(folder, {n: Site(ranks=RANKS[n]) for n in ROWS}, task=TASK, train=TRAIN, rounds=3, stores=False)
    features = FeatureSet(tuple(Feature(n) for n in COLUMNS), Label("sick"), (len(COLUMNS),))
    trained = []
    for name, rows in ROWS.items():
        x, y = rows_of(name, units)
        write_store(
            folder / "data" / f"{name}.h5", site=name, feature_set=features, features=x, labels=y,
            row_ids=np.zeros((rows, 32), np.uint8), created="2026-01-01",
        )  # fmt: skip
        trained.append(x[split_rows(rows, 0.2, 0, name, y)[0]])
    return trained


@pytest.mark.mpi
def test_units_change_neither_deviations_nor_the_auc(tmp_path: Path) -> None:
    trained = {case: write(tmp_path / case, units) for case, units in UNITS.items()}
    done = mpirun(4, [RANKS_SCRIPT, *(tmp_path / case for case in UNITS)], timeout=150, warm=True).ok()
    metrics: dict[str, dict[str, Any]] = {}
    for line in done.out.splitlines():
        if line.startswith("["):
            case, _, _, metrics[case] = json.loads(line)
    assert metrics.keys() == UNITS.keys()
    for case, tables in trained.items():
        union = np.concatenate(tables).astype(np.float64)
        model = np.load(tmp_path / case / "final.npz")
        np.testing.assert_array_max_ulp(model["feature_mean"], union.mean(axis=0).astype(np.float32))
        np.testing.assert_array_max_ulp(model["feature_scale"], union.std(axis=0).astype(np.float32))
        assert metrics[case]["auc"] == pytest.approx(metrics["plain"]["auc"], abs=2e-3), case
        assert metrics[case]["loss"] == pytest.approx(metrics["plain"]["loss"], rel=1e-4), case
    assert metrics["plain"]["auc"] > 0.75
    assert math.isfinite(metrics["plain"]["loss"])
    assert "deviation" not in done.text
    assert "rounded" not in done.text
