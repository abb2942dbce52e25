"""A first model from a folder of safetensors: its rows, its identity, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from thread_ranks import ThreadGroup, run_ranks

from fedhpc.errors import ConfigError, DataError, PolicyError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.first_model import FirstModel
from fedhpc.train.weight_files import StoredValues, open_weights


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(6, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.none = torch.nn.Parameter(torch.ones(2, 0))
        self.head = torch.nn.Linear(3, 6)
        self.head.weight = self.table.weight


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    stored = {n: torch.randn(t.shape) for n, t in Net().state_dict().items() if n != "head.weight"}
    stored["norm.num_batches_tracked"] = torch.tensor(7)
    stored["head.bias"] = stored["head.bias"].to(torch.bfloat16)
    moved = {"norm.weight": stored.pop("norm.weight")}
    del stored["norm.running_mean"]
    save_file(stored, tmp_path / "model-00001.safetensors")
    save_file(moved, tmp_path / "model-00002.safetensors")
    (tmp_path / "README").write_text("not a tensor")
    return tmp_path


def sha256(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("*.safetensors")))).hexdigest()


def test_a_model_is_read_by_its_names(folder: Path) -> None:
    values = open_weights(folder, sha256(folder), SerialGroup(), "a")
    model = FirstModel(Net, values).whole()
    torch.manual_seed(0)
    expected = {n: torch.randn(t.shape) for n, t in Net().state_dict().items() if n != "head.weight"}
    found = model.state_dict()
    for name in ("table.weight", "norm.weight", "norm.bias", "norm.running_var", "scale"):
        assert torch.equal(found[name], expected[name]), name
    assert torch.equal(found["head.bias"], expected["head.bias"].to(torch.bfloat16).float())
    assert found["norm.running_mean"].tolist() == [0.0] * 3, "a buffer that is not there is as model() made it"
    assert found["norm.num_batches_tracked"] == 7
    assert model.head.weight is model.table.weight
    names = ["head.weight", "table.weight"]
    rows = values.rows(names, model.table.weight, 2, 5)
    assert torch.equal(rows, expected["table.weight"][2:5])
    assert values.rows(names, model.table.weight, 6, 6).shape == (0, 3)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

    class More(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(1, 1)

    class Headless(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.head, self.scale

    values = StoredValues(folder)
    with pytest.raises(DataError, match=r"norm\.weight has the shape \[3\], in the task's model it is \[4\]"):
        FirstModel(Wider, values).whole()
    with pytest.raises(DataError, match=r"lacks the tensor more\.weight"):
        FirstModel(More, values).whole()
    with pytest.raises(DataError, match=r"has 2 tensors that the task's model does not have, such as head\.bias"):
        FirstModel(Headless, values).whole()
    for kind in (torch.complex64, torch.int64, torch.bool):
        strange = tmp_path_factory.mktemp("strange")
        save_file({"weight": torch.ones(2, 2).to(kind), "bias": torch.ones(2)}, strange / "a.safetensors")
        with pytest.raises(DataError, match=r"weight is (C64|I64|BOOL), in the task's model it is torch\.float32"):
            FirstModel(lambda: torch.nn.Linear(2, 2), StoredValues(strange)).whole()
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(ConfigError, match="holds no"):
        StoredValues(other)
    (other / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ConfigError, match="holds no") as caught:
        StoredValues(other)
    assert "can run code" in caught.value.hint
    (other / "a.safetensors").write_bytes(b"\x80\x04 nothing of the kind")
    with pytest.raises(DataError, match=r"a\.safetensors is not a safetensors file"):
        StoredValues(other)
    (folder / "model-00003.safetensors").write_bytes((folder / "model-00002.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"has the tensor [\w. ]+ twice"):
        StoredValues(folder)


def test_another_folder_is_refused_by_all_ranks(folder: Path) -> None:
    def rank(group: ThreadGroup) -> str:
        with pytest.raises(PolicyError) as caught:
            open_weights(folder, "0" * 64, group, "a")
        return caught.value.what

    assert set(run_ranks(2, rank)) == {
        f"site a: {folder} is not the model that the federation begins from: its SHA-256 is {sha256(folder)}"
    }

    def absent_at_one(group: ThreadGroup) -> str:
        with pytest.raises(ConfigError) as caught:
            open_weights(folder if group.rank == 0 else folder / "nowhere", sha256(folder), group, "a")
        return caught.value.what

    assert set(run_ranks(2, absent_at_one)) == {f"{folder / 'nowhere'} holds no *.safetensors"}
