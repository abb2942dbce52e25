"""A first model from a folder of safetensors: each rank reads its rows of one tensor after the other.

Read only with safetensors, which holds numbers and no code. The folder's identity is the SHA-256 over its files, one
after the other in the order of their names: `cat FOLDER/*.safetensors | sha256sum`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import torch

from fedhpc.errors import ConfigError, DataError, PolicyError
from fedhpc.mpi.collectives import Group
from fedhpc.mpi.together import together
from fedhpc.train.first_model import Values

_PICKLED = (
    "files of torch.save can run code, so none is read: write the tensors with safetensors.torch.save_file("
    "model.state_dict(), 'model.safetensors')"
)
_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")


class StoredValues(Values):
    """The tensors of a folder, by the names of the model's parameters and buffers."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder has no safetensors, DataError if one of them cannot be read."""
        from safetensors import SafetensorError, safe_open

        self._folder = folder
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            try:
                file = safe_open(path, "pt")
                names = list(file.keys())  # type: ignore[no-untyped-call]
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path} is not a safetensors file: {error}", _PICKLED) from None
            for name in names:
                if name in self._files:
                    raise DataError(f"{folder} has the tensor {name} twice", "keep the files of one model in it")
                self._files[name] = file

    def expect(self, names: Set[str]) -> None:
        """A folder of a larger model, or of another one, is refused: part of it would be another model."""
        if more := sorted(self._files.keys() - names):
            raise DataError(
                f"{self._folder} has {len(more)} tensors that the task's model does not have, such as {more[0]}",
                "it must hold the model that [task] options describe, and nothing else",
            )

    def rows(self, names: Sequence[str], tensor: torch.Tensor, first: int, last: int) -> torch.Tensor | None:
        """What is tied may be in the folder under any of its `names`; a buffer may be missing there."""
        name = next((name for name in names if name in self._files), None)
        if name is None:
            if not isinstance(tensor, torch.nn.Parameter):
                return None
            raise DataError(
                f"{self._folder} lacks the tensor {names[0]}", "its names must be those of the task's model"
            )
        stored = self._files[name].get_slice(name)
        kind = str(stored.get_dtype())
        if tensor.is_floating_point() != (kind in _FLOATS) or kind not in (*_FLOATS, *_INTEGERS):
            raise DataError(
                f"{self._folder}: {name} is {kind}, in the task's model it is {tensor.dtype}",
                f"floating-point tensors are read from {', '.join(_FLOATS)}",
            )
        found, wanted = list(stored.get_shape()), list(tensor.shape)
        if found != wanted:
            raise DataError(f"{self._folder}: {name} has the shape {found}, in the task's model it is {wanted}")
        if not wanted:
            whole: torch.Tensor = self._files[name].get_tensor(name)
            return whole
        if first >= last or not tensor.numel():
            return torch.empty([last - first, *wanted[1:]], dtype=tensor.dtype)
        rows: torch.Tensor = stored[first:last]
        return rows


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of `folder`, in the order of their names. Raises ConfigError if there are none."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.name)
    if not files:
        others = any(folder.glob(f"*.{ending}") for ending in ("bin", "pt", "pth"))
        why = _PICKLED if others else "weights in [data] of the site file names the folder that they lie in"
        raise ConfigError(f"{folder} holds no *.safetensors", why)
    return files


def open_weights(folder: Path, sha256: str, group: Group, site: str) -> StoredValues:
    """The first model in `folder`, if it is the one that all sites agreed on. Collective over the site.

    Raises, on every rank, what StoredValues raises, and PolicyError for another `sha256` (hex).
    """

    def opened() -> StoredValues:
        values = StoredValues(folder)
        if group.rank == 0:
            found = _digest(folder)
            if found != sha256:
                raise PolicyError(
                    f"site {site}: {folder} is not the model that the federation begins from: its SHA-256 is {found}",
                    f"task.weights_sha256 in federation.toml is {sha256}",
                )
        return values

    return together(group, opened)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    try:
        for path in weight_files(folder):
            with path.open("rb") as file:
                while data := file.read(1 << 22):
                    digest.update(data)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    return digest.hexdigest()
