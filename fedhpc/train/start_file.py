"""A model as a safetensors file that an epoch begins from: `fedhpc federation next --from-model`, and the run after it.

Read only with safetensors, which holds numbers and no code. Its identity is the SHA-256 over the tensors, in the order
of the model's layout; a file of `fedhpc export` has that order in its header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.config import read_section
from fedhpc.errors import ConfigError, DataError, PolicyError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import Forms, forms_of
from fedhpc.federation.state_tensors import model_sha256
from fedhpc.train.linear.logistic_model import first_tensors
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.settings import TaskSettings

LAYOUT, SHA256 = "layout", "model_sha256"  # in the header of an exported file
GUESSABLE = 16  # numbers; a model with fewer could be found from its hash, by trying

_ABSENT = "`fedhpc export RUN model.safetensors` writes such a file"

_PICKLED = (
    "files of torch.save can run code, so none is read: write the same tensors with safetensors.torch.save_file("
    "model.state_dict(), 'model.safetensors')"
)


@dataclass(frozen=True)
class StartFile:
    """The tensors of a file, by name, and what its header says of them."""

    path: Path
    tensors: Tensors = field(repr=False)
    layout: tuple[str, ...]  # names in the order of the model; empty if the header has none
    sha256: str  # as the header says; empty if it does not
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)  # the header's texts

    def ordered(self, names: Iterable[str]) -> Tensors:
        """The tensors in the order of `names`. Raises DataError if the file has other ones."""
        wanted = list(names)
        other = sorted(set(wanted) ^ set(self.tensors))
        if other:
            which = "lacks" if other[0] in wanted else "also has"
            raise DataError(f"{self.path} holds another model: it {which} the tensor {other[0]}", _ABSENT)
        return {name: self.tensors[name] for name in wanted}

    def fit(self, built: Forms, sha256: str, site: str) -> Tensors:
        """The tensors, if they fit the model `built` and are those of the `sha256` that all sites agreed on.

        Raises DataError for other names, shapes or dtypes, PolicyError for another hash.
        """
        tensors = self.ordered(built)
        for name, tensor in tensors.items():
            found, wanted = (f"{t.dtype} {list(t.shape)}" for t in (tensor, built[name]))
            if found != wanted:
                raise DataError(f"{self.path}: {name} is {found}, in this federation's task it is {wanted}", _ABSENT)
        found = model_sha256(tensors)
        if found != sha256:
            raise PolicyError(
                f"site {site}: {self.path} is not the model that the federation begins from: its SHA-256 is {found}",
                f"start.model in federation.toml is {sha256}; ask the coordinator for the file",
            )
        return tensors


def read_start_file(path: Path) -> StartFile:
    """Raises ConfigError if there is no such file, DataError if it is not a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConfigError(f"cannot read {path}: no such file", _ABSENT)
    try:
        with safe_open(path, "numpy") as file:
            said: Mapping[str, str] = file.metadata() or {}
            tensors = {str(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        layout = json.loads(said.get(LAYOUT, "[]"))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = " ".join(str(error).split())[:200]
        hint = _PICKLED if _is_pickled(path) else _ABSENT
        raise DataError(f"{path} is not a safetensors file with float32 or float64 tensors: {what}", hint) from None
    if not isinstance(layout, list) or not all(isinstance(name, str) for name in layout):
        raise DataError(f"{path}: the layout in its header is not a list of names", _ABSENT)
    return StartFile(path, tensors, tuple(layout), str(said.get(SHA256, "")), dict(said))


def _is_pickled(path: Path) -> bool:
    """Whether it looks like a file of torch.save: a zip archive, or a pickle."""
    try:
        with open(path, "rb") as file:
            return file.read(4)[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def agreed_sha256(path: Path, task: Mapping[str, Any], *, public: bool) -> str:
    """The value of `start.model` for the file at `path`. `task`: its [task]. `public`: no federation made it.

    Raises ConfigError for a model that could be guessed from its hash, or whose order is not known; DataError for a
    file that is damaged.
    """
    file = read_start_file(path)
    numbers = sum(tensor.size for tensor in file.tensors.values())
    if numbers < GUESSABLE and not public:
        raise ConfigError(
            f"{path} holds {numbers} numbers: the hash of so small a model gives it away to anyone who tries them all",
            "`fedhpc federation next` without a file goes on from the federation's newest model; "
            "--public if no federation made this one",
        )
    found = model_sha256(file.ordered(file.layout or _layout_of(task, path)))
    if file.sha256 and found != file.sha256:
        raise DataError(
            f"{path} is damaged: its tensors have the SHA-256 {found}, its header says {file.sha256}", _ABSENT
        )
    return found


def fitting_file(path: Path, task: Mapping[str, Any]) -> StartFile:
    """A file whose tensors are those that the built-in `task` builds, in their order, with their SHA-256.

    Raises ConfigError if there is no such file, DataError for other names, shapes or dtypes and for a damaged one.
    """
    agreed = agreed_sha256(path, task, public=True)
    tensors = read_start_file(path).fit(_forms_of(task), agreed, "all")
    return StartFile(path, tensors, tuple(tensors), agreed)


def _layout_of(task: Mapping[str, Any], path: Path) -> list[str]:
    """The order of the tensors in the model of a built-in task."""
    if task.get("name") == "module":
        raise ConfigError(
            f"{path} does not say in which order the model has its tensors",
            f'add "{LAYOUT}" to its metadata, a JSON list of their names in the order of state_dict()',
        )
    return list(_forms_of(task))


def _forms_of(task: Mapping[str, Any]) -> Forms:
    """The shared tensors that a built-in task builds, by name, in their order."""
    settings = read_section(TaskSettings, task, "task")
    if settings.name == "logistic":  # without torch, where it trains without it
        options = read_section(LogisticOptions, settings.options, "task.options")
        return forms_of(first_tensors(options.features))
    from fedhpc.train.held_model import forms_of_model
    from fedhpc.train.state import split_state
    from fedhpc.train.tasks.loader import load_task

    return forms_of_model(split_state(load_task(settings).model(settings.options, 0))[0])
