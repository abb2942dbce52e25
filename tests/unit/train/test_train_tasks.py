"""Tasks: the file that runs is the file that was hashed; errors name function, task and site; built-ins work."""

from __future__ import annotations

import hashlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import write_store
from fedhpc.errors import ConfigError, DataError, PolicyError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.loading import Reader, fetch
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.tasks.loader import Task, TaskDataset, load_task

BINARY = {
    "accuracy", "loss", "auc", "auc_half_width", "average_precision", "average_precision_half_width",
    "calibration_ratio", "calibration_intercept", "calibration_slope",
}  # fmt: skip

SOURCE = """
from dataclasses import dataclass
import torch

@dataclass
class Rows:
    n: int
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        return torch.tensor([float(i)]), torch.rand(1)

def model(options):
    return torch.nn.Linear(1, 1)
def dataset(path, options):
    return Rows(options["n"])
def loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()
def sums(model, batch):
    raise ValueError("over\\nthere")
"""


def module(folder: Path, source: str, sha256: str | None = None) -> tuple[TaskSettings, Path]:
    path = folder / "task.py"
    path.write_text(source)
    return TaskSettings("module", sha256 or hashlib.sha256(source.encode()).hexdigest()), path


def test_a_file_with_another_hash_never_runs(tmp_path: Path) -> None:
    settings, path = module(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n" + SOURCE, "0" * 64)
    with pytest.raises(PolicyError, match="is not the task"):
        load_task(settings, path, "a")
    assert not (tmp_path / "ran").exists()


def test_missing_functions_missing_file_and_syntax_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks loss\(\), sums\(\)"):
        load_task(*module(tmp_path, "def model(o): ...\ndef dataset(p, o): ...\n"))
    with pytest.raises(ConfigError, match="cannot be run: SyntaxError"):
        load_task(*module(tmp_path, "def model(:\n"))
    with pytest.raises(ConfigError, match="does not say where"):
        load_task(TaskSettings("module", "0" * 64), None)
    with pytest.raises(ConfigError, match="cannot read"):
        load_task(TaskSettings("module", "0" * 64), tmp_path / "none.py")


def test_a_neighbour_is_not_importable(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_task.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        load_task(*module(tmp_path, "import neighbour_of_task\n" + SOURCE))


def test_a_function_that_raises_is_named_and_chained(tmp_path: Path) -> None:
    task = load_task(*module(tmp_path, SOURCE), "hungary")
    with pytest.raises(DataError, match=r"site hungary: sums\(\) of task .*: ValueError: over there") as caught:
        task.sums(torch.nn.Linear(1, 1), None)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(DataError, match=r"dataset\(\).*KeyError"):
        task.dataset(tmp_path, {})


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("return torch.nn.Linear(1, 1)", "return 3", "not a torch Module"),
        (".mean()", "", "one scalar"),
        ('raise ValueError("over\\nthere")', "return {'loss': torch.ones(())}", "'n'"),
    ],
)
def test_wrong_results_are_refused(tmp_path: Path, old: str, new: str, word: str) -> None:
    task = load_task(*module(tmp_path, SOURCE.replace(old, new)))
    batch = torch.ones(2, 1), torch.ones(2, 1)

    def use() -> None:
        model = task.model({}, 0)
        task.loss(model, batch)
        task.sums(model, batch)

    with pytest.raises(ConfigError, match=word):
        use()


HISTOGRAMS = """
def sums(model, batch):
    x, y = batch
    found = binary_sums(x, y, 8)
    found.update(OTHER)
    return found
"""


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ("{}", ""),
        ("{'hist_expected': torch.sigmoid(x.bfloat16()).sum()}", ""),
        ("{'hist_positive': torch.ones(9), 'hist_negative': torch.ones(8)}", "equally many bins"),
        ("{'hist_positive': torch.ones(2, 9), 'hist_negative': torch.ones(2, 9)}", "one dimension"),
        ("{'hist_positive': torch.ones(8), 'hist_negative': torch.ones(8)}", "of binary_sums only"),
        ("{'hist_positive': torch.ones(5), 'hist_negative': torch.ones(5)}", "in the bins of binary_sums"),
        ("{'hist_expected': torch.sigmoid(x)}", "is a scalar"),
        ("{'hist_expected': torch.sigmoid(-x).sum()}", "in the bins of binary_sums"),
    ],
)
def test_histograms_of_ones_own(tmp_path: Path, other: str, word: str) -> None:
    source = "from fedhpc.train.tasks.tables import binary_sums\n" + SOURCE + HISTOGRAMS.replace("OTHER", other)
    task = load_task(*module(tmp_path, source))
    batch = torch.tensor([[-3.0], [-1.5], [0.0], [-7.0], [-0.2]]), torch.tensor([0, 1, 1, 0, 0])
    if word:
        with pytest.raises(ConfigError, match=word):
            task.sums(torch.nn.Linear(1, 1), batch)
    else:
        assert task.sums(torch.nn.Linear(1, 1), batch)["hist_positive"].sum() == 2


def test_models_start_equal_and_leave_the_generator_alone() -> None:
    task = load_task(TaskSettings("mlp"))
    before = torch.get_rng_state()
    one, two = (task.model({"features": 3}, 5).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one["network.0.weight"], task.model({"features": 3}, 6).state_dict()["network.0.weight"])


def test_options_are_checked() -> None:
    for name, options in [
        ("logistic", {}), ("logistic", {"features": 3, "bin": 4}), ("mlp", {"features": 0}),
        ("logistic", {"features": 3, "bins": 1}), ("mlp", {"features": 3, "dropout": 1.0}), ("cnn", {"channels": []}),
        ("cnn", {"side": 4, "channels": [1, 1, 1]}),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=r"task\.options"):
            load_task(TaskSettings(name)).model(options, 0)  # type: ignore[arg-type]


def test_a_users_dataset_reaches_spawned_workers_and_draws_per_batch(tmp_path: Path) -> None:
    settings, path = module(tmp_path, SOURCE)
    dataset = TaskDataset(load_task(settings, path, "a"), tmp_path, {"n": 12})
    assert len(dataset) == 12
    path.unlink()  # workers run the bytes that were checked, not what lies there by then
    rows = [np.arange(0, 5), np.arange(5, 9), np.arange(9, 12)]
    before = torch.get_rng_state()
    seen = []
    for workers in (1, 2):
        reader = Reader(dataset, workers, b"seed", pin=False)
        rounds = [list(reader.read(rows, first)) for first in (0, 3, 0)]
        reader.close()
        assert [b[0][:, 0].tolist() for b in rounds[0]] == [r.tolist() for r in rows]
        assert torch.equal(rounds[0][0][1], rounds[2][0][1])
        assert not torch.equal(rounds[0][0][1], rounds[1][0][1])
        seen.append(torch.cat([b[1] for b in rounds[1]]))
    assert torch.equal(*seen)
    assert torch.equal(before, torch.get_rng_state())


def store(path: Path, x: np.ndarray, y: np.ndarray) -> FeatureSet:
    features = tuple(Feature(f"f{i}") for i in range(x.shape[1]))
    feature_set = FeatureSet(features, Label("y"), x.shape[1:])
    write_store(
        path, site="a", feature_set=feature_set, features=x.astype(np.float32), labels=y.astype(np.int64),
        row_ids=np.arange(len(y) * 32, dtype=np.uint64).astype(np.uint8).reshape(-1, 32),
    )  # fmt: skip
    return feature_set


@pytest.mark.parametrize(
    ("name", "options", "classes", "shape", "names", "workers"),
    [
        ("logistic", {"features": 4, "bins": 8}, 2, (4,), BINARY, 1),
        ("mlp", {"features": 4, "hidden": [8]}, 2, (4,), BINARY, 0),
        ("mlp", {"features": 4, "hidden": [8], "classes": 3, "dropout": 0.1}, 3, (4,), {"accuracy", "loss"}, 0),
        ("cnn", {"classes": 3, "channels": [4]}, 3, (1, 8, 8), {"accuracy", "loss"}, 0),
    ],
)
def test_built_ins_learn_from_a_store(
    tmp_path: Path, name: str, options: dict, classes: int, shape: tuple, names: set, workers: int
) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, 120)
    x = rng.normal(size=(120, *shape))
    x.reshape(120, -1)[np.arange(120), y] += 4
    feature_set = store(tmp_path / "a.h5", x, y)
    task = TaskSettings(name, options=options, features_sha256=feature_set.sha256, held_out=0.25)  # type: ignore[arg-type]
    train = TrainSettings(lr=0.3, momentum=0.5, batch_size=16, local_epochs=3)
    compute = ComputeSettings(device="cpu", workers=workers)
    with open_trainer(
        task, train, compute, data=tmp_path / "a.h5", source=None, group=SerialGroup("a"), site="a", seed=0
    ) as trainer:
        before = trainer.summarise(trainer.measure())
        result = trainer.train(0, trainer.tensors())
        after = trainer.summarise(trainer.measure())
    assert set(after) == names
    assert trainer.held_out_rows.size > 25
    assert after["loss"] < before["loss"]  # type: ignore[operator]
    assert after["accuracy"] > 0.7  # type: ignore[operator]
    assert result.samples == trainer.train_rows.size == 120 - trainer.held_out_rows.size
    assert result.steps == 3 * -(-result.samples // 16)


def test_a_store_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "a.h5", np.zeros((4, 3)), np.array([0, 1, 2, 1]))
    with pytest.raises(DataError, match=r"1 rows have a label outside 0\.\.1"):
        load_task(TaskSettings("logistic")).dataset(tmp_path / "a.h5", {"features": 3})
    with pytest.raises(DataError, match="3 features, and the task expects 4"):
        load_task(TaskSettings("mlp")).dataset(tmp_path / "a.h5", {"features": 4, "classes": 3})
    task = TaskSettings("mlp", options={"features": 3, "classes": 3}, features_sha256="0" * 64)
    with pytest.raises(DataError, match="other features"):
        open_trainer(
            task, TrainSettings(lr=0.1, local_steps=1), ComputeSettings(), data=tmp_path / "a.h5", source=None,
            group=SerialGroup(), site="a", seed=0,
        )  # fmt: skip


def test_a_built_in_task_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(4, 3)
    store(tmp_path / "a.h5", x, np.array([0, 1, 0, 1]))
    dataset = TaskDataset(load_task(TaskSettings("logistic")), tmp_path / "a.h5", {"features": 3})
    fetch(dataset, np.array([0]))
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(fetch(again, np.array([2, 1]))[0].numpy(), x[[2, 1]].astype(np.float32))


def test_a_store_is_read_ahead_within_its_memory(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(90, 3)), np.arange(90) % 2
    store(tmp_path / "a.h5", x, y)
    plan = [np.array(rows) for rows in ([5, 3], [89, 0, 5], [7], [1, 2])]
    for limit in (0, 300, 1 << 20):
        dataset = TaskDataset(load_task(TaskSettings("logistic")), tmp_path / "a.h5", {"features": 3}, limit)
        assert dataset.opened.store.memory_bytes == limit
        assert pickle.loads(pickle.dumps(dataset)).opened.store.memory_bytes == limit
        batches = list(Reader(dataset, 0, bytes(32), pin=False).read(plan, 0))
        assert len(batches) == len(plan)
        for rows, (got, classes) in zip(plan, batches, strict=True):
            np.testing.assert_array_equal(got.numpy(), x[rows].astype(np.float32))
            np.testing.assert_array_equal(classes.numpy(), y[rows])


def test_the_memory_for_rows_is_shared_with_the_workers(tmp_path: Path) -> None:
    store(tmp_path / "a.h5", np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2)
    for workers, share in ((0, 6 << 20), (2, 2 << 20)):
        with open_trainer(
            TaskSettings("logistic", options={"features": 3}), TrainSettings(lr=0.1, local_steps=1),
            ComputeSettings(backend="serial", workers=workers, data_memory_mib=6), data=tmp_path / "a.h5", source=None,
            group=SerialGroup(), site="a", seed=0,
        ) as trainer:  # fmt: skip
            assert trainer.dataset.opened.store.memory_bytes == share


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (([True, False, True], [False, True, False]), "list of integers, and not bool"),
        (([0, 1], [1, 2]), "each of the 3 rows is on one side"),
        (([0, 1], [3]), "each of the 3 rows is on one side"),
        (([[0, 1]], [2]), r"not int64 \[1, 2\]"),
        ((["a"], [2]), "list of integers"),
    ],
)
def test_a_split_of_a_datasets_own_must_be_one(split: Any, words: str) -> None:
    class Own(list):
        def held_out_split(self, held_out: float, seed: int, site: str) -> Any:
            return split

    module = types.ModuleType("a_task")
    module.__dict__.update(dict.fromkeys(("model", "loss", "sums"), lambda *_: None))
    module.dataset = lambda path, options: Own("abc")
    task = Task("module", module, b"", "task.py", "a")
    with pytest.raises(DataError, match=rf"held_out_split\(\) of task task\.py failed: .*{words}"):
        TaskDataset(task, Path("x"), {}).split(0.3, 1)


def test_rows_that_are_measured_at_once_are_some() -> None:
    class Own(list):
        measure_rows = 0

    module = types.ModuleType("a_task")
    module.__dict__.update(dict.fromkeys(("model", "loss", "sums"), lambda *_: None))
    module.dataset = lambda path, options: Own("abc")
    with pytest.raises(ConfigError, match=r"measure_rows\(\) of task task\.py failed: .*0 rows at once"):
        _ = TaskDataset(Task("module", module, b"", "task.py", "a"), Path("x"), {}).measure_rows
