"""The text task: windows, loss and metrics against their definitions; documents stay on one side of the split."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedhpc.data.tokens import write_tokens
from fedhpc.errors import ConfigError, DataError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.evaluate import summarise
from fedhpc.train.first_model import Drawn, FirstModel
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.tasks import transformer
from fedhpc.train.tasks.loader import TaskDataset, load_task
from fedhpc.train.tasks.texts import NOT_PREDICTED

SHA = "cd" * 32
OPTIONS = {"vocabulary": 12, "tokenizer_sha256": SHA, "context": 6, "width": 8, "layers": 2, "heads": 2}


def write(path: Path, documents: Sequence[Sequence[int]], *, nbytes: bool = True) -> Path:
    token_bytes = np.arange(12, dtype=np.uint16) if nbytes else None
    arrays = (np.array(d, np.int64) for d in documents)
    write_tokens(path, arrays, vocabulary=12, tokenizer_sha256=SHA, token_bytes=token_bytes)
    return path


def counting(n: int = 40) -> list[list[int]]:
    """Documents that count on from some number, each of another length, and end with 11."""
    return [[(i + k) % 10 for k in range(3 + i % 9)] + [11] for i in range(n)]


def first_model(options: dict, seed: int) -> torch.nn.Module:
    task = load_task(TaskSettings("transformer"))
    return FirstModel(lambda: task.model(options, seed), Drawn(task.fill, seed, "transformer")).whole()


def moved_model(seed: int = 0) -> torch.nn.Module:
    """A model that is not at its first values, where blocks do nothing."""
    model = first_model(OPTIONS, seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def test_windows_are_shifted_by_one_and_filled_up(tmp_path: Path) -> None:
    dataset = transformer.dataset(write(tmp_path / "a.h5", [[1, 2, 3, 4, 5], [6, 7, 8, 9]]), OPTIONS)
    assert len(dataset) == 2
    x, y, nbytes = dataset.rows(np.array([1, 0]))
    assert x.tolist() == [[7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 5, 6]]
    assert y.tolist() == [[8, 9, *[NOT_PREDICTED] * 4], [2, 3, 4, 5, 6, 7]]
    assert nbytes.tolist() == [17, 27]
    assert [t.tolist() for t in dataset[1]] == [x[0].tolist(), y[0].tolist(), 17]


def test_documents_stay_on_one_side_and_are_seen_once(tmp_path: Path) -> None:
    documents = counting()
    dataset = transformer.dataset(write(tmp_path / "a.h5", documents), OPTIONS)
    train, held = dataset.held_out_split(0.25, 3, "a")
    sides = []
    for rows in (train, held):
        x, y, _ = dataset.rows(rows)
        sides.append([int(x[0, 0]), *y[y != NOT_PREDICTED].tolist()])
    ends = [side.count(11) for side in sides]
    assert ends == [30, 10]
    texts = [[*d] for d in documents]
    for side in sides:  # each side is a chain of whole documents, in the order of the file
        while side:
            document = next(d for d in texts if side[: len(d)] == d)
            texts.remove(document)
            side = side[len(document) :]
    assert texts == []
    again = transformer.dataset(tmp_path / "a.h5", OPTIONS).held_out_split(0.25, 4, "a")
    assert not np.array_equal(again[1], held) or again[0].size != train.size


def test_a_worker_has_the_same_split(tmp_path: Path) -> None:
    task = load_task(TaskSettings("transformer"))
    dataset = TaskDataset(task, write(tmp_path / "a.h5", counting()), OPTIONS)
    _, held = dataset.split(0.25, 3)
    sent = pickle.loads(pickle.dumps(dataset))
    again = TaskDataset(task, tmp_path / "a.h5", OPTIONS)
    again._split = dataset._split  # as in a worker of a task whose dataset does not cross
    for other in (sent, again):
        assert all(torch.equal(a, b) for a, b in zip(dataset.rows(held), other.rows(held), strict=True))


def test_loss_and_sums_are_those_of_single_tokens(tmp_path: Path) -> None:
    documents = counting(5)
    dataset = transformer.dataset(write(tmp_path / "a.h5", documents), OPTIONS)
    model = moved_model()
    stream = [t for d in documents for t in d]
    nats = 0.0
    with torch.no_grad():
        for low in range(0, len(stream) - 1, 6):
            for at in range(low, min(low + 6, len(stream) - 1)):  # one token at a time, from those before it
                logits = model(torch.tensor([stream[low : at + 1]]))[0, -1]
                nats += float(functional.cross_entropy(logits[None].double(), torch.tensor([stream[at + 1]])))
        batch = dataset.rows(np.arange(len(dataset)))
        sums = transformer.sums(model, batch)
        loss = float(transformer.loss(model, batch))
    tokens = len(stream) - 1
    assert float(sums["sum_nats"]) == pytest.approx(nats, rel=1e-5)
    assert (int(sums["n"]), int(sums["sum_tokens"])) == (len(dataset), tokens)
    assert int(sums["sum_bytes"]) == sum(stream[1:])
    assert loss == pytest.approx(nats / (len(dataset) * 6), rel=1e-5)
    metrics = summarise({name: value.numpy() for name, value in sums.items()})
    assert metrics == {
        "loss": pytest.approx(nats / tokens, rel=1e-5),
        "perplexity": pytest.approx(math.exp(nats / tokens), rel=1e-4),
        "bits_per_byte": pytest.approx(nats / math.log(2) / sum(stream[1:]), rel=1e-5),
    }


def test_a_token_sees_only_those_before_it() -> None:
    model = moved_model()
    x = torch.tensor([[1, 2, 3, 4, 5, 6]])
    y = torch.tensor([[1, 2, 3, 9, 9, 9]])
    with torch.no_grad():
        assert torch.equal(model(x)[:, :3], model(y)[:, :3])
        assert not torch.allclose(model(x)[:, 3:], model(y)[:, 3:])


def test_metrics_of_nothing_and_of_unknown_bytes() -> None:
    nothing = {name: np.array(0) for name in ("n", "sum_nats", "sum_tokens", "sum_bytes")}
    assert summarise(nothing) == {"loss": None, "perplexity": None, "bits_per_byte": None}
    hopeless = summarise(nothing | {"sum_nats": np.array(1e9), "sum_tokens": np.array(10)})
    assert hopeless["bits_per_byte"] is None
    assert math.isfinite(hopeless["perplexity"])  # type: ignore[arg-type]


def test_first_values_come_from_names_and_the_seed() -> None:
    model, same, other = (first_model(OPTIONS, seed) for seed in (1, 1, 2))
    values, again, differing = (dict(m.named_parameters()) for m in (model, same, other))
    deeper = dict(first_model(OPTIONS | {"layers": 3}, 1).named_parameters())
    assert len(values) == 5 + 2 * 12 - 1
    for name, value in values.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, deeper[name])  # whatever is made before it
        constant = bool((value == value.flatten()[0]).all())
        assert torch.equal(value, differing[name]) == constant
    assert float(values["blocks.0.mlp_in.weight"].detach().std()) == pytest.approx(0.02, rel=0.1)


def test_it_learns_and_measures_by_the_site(tmp_path: Path) -> None:
    task = TaskSettings("transformer", options=OPTIONS, held_out=0.2)
    train = TrainSettings(lr=0.01, optimizer="adamw", batch_size=16, local_steps=60)
    write(tmp_path / "a.h5", counting(150), nbytes=False)
    with open_trainer(
        task, train, ComputeSettings(device="cpu"), data=tmp_path / "a.h5", source=None, group=SerialGroup("a"),
        site="a", seed=0,
    ) as trainer:  # fmt: skip
        before = trainer.summarise(trainer.measure())
        trainer.train(0, trainer.tensors())
        after = trainer.summarise(trainer.measure())
    assert before["perplexity"] == pytest.approx(12, rel=0.05)  # nothing learnt: all tokens alike
    assert after["perplexity"] < 4  # type: ignore[operator]
    assert after["bits_per_byte"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads = 3 does not divide width = 8"), ({"layers": 0}, "must be 1 or more"),
        ({"vocabulary": 1}, "vocabulary = 1"), ({"vocabulary": 2**40}, "vocabulary = "),
        ({"tokenizer_sha256": "x"}, "not a SHA-256"), ({"depth": 3}, "depth"),
    ],
)  # fmt: skip
def test_options_that_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transformer.model(OPTIONS | changes)


def test_stores_that_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [[1, 2]])
    with pytest.raises(
        DataError, match="made with the tokenizer cdcdcdcdcdcdcdcd…, and the federation's is abab"
    ) as no:
        transformer.dataset(path, OPTIONS | {"tokenizer_sha256": "ab" * 32})
    assert "fedhpc data tokenize" in no.value.hint
    with pytest.raises(DataError, match="a vocabulary of 12 tokens, and the model one of 11"):
        transformer.dataset(path, OPTIONS | {"vocabulary": 11})
    assert len(transformer.dataset(path, OPTIONS | {"vocabulary": 20})) == 1


def test_measuring_takes_few_rows_where_the_vocabulary_is_large(tmp_path: Path) -> None:
    write_tokens(tmp_path / "a.h5", [np.arange(9)], vocabulary=50_000, tokenizer_sha256=SHA)
    dataset = transformer.dataset(tmp_path / "a.h5", OPTIONS | {"vocabulary": 50_000, "context": 128})
    assert dataset.measure_rows == 2
    wide = transformer.dataset(tmp_path / "a.h5", OPTIONS | {"vocabulary": 100_000, "context": 128})
    assert wide.measure_rows == 1  # the model makes a logit for each token that it knows, not for each of the store
