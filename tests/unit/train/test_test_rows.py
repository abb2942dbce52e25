"""Test rows: agreed on by all sites, of the same features, and none of those that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import SiteStore, write_store
from fedhpc.errors import ConfigError, DataError, FedhpcError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.site_trainer import SiteTrainer
from fedhpc.train.test_rows import refuse_shared_rows

TASK = TaskSettings("logistic", options={"features": 2, "bins": 8}, test=True)


def store(path: Path, ids: range, names: str = "ab", numbered: bool = False) -> Path:
    rng = np.random.default_rng(ids.start)
    row_ids = np.zeros((len(ids), 32), np.uint8)
    row_ids[:, 0] = ids
    features = FeatureSet(tuple(Feature(n) for n in names), Label("sick"), (2,))
    x = rng.standard_normal((len(ids), 2)).astype(np.float32)
    write_store(
        path, site="s", feature_set=features, features=x, labels=(x[:, 0] > 0).astype(np.int64), row_ids=row_ids,
        created="2026-01-01", row_ids_from="row number" if numbered else "",
    )  # fmt: skip
    return path


def trainer(data: Path, test: Path | None, task: TaskSettings = TASK, backend: str = "numpy") -> SiteTrainer:
    return open_trainer(
        task, TrainSettings(lr=0.1, local_steps=1), ComputeSettings(backend=backend, device="cpu"),  # type: ignore[arg-type]
        data=data, source=None, group=SerialGroup("s"), site="s", seed=1, test=test,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "serial"])
def test_the_final_model_is_measured_on_them(tmp_path: Path, backend: str) -> None:
    data, test = store(tmp_path / "a.h5", range(40)), store(tmp_path / "t.h5", range(40, 57))
    with trainer(data, test, backend=backend) as ready:
        sums, tested = ready.measure(), ready.measure_test()
        assert int(sums["n"]) == 8
        assert int(tested["n"]) == 17
        assert tested.keys() == sums.keys()
        labels = SiteStore.open(test).labels()
        assert int(tested["hist_positive"].sum()) == int((labels > 0).sum())
    with trainer(data, None, TaskSettings("logistic", options=TASK.options), backend) as ready:
        assert ready.measure_test() == {}


@pytest.mark.parametrize("backend", ["numpy", "serial"])
def test_refused(tmp_path: Path, backend: str) -> None:
    data = store(tmp_path / "a.h5", range(40))
    shared, others = store(tmp_path / "t.h5", range(38, 50)), store(tmp_path / "o.h5", range(50, 60), "ac")
    cases: list[tuple[Path | None, TaskSettings, type[FedhpcError], str]] = [
        (None, TASK, ConfigError, "the site file names none"),
        (shared, TaskSettings("logistic", options=TASK.options), ConfigError, "does not say that the sites test"),
        (shared, TASK, DataError, "2 rows of the test store are rows of the store of training too"),
        (others, TASK, DataError, "other features than the site's store of training"),
    ]
    for test, task, kind, words in cases:
        with pytest.raises(kind, match=words):
            trainer(data, test, task, backend)


def test_rows_that_are_only_counted_may_have_the_same_numbers(tmp_path: Path) -> None:
    one, two = store(tmp_path / "a.h5", range(9), numbered=True), store(tmp_path / "b.h5", range(9), numbered=True)
    refuse_shared_rows(SiteStore.open(one), SiteStore.open(two), "s")
