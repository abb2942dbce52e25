"""Which program a stage of training is: local training, or the sum of what an earlier job has put into the outbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting
from loop_fakes import Store, Trainer

from fedhpc.agreement.site_file import SiteFile, read_site
from fedhpc.app.life.open import open_outbox
from fedhpc.app.previous import CHECKPOINTS
from fedhpc.app.programs import training
from fedhpc.app.programs.training import Before, RecordedTraining, Training, open_training
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.errors import ConfigError, InterruptedRun
from fedhpc.federation.session import Session
from fedhpc.rounds.interfaces import LocalResult, LocalWork
from fedhpc.rounds.null_objects import Endless, Silence
from fedhpc.train.settings import TaskSettings
from fedhpc.train.tasks.loader import TaskDataset, load_task

FEATURES = FeatureSet((Feature("age", "years", "continuous"),), Label("ill"), (1,))


@pytest.fixture
def files(tmp_path: Path) -> SiteFile:
    text = "[site]\nname = 's1'\nkey = 'key'\n[exchange]\nkind = 'mpi'\n[data]\npath = 'data.h5'\n"
    return read_site(text.encode(), tmp_path / "site.toml")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """RUN/SITE after a round."""
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / "round-000001.h5").touch()
    return tmp_path


def session(**sections: Any) -> Session:
    return Meeting(1, **sections).session(1)


def test_an_exchange_without_work_says_what_comes_next(files: SiteFile, directory: Path) -> None:
    with (
        pytest.raises(InterruptedRun, match="the next round is not trained yet") as stopped,
        open_training(session(), files, directory, "exchange"),
    ):
        pass
    assert (stopped.value.agreed, stopped.value.untrained) == (True, True)


def test_an_exchange_sums_what_is_in_the_outbox(files: SiteFile, directory: Path) -> None:
    """It opens neither the task, which this federation does not have, nor the data."""
    alone = session()
    tensors = {"w": np.float32([2.0]), "running": np.float32([0.0])}
    work = LocalWork(b"s" * 32, 1, LocalResult(3, 2, 0.5, 0.1), {"n": np.array(3)}, tensors, {"p": np.array(1)})
    open_outbox(alone.party, directory).keep(work)
    with open_training(alone, files, directory, "exchange") as program:
        assert isinstance(program, RecordedTraining)


@pytest.mark.parametrize("stage", ["all", "train", "exchange"])
def test_other_stages_and_the_first_exchange_open_the_task(files: SiteFile, tmp_path: Path, stage: Any) -> None:
    with (
        pytest.raises(ConfigError, match=r"no \[task\] name"),
        open_training(session(), files, tmp_path, stage),
    ):
        pass


class Featured(Trainer):
    """A trainer as programs see it: with what its columns mean, and closed at the end."""

    features = FEATURES


def test_training_compares_features_and_runs_all_rounds(files: SiteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[FeatureSet | None] = []
    monkeypatch.setattr(training, "compare_stores", lambda session, features: compared.append(features))
    trainer: Any = Featured(1)
    alone = session(task={"name": "logistic"})
    outcome = Training(trainer, files).run(alone, Endless(), Store(), Silence())
    assert outcome.model.rounds == 1
    assert compared == [FEATURES]


def test_a_model_from_a_file_must_be_agreed_on(files: SiteFile, tmp_path: Path) -> None:
    trainer: Any = Featured(1)
    program = Training(trainer, files, before=Before(model=tmp_path / "model.safetensors"))
    with pytest.raises(ConfigError, match=r"--from-model is given, and federation.toml has no \[start\] model"):
        program.run(session(), Endless(), Store(), Silence())


def test_a_dataset_without_a_store_has_no_features(tmp_path: Path) -> None:
    """A task of the user's own may read anything."""
    dataset = TaskDataset(load_task(TaskSettings("logistic")), tmp_path, {})
    dataset._opened = [1, 2]
    assert dataset.features is None
    dataset._opened = type("Opened", (), {"store": type("Store", (), {"feature_set": FEATURES})()})()
    assert dataset.features == FEATURES
