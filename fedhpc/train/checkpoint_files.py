"""One site's checkpoints: an HDF5 file per round, whole and durable, or absent.

    round-000012.h5
      schema_version, sha256      root attributes
      index                       JSON: numbers, hashes, and name, dtype, shape of every array in order
      tensors/000000 …            the arrays, contiguous; names may hold any character, so they are in `index`
      outer/000000 …   private/000000 …   pending/000000 …

`sha256` is over index and the bytes of all arrays in that order. It finds damage; it is not a signature.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from fedhpc.data import hdf5
from fedhpc.errors import DataError, InternalError, StorageError
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.files import private_folder, sync_folder

SCHEMA_VERSION = 2
_WITHOUT_BLIND = 1  # of fedhpc 0.1.0: its model can still be exported, but no run continues from it
LARGEST_JSON = 64 << 20
_NAME = re.compile(r"round-(\d{6,12})\.h5")
_STALE_NAME = r"round-\d{6,12}\.h5"
_DOMAIN = b"fedhpc checkpoint v%d\0"
_GROUPS = ("tensors", "outer", "private", "pending")
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

_Identity = tuple[int, int, int]


class Hdf5Checkpoints:
    """The checkpoints in one directory, of which the newest `keep` (at least 2) whole ones are kept.

    One process writes, the leader of the site; others may read. Files are for their owner only (mode 0600), because
    the private state in them must not leave the site. Raises StorageError if the directory cannot be used.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError("keep at least two checkpoints: sites may have to go back by one round")
        self.directory = directory
        self.keep = keep
        self._whole: dict[int, _Identity] = {}  # files whose digest this process has checked
        self._read_last: tuple[_Identity, Checkpoint] | None = None
        private_folder(directory)
        hdf5.remove_stale(directory, _STALE_NAME)

    def path(self, round_: int) -> Path:
        """Where the checkpoint of `round_` is, or would be."""
        return self.directory / f"round-{round_:06d}.h5"

    def rounds(self) -> list[int]:
        """Rounds with a whole checkpoint, rising. Each file is read once to check its digest; then only its age."""
        return [round_ for round_ in self._files() if self._is_whole(round_)]

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint` atomically and durably, then remove those older than the newest `keep`.

        Raises StorageError if it cannot be written; then all that was there is still there.
        """
        if checkpoint.round_ < 0:
            raise InternalError(f"a checkpoint of round {checkpoint.round_}", "please report it")
        groups = {group: _storable(group, getattr(checkpoint, group)) for group in _GROUPS}
        index = _json(
            {
                "round": checkpoint.round_,
                "sums": checkpoint.sums,
                "config": checkpoint.config.hex(),
                "ledger": checkpoint.ledger.hex(),
                "whole": checkpoint.whole,
                "blind": checkpoint.blind.hex(),
                **{group: [_entry(name, array) for name, array in groups[group].items()] for group in _GROUPS},
            }
        )
        path = self.path(checkpoint.round_)
        with hdf5.new_file(path) as file:
            digest = hashlib.sha256(_DOMAIN % SCHEMA_VERSION)
            file.create_dataset("index", data=np.frombuffer(index, np.uint8))
            _hash(digest, index)
            for group in _GROUPS:
                target = file.create_group(group)
                for number, array in enumerate(groups[group].values()):
                    target.create_dataset(f"{number:06d}", data=_stored_form(array))
                    _hash(digest, array.reshape(-1).view(np.uint8))
            file.attrs["schema_version"] = np.int64(SCHEMA_VERSION)
            hdf5.put_text(file, "sha256", digest.hexdigest())
        self._whole[checkpoint.round_] = _identity(path)
        self._read_last = None
        self._prune(checkpoint.round_)

    def load(self, round_: int) -> Checkpoint:
        """The checkpoint of `round_`, its digest checked. Raises DataError if it is missing or damaged.

        What `rounds` has just read to check it is handed out once, and not read again: a large model takes seconds.
        """
        read, self._read_last = self._read_last, None
        if read is not None and read[1].round_ == round_ and self._whole.get(round_) == read[0]:
            return read[1]
        checkpoint = _read(self.path(round_))
        if checkpoint.round_ != round_:
            raise DataError(
                f"{self.path(round_)} holds round {checkpoint.round_}", "it was renamed; give it its old name back"
            )
        return checkpoint

    def discard_after(self, round_: int) -> None:
        """Remove the checkpoints newer than `round_`, damaged ones too. Raises StorageError."""
        newer = [number for number in self._files() if number > round_]
        try:
            for number in newer:
                self.path(number).unlink(missing_ok=True)
                self._whole.pop(number, None)
            if newer:
                sync_folder(self.directory)
        except OSError as error:
            raise StorageError(f"cannot remove a checkpoint: {error}", f"check {self.directory}") from None

    def _files(self) -> list[int]:
        try:
            names = os.listdir(self.directory)
        except OSError as error:
            raise StorageError(f"cannot list {self.directory}: {error.strerror}", "check the file system") from None
        numbers = [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]
        return sorted(number for number in numbers if self.path(number).name in names)

    def _is_whole(self, round_: int) -> bool:
        path = self.path(round_)
        try:
            identity = _identity(path)
            if self._whole.get(round_) != identity:
                self._read_last = None  # one in memory, not two
                checkpoint = self.load(round_)
                self._whole[round_] = identity
                self._read_last = identity, checkpoint
        except (DataError, FileNotFoundError):
            self._whole.pop(round_, None)
            return False
        except OSError as error:  # not damage: calling it so would start the federation over
            raise StorageError(f"cannot read {path}: {error.strerror}", "check the file system") from None
        return True

    def _prune(self, newest: int) -> None:
        """Remove what is older than the `keep` newest whole checkpoints up to `newest`, the one just written."""
        whole = [round_ for round_ in self.rounds() if round_ <= newest]
        if len(whole) >= self.keep:
            for round_ in self._files():
                if round_ < whole[-self.keep]:
                    with suppress(OSError):  # the new checkpoint is safe; an old one that stays does no harm
                        self.path(round_).unlink()
                    self._whole.pop(round_, None)


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _json(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    if len(text) > LARGEST_JSON:
        raise StorageError(f"names of {len(text)} bytes", f"a checkpoint holds {LARGEST_JSON}")
    return text


def _storable(group: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays, contiguous and little-endian, so that their bytes are the same on every machine."""
    result = {}
    for name, array in arrays.items():
        dtype = np.asarray(array).dtype
        if dtype.newbyteorder("=").name not in _DTYPES:
            raise InternalError(f"checkpoint: {group} '{name}' has dtype {dtype}", f"possible: {', '.join(_DTYPES)}")
        result[name] = np.asarray(array, dtype.newbyteorder("<"), order="C")
    return result


def _entry(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "dtype": array.dtype.newbyteorder("=").name, "shape": list(array.shape)}


def _stored_form(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(np.uint8) if array.dtype == np.bool_ else array  # HDF5 has no bool


def _hash(digest: Any, data: bytes | NDArray[np.uint8]) -> None:
    """Length first, so that no byte can move from one part to the next."""
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _read(path: Path) -> Checkpoint:
    """The checkpoint in `path`, or DataError."""
    hint = "an older checkpoint is used if there is one; remove this file"
    file = hdf5.open_file(path)
    try:
        version = hdf5.get_integer(file, "schema_version")
        if version not in (_WITHOUT_BLIND, SCHEMA_VERSION):
            raise DataError(f"{path} has schema version {version}, not {SCHEMA_VERSION}", "use the same fedhpc")
        digest = hashlib.sha256(_DOMAIN % version)
        index = json.loads(_read_json(file, "index", digest))
        groups: dict[str, dict[str, NDArray[Any]]] = {}
        for group in _GROUPS:
            groups[group] = {}
            for number, entry in enumerate(index.get(group, [])):
                array = _read_array(file, f"{group}/{number:06d}", entry["dtype"], tuple(entry["shape"]))
                _hash(digest, array.reshape(-1).view(np.uint8))
                groups[group][entry["name"]] = array
        if hdf5.get_text(file, "sha256", 64) != digest.hexdigest():
            raise DataError(f"{path} is damaged: its content does not have its SHA-256", hint)
        return Checkpoint(
            round_=int(index["round"]),
            sums=int(index["sums"]),
            config=bytes.fromhex(index["config"]),
            ledger=bytes.fromhex(index["ledger"]),
            whole=index.get("whole") is True,
            blind=bytes.fromhex(index["blind"]) if version == SCHEMA_VERSION else b"",
            **cast(Any, groups),
        )
    except (*hdf5.DAMAGE, RecursionError) as error:
        raise DataError(f"{path} is damaged: {' '.join(str(error).split())[:200]}", hint) from None
    finally:
        file.close()


def _read_json(file: h5py.File, name: str, digest: Any) -> bytes:
    dataset = hdf5.get_dataset(file, name, ["uint8"])
    if dataset.ndim != 1 or dataset.shape[0] > LARGEST_JSON:
        raise ValueError(f"{name} is too large")
    text = bytes(dataset[:])
    _hash(digest, text)
    return text


def _read_array(file: h5py.File, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype not in _DTYPES:
        raise ValueError(f"{name} has dtype {dtype}")
    dataset = hdf5.get_dataset(file, name, ["uint8" if dtype == "bool" else dtype])
    if dataset.shape != shape or dataset.chunks is not None:
        raise ValueError(f"{name} has shape {dataset.shape}, not {shape}")
    array = np.empty(shape, np.uint8 if dtype == "bool" else dtype)
    if math.prod(shape):
        dataset.read_direct(array)
    return array.view(np.bool_) if dtype == "bool" else array
