"""A loss that couples rows, and sums that are none, are found at the start; what is independent is let through."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from train_fakes import Net, make_task, make_trainer, rows

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.row_check import check_rows
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.tasks import cnn, logistic, mlp
from fedhpc.train.trainer import TorchTrainer

SGD = TrainSettings(optimizer="sgd", lr=0.01, batch_size=8, local_steps=3)


class Zeros(torch.nn.Module):
    """Linear, from zeros: many losses do not differ there."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, outputs)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).squeeze(1)


def check(
    loss: Callable[..., torch.Tensor] | None = None,
    sums: Callable[..., dict[str, torch.Tensor]] | None = None,
    model: torch.nn.Module | None = None,
    settings: TrainSettings = SGD,
    labels: Any = None,
    standardise: bool = False,
    n: int = 53,
    dataset: Any = None,
) -> None:
    functions = {k: v for k, v in (("loss", loss), ("sums", sums)) if v is not None}
    task = make_task(**functions)
    task.built_in = False
    with make_trainer(settings, model=model or Zeros(), task=task, n=n, dataset=dataset) as trainer:
        check_rows(task, trainer, settings, seed=0, labels=labels, standardise=standardise)


def scores(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model(batch[0]), batch[1]


def cox(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    risk, time = scores(model, batch)
    later = time[None, :] >= time[:, None]
    return (torch.logsumexp(torch.where(later, risk[None, :], -torch.inf), 1) - risk).mean()


def cox_of_events(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """No value without an event."""
    risk, time = scores(model, batch)
    event = time > time.median()
    later = time[None, :] >= time[:, None]
    own = torch.logsumexp(torch.where(later, risk[None, :], -torch.inf), 1) - risk
    return own[event].sum() / event.sum()


def ranking(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Its value at zero weights is the margin, whatever the rows."""
    score, y = scores(model, batch)
    above = y[:, None] > y[None, :]
    return functional.relu(1 - (score[:, None] - score[None, :]))[above].mean()


def ranking_of_plenty(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    assert len(batch[1]) > 20, "too few pairs"
    return ranking(model, batch)


def contrastive(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    z = functional.normalize(model.linear(batch[0]) + batch[0][:, :3], dim=1)
    return functional.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))


def hardest(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    z, y = model.linear(batch[0]) + 0.1 * batch[0][:, :3], batch[1] > 0
    apart = torch.cdist(z, z)
    same = y[:, None] == y[None, :]
    positive = (apart * same).max(1).values
    negative = torch.where(same, torch.inf, apart).min(1).values
    return functional.relu(positive - negative + 1).mean()


def class_weighted(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    score, y = scores(model, batch)
    target = (y > 0).float()
    weight = 1 + 9 * target
    return (weight * functional.binary_cross_entropy_with_logits(score, target, reduction="none")).sum() / weight.sum()


def torch_weighted(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    score, y = scores(model, batch)
    logits = torch.stack([-score, score], 1)
    return functional.cross_entropy(logits, (y > 0).long(), weight=torch.tensor([1.0, 9.0]))


def ignoring(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    score, y = scores(model, batch)
    target = torch.where(y > 2, -100, (y > 0).long())
    return functional.cross_entropy(torch.stack([-score, score], 1), target)


def dice(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    score, y = scores(model, batch)
    p, t = torch.sigmoid(score), (y > 0).float()
    return 1 - 2 * (p * t).sum() / (p + t).sum()


def summed(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    score, y = scores(model, batch)
    return functional.mse_loss(score, y, reduction="sum")


def centred(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    score, y = scores(model, batch)
    return functional.mse_loss(score - score.mean(), y - y.mean())


def balanced(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Flat at zero weights, whatever the rows."""
    score, y = scores(model, batch)
    p = torch.sigmoid(score).mean()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    return functional.binary_cross_entropy_with_logits(score, (y > 0).float()) - entropy


def pairs(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Rows 0 and 1, 2 and 3, …; the last of an odd number is left out."""
    score, y = scores(model, batch)
    even = len(y) // 2 * 2
    return ((score[0:even:2] - score[1:even:2]) - (y[0:even:2] - y[1:even:2])).square().mean()


COUPLED = {
    "pairs of neighbours": pairs,
    "cox": cox, "cox of events": cox_of_events, "ranking": ranking, "ranking of plenty": ranking_of_plenty,
    "class weights": class_weighted, "torch's class weights": torch_weighted, "ignored rows": ignoring, "dice": dice,
    "sum": summed, "centred": centred, "entropy of the mean": balanced,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["zeros", "drawn"])
@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_couples_rows_is_refused(name: str, kind: str) -> None:
    model = Zeros() if kind == "zeros" else Net(dropout=0.3)
    with pytest.raises(ConfigError) as caught:
        check(COUPLED[name], model=model)
    assert caught.value.what.startswith("site a: loss() of task fake ")
    assert 'rows = "coupled"' in caught.value.hint


def contrastive_in_training(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    score, y = scores(model, batch)
    loss = functional.mse_loss(score, y)
    if model.training:
        loss = loss + torch.logsumexp(-(score[:, None] - score[None, :]).square(), 1).mean()
    return loss


class CentredInTraining(Zeros):
    """A normaliser of one's own, which torch does not know as one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = super().forward(x)
        return score - score.mean() if self.training else score


@pytest.mark.parametrize(("loss", "model"), [(contrastive_in_training, Net(dropout=0.3)), (None, CentredInTraining())])
def test_what_couples_rows_in_training_only_is_refused(loss: Any, model: torch.nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"loss\(\) of task fake is not the mean over rows"):
        check(loss, model=model)


def test_pairs_of_neighbours_are_refused_among_many_rows() -> None:
    """Sixty-four rows could be taken apart without breaking up a pair."""
    with pytest.raises(ConfigError, match="is not the mean over rows"):
        check(pairs, model=Net(), n=200)


@pytest.mark.parametrize("loss", [contrastive, hardest])
def test_losses_of_embeddings_are_refused(loss: Any) -> None:
    with pytest.raises(ConfigError, match=r"loss\(\) of task fake"):
        check(loss, model=Zeros(3))


def test_classes_come_into_the_look_from_the_labels() -> None:
    """One row of a thousand has weight: no random sixty-four rows would show it."""
    data = rows(2000)
    data.tensors[1][:] = -1
    data.tensors[1][1234] = 1
    labels = (data.tensors[1] > 0).numpy()
    check(class_weighted, n=2000, dataset=data)
    with pytest.raises(ConfigError, match=r"is not the mean over rows"):
        check(class_weighted, n=2000, dataset=data, labels=labels)


class Vae(torch.nn.Module):
    """Draws whatever the mode is."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log = self.encode(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log)
        return self.decode(z), (mean.square() + log.exp() - log - 1).sum(1)


def vae(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    again, divergence = model(batch[0])
    return functional.mse_loss(again, batch[0]) + 0.5 * divergence.mean()


def vae_sums(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    return {"n": torch.tensor(len(batch[1])), "loss": vae(model, batch) * len(batch[1])}


def penalised(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """A gradient within the loss, and a penalty on the weights."""
    x = batch[0].clone().requires_grad_(True)
    score = model(x)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    weights = sum(p.square().sum() for p in model.parameters())
    return functional.mse_loss(score, batch[1]) + slope.square().mean() + 0.01 * weights


def only_in_training(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    assert model.training, "a detector gives its losses only in training"
    return functional.mse_loss(model(batch[0]), batch[1])


class Recurrent(torch.nn.Module):
    """Layers with a dropout of their own, and one that is a function; they drop in training."""

    def __init__(self) -> None:
        super().__init__()
        self.read = torch.nn.LSTM(1, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.look = torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
        self.last = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.look(self.read(x[:, :, None])[0])[:, -1]
        return self.last(functional.dropout(hidden, 0.5, self.training)).squeeze(1)


INDEPENDENT: dict[str, tuple[Any, Any, Any]] = {
    "plain": (None, Net(dropout=0.0, norm=False), None),
    "zeros": (None, Zeros(), None),
    "batch norm and dropout": (None, Net(dropout=0.5), None),
    "recurrent": (None, Recurrent(), None),
    "noise in training": (
        lambda m, b: functional.mse_loss(m(b[0] + m.training * torch.randn_like(b[0])), b[1]), Net(), None,
    ),
    "in training only": (only_in_training, Net(dropout=0.5), None),
    "gradient penalty": (penalised, Net(norm=False), None),
    "vae": (vae, Vae(), vae_sums),
    "half": (
        lambda model, batch: functional.mse_loss(model(batch[0].bfloat16()).float(), batch[1]),
        Net(norm=False).bfloat16(),
        lambda model, batch: {"n": torch.tensor(len(batch[1]))},
    ),
    "not finite yet": (lambda model, batch: scores(model, batch)[0].mean() * torch.inf, Net(), None),
    "weighted rows": (
        lambda model, batch: ((1 + 9 * (batch[1] > 0)) * (model(batch[0]) - batch[1]).square()).mean(), Zeros(), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_what_is_independent_is_let_through(name: str, precision: Any) -> None:
    loss, model, sums = INDEPENDENT[name]
    check(loss, sums, model=model, settings=dataclasses.replace(SGD, precision=precision))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9, 1e18])
def test_units_of_features_do_not_matter(scale: float) -> None:
    data = rows()
    data.tensors[0].mul_(scale)
    for standardise in (False, True):
        check(model=Net(), dataset=data, standardise=standardise)
        with pytest.raises(ConfigError, match=r"loss\(\)"):
            check(centred, model=Net(), dataset=data, standardise=True)


def test_a_loss_that_needs_standardised_features_is_looked_at_with_them() -> None:
    def poisson(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        rate = torch.exp(model(batch[0]))
        return (rate - batch[1] * model(batch[0])).sum() / rate.sum()

    data = rows()
    data.tensors[0].mul_(1e9)
    with pytest.raises(ConfigError, match="is not the mean over rows"):
        check(poisson, model=Net(), dataset=data, standardise=True)


def test_fewer_rows_where_so_many_do_not_fit() -> None:
    calls: list[int] = []

    def full(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        calls.append(len(batch[1]))
        if len(batch[1]) > 8:
            raise torch.cuda.OutOfMemoryError("as on a GPU")
        return centred(model, batch)

    with pytest.raises(ConfigError, match="is not the mean over rows"):
        check(full)
    assert max(calls) == 43
    calls.clear()
    with pytest.raises(ConfigError, match="is not the mean over rows"):  # rows of 40 MB each
        check(lambda model, batch: full(model, (batch[0][:, :5], batch[1])), dataset=Large())
    assert max(calls) == 8


class Large(torch.utils.data.Dataset[Any]):
    """Rows that take memory only when they are read, and then no pages."""

    def __init__(self) -> None:
        self.data = rows()

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, chosen: Any) -> Any:
        x, y = self.data[chosen]
        return Wide(x), y


class Wide(torch.Tensor):
    """Says that it is large."""

    @property
    def nbytes(self) -> int:
        return 40_000_000 * len(self)


def test_a_batch_may_have_any_form() -> None:
    """Dictionaries, texts, a list of tensors of many sizes; and what does not show its rows is read again."""

    class Forms(torch.utils.data.Dataset[Any]):
        def __init__(self, form: str) -> None:
            self.form, self.data = form, rows()

        def __len__(self) -> int:
            return len(self.data)

        def rows(self, chosen: Any) -> Any:
            x, y = self.data[chosen]
            if self.form == "table":
                return {"x": x, "more": {"y": y, "names": [str(row) for row in chosen]}}
            if self.form == "ragged":
                return [torch.ones(1 + k % 3) for k in range(len(y))], x, y
            return types.SimpleNamespace(x=x, y=y)

    def plain(form: str, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if form == "table":
            assert len(batch["more"]["names"]) == len(batch["x"])
            return batch["x"], batch["more"]["y"]
        if form == "ragged":
            assert len(batch[0]) == len(batch[1])
            return batch[1], batch[2]
        return batch.x, batch.y

    for form in ("table", "ragged", "object"):
        numbers = lambda model, batch, form=form: {"n": torch.tensor(len(plain(form, batch)[1]))}  # noqa: E731
        check(
            lambda m, b, form=form: functional.mse_loss(m(plain(form, b)[0]), plain(form, b)[1]),
            numbers,
            dataset=Forms(form),
        )
        with pytest.raises(ConfigError, match=r"loss\(\) of task fake is not the mean over rows"):
            check(lambda m, b, form=form: centred(m, plain(form, b)), numbers, dataset=Forms(form))


def concordance(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    score, y = scores(model, batch)
    right = (score[:, None] > score[None, :]) == (y[:, None] > y[None, :])
    return {"n": torch.tensor(len(y)), "concordance": right.double().mean() * len(y)}


SUMS: dict[str, tuple[Any, str]] = {
    "concordance": (concordance, "gives 'concordance'"),
    "pairs": (lambda m, b: {"n": torch.tensor(len(b[1])), "pairs": (m(b[0])[:, None] > m(b[0])).sum()}, "'pairs'"),
    "mean": (lambda m, b: {"n": torch.tensor(len(b[1])), "error": (m(b[0]) - b[1]).abs().mean()}, "'error'"),
    "largest": (lambda m, b: {"n": torch.tensor(len(b[1])), "worst": (m(b[0]) - b[1]).abs().max()}, "'worst'"),
    "batches": (lambda m, b: {"n": torch.tensor(1)}, "'n'"),
    "rows": (lambda m, b: {"n": torch.tensor(len(b[1])), "error": m(b[0]) - b[1]}, "other names or shapes"),
    "names": (lambda m, b: {"n": torch.tensor(len(b[1]))} | ({"a": b[1].sum()} if len(b[1]) > 20 else {}), "other nam"),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_are_none_are_refused(name: str) -> None:
    sums, words = SUMS[name]
    with pytest.raises(ConfigError, match=words) as caught:
        check(sums=sums, model=Net())
    assert "docs/tasks.md" in caught.value.hint


def test_sums_that_fail_on_a_part_are_refused() -> None:
    def sums(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        assert 0 < (batch[1] > 0).sum() < len(batch[1]), "only one class"
        return {"n": torch.tensor(len(batch[1]))}

    data = rows()
    with pytest.raises(ConfigError, match="has no value for a part"):
        check(sums=sums, dataset=data, labels=(data.tensors[1] > 0).numpy())


def test_training_does_not_notice() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.register_buffer("moving", torch.zeros(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.moving = 0.9 * self.moving + x.mean(0).detach()
            return super().forward(x)

    found = []
    for looked in (False, True):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        task, model = make_task(), Counting()
        task.built_in = False
        with make_trainer(SGD, model=model, task=task) as trainer:
            if looked:
                check_rows(task, trainer, SGD, seed=0, standardise=True)
                assert model.calls == 0
            drawn = [torch.rand(1).item(), np.random.random(), random.random()]
            assert all(p.grad is None for p in model.parameters())
            trainer.train(1, trainer.tensors())
            state = [t.tobytes() for t in (*trainer.tensors().values(), *trainer.private().values())]
            found.append((drawn, model.calls, model.training, state))
    assert found[0] == found[1]


@pytest.mark.parametrize("n", [11, 12, 13])
def test_a_site_of_few_rows_is_not_looked_at(n: int) -> None:
    check(cox, n=n)
    with pytest.raises(ConfigError):
        check(cox, n=17)


def test_what_says_that_it_is_coupled_keeps_its_batches_whole() -> None:
    sizes: list[int] = []

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        sizes.append(len(batch[1]))
        return cox(model, batch)

    task = make_task(loss=loss, rows="coupled", sums=concordance)
    task.built_in = False
    with make_trainer(dataclasses.replace(SGD, local_epochs=1, local_steps=0), task=task, model=Zeros()) as trainer:
        check_rows(task, trainer, SGD, seed=0)
        trainer.train(1, trainer.tensors())
    assert sizes == [8, 8, 8, 8, 8, 3]
    with pytest.raises(ConfigError, match=r'says rows = "coupled", and train.accumulation = 2'):
        make_trainer(dataclasses.replace(SGD, accumulation=2), task=task, model=Zeros())
    group = SerialGroup("site a")
    group.size = 2
    with pytest.raises(ConfigError, match=r'says rows = "coupled", and 2 ranks'):
        make_trainer(SGD, task=task, model=Zeros(), group=group)


@pytest.mark.parametrize(("held_out", "calls"), [(1500, [1500]), (0, [1024])])
def test_coupled_sums_get_all_held_out_rows_in_one_call(held_out: int, calls: list[int]) -> None:
    seen: list[int] = []

    def sums(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        seen.append(len(batch[1]))
        return concordance(model, batch) | {"undefined": torch.tensor(torch.nan)}

    task = make_task(sums=sums, rows="coupled")
    with make_trainer(SGD, task=task, model=Net(), n=3000, held_out=held_out, dataset=rows(3000)) as trainer:
        found = trainer.measure()
    assert seen == calls
    assert found["n"] == held_out
    if not held_out:
        assert not any(value.any() for value in found.values())


def test_rows_is_one_of_two_words() -> None:
    with pytest.raises(ConfigError, match='says rows = "couple"'):
        make_task(rows="couple")
    assert make_task(rows=lambda indices: indices).rows == "independent"
    assert make_task().rows == "independent"


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("n", [65 - 32, 33, 34])
def test_a_last_batch_of_one_row_does_not_stop_batch_norm(n: int, accumulation: int) -> None:
    settings = TrainSettings(lr=0.01, batch_size=16, local_epochs=2, accumulation=accumulation)
    with make_trainer(settings, model=Net(), n=n, held_out=0) as trainer:
        result = trainer.train(1, trainer.tensors())
    assert result.steps == 2 * (2 if n == 33 else 3)


def test_a_site_of_one_row_trains_with_batch_norm() -> None:
    with make_trainer(SGD, model=Net(), n=1, held_out=0) as trainer:
        check_rows(make_task(), trainer, SGD, seed=0)
        assert trainer.train(1, trainer.tensors()).steps == 3


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (4, 4), (7, 4)])
def test_batch_norm_is_refused_where_the_settings_leave_it_one_row(batch_size: int, accumulation: int) -> None:
    settings = TrainSettings(lr=0.01, batch_size=batch_size, local_steps=2, accumulation=accumulation)
    with pytest.raises(ConfigError, match=f"batch_size = {batch_size} over 1 ranks with accumulation = {accumulation}"):
        check(model=Net(), settings=settings)
    check(model=Net(norm=False), settings=settings)
    check(model=Net(), settings=dataclasses.replace(settings, batch_size=8))
    if batch_size > 1:
        check(model=Net(), settings=settings, n=10 + batch_size - 1)  # so few rows are no fault of the settings


def test_the_documented_survival_task(tmp_path: Path) -> None:
    """docs/tasks.md: it says that it is coupled, and is refused where it does not say so; it learns."""
    document = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text()
    (source,) = re.findall(r"(?ms)^```python\n(# survival\.py.*?)^```$", document)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((120, 3)).astype(np.float32)
    time = draw.exponential(np.exp(-x @ [1.0, -0.5, 0.0])).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.stack([time, (time < 2).astype(np.float32)], 1))

    def opened(text: str, **settings: Any) -> TorchTrainer:
        (tmp_path / "task.py").write_text(text)
        task = TaskSettings("module", hashlib.sha256(text.encode()).hexdigest(), options={"inputs": 3})
        train = TrainSettings(lr=0.3, batch_size=32, local_epochs=5, **settings)
        return open_trainer(
            task, train, ComputeSettings(device="cpu"), data=tmp_path / "a.npz", source=tmp_path / "task.py",
            group=SerialGroup("site a"), site="a", seed=0,
        )  # fmt: skip

    with opened(source) as trainer:
        before = trainer.summarise(trainer.measure())
        trainer.train(1, trainer.tensors())
        after = trainer.summarise(trainer.measure())
    assert before["concordance"] < after["concordance"]  # type: ignore[operator]
    assert after["concordance"] > 0.6  # type: ignore[operator]
    silent = source.replace('rows = "coupled"', "")
    assert silent != source
    with pytest.raises(ConfigError, match=r"site a: loss\(\) of task .*task.py is not the mean over rows"):
        opened(silent)
    with pytest.raises(ConfigError, match="accumulation = 2 would take a batch apart"):
        opened(source, accumulation=2)


@pytest.mark.parametrize(
    ("module", "options", "shape"),
    [
        (logistic, {"features": 5}, (5,)), (mlp, {"features": 5, "dropout": 0.3}, (5,)),
        (mlp, {"features": 5, "classes": 3}, (5,)), (cnn, {"classes": 3, "side": 8}, (1, 8, 8)),
    ],
)  # fmt: skip
def test_the_built_in_tasks_pass(module: Any, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    y = torch.arange(53) % options.get("classes", 2)
    x = torch.randn(53, *shape, generator=torch.Generator().manual_seed(0))
    check(
        module.loss, module.sums, model=module.model(options), standardise=True,
        dataset=torch.utils.data.TensorDataset(x, y), labels=y.numpy(),
    )  # fmt: skip
