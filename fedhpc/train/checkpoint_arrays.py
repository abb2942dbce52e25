"""Named arrays and facts about them in one HDF5 file, whole or absent, with a digest over all.

      schema_version, sha256      root attributes
      index                       JSON: the facts, and name, dtype, shape of every array in order, by group
      GROUP/000000 …              the arrays, contiguous; names may hold any character, so they are in `index`

`sha256` is over index and the bytes of all arrays in that order. It finds damage; it is not a signature.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from fedhpc.data import hdf5
from fedhpc.errors import DataError, InternalError, StorageError
from fedhpc.federation.checkpoint import Checkpoint

LARGEST_JSON = 64 << 20
DAMAGED_HINT = "an older checkpoint is used if there is one; remove this file"
_DOMAIN = b"fedhpc checkpoint v%d\0"
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

Groups = Mapping[str, Mapping[str, NDArray[Any]]]


def write_arrays(path: Path, version: int, facts: Mapping[str, Any], groups: Groups) -> str:
    """Write `groups` of arrays by name, atomically and durably; gives the file's SHA-256 in hex. Raises StorageError.

    `facts`: what JSON holds, none of the names of groups.
    """
    stored = {group: _storable(group, arrays) for group, arrays in groups.items()}
    listed = {group: [_entry(name, array) for name, array in arrays.items()] for group, arrays in stored.items()}
    index = _json({**facts, **listed})
    with hdf5.new_file(path) as file:
        digest = hashlib.sha256(_DOMAIN % version)
        file.create_dataset("index", data=np.frombuffer(index, np.uint8))
        _hash(digest, index)
        for group, arrays in stored.items():
            target = file.create_group(group)
            for number, array in enumerate(arrays.values()):
                target.create_dataset(f"{number:06d}", data=_stored_form(array))
                _hash(digest, array.reshape(-1).view(np.uint8))
        file.attrs["schema_version"] = np.int64(version)
        hdf5.put_text(file, "sha256", digest.hexdigest())
    return str(digest.hexdigest())


class Stored(NamedTuple):
    """What a file holds: the facts as JSON gave them, and arrays by group and name."""

    version: int
    facts: dict[str, Any]
    groups: dict[str, dict[str, NDArray[Any]]]
    sha256: str


def read_arrays(path: Path, versions: Sequence[int], groups: Sequence[str], *, keep: bool = True) -> Stored:
    """The content of a file with one of `versions`. Raises DataError if it is damaged.

    `keep`: False to check the arrays only.
    """
    file = hdf5.open_file(path)
    try:
        version = hdf5.get_integer(file, "schema_version")
        if version not in versions:
            raise DataError(f"{path} has schema version {version}, not {versions[-1]}", "use the same fedhpc")
        digest = hashlib.sha256(_DOMAIN % version)
        index = json.loads(_read_json(file, "index", digest))
        found: dict[str, dict[str, NDArray[Any]]] = {}
        for group in groups:
            found[group] = {}
            for number, entry in enumerate(index.get(group, [])):
                array = _read_array(file, f"{group}/{number:06d}", entry["dtype"], tuple(entry["shape"]))
                _hash(digest, array.reshape(-1).view(np.uint8))
                if keep:
                    found[group][entry["name"]] = array
        if hdf5.get_text(file, "sha256", 64) != digest.hexdigest():
            raise DataError(f"{path} is damaged: its content does not have its SHA-256", DAMAGED_HINT)
        return Stored(version, index, found, digest.hexdigest())
    except (*hdf5.DAMAGE, RecursionError) as error:
        raise damaged(path, error) from None
    finally:
        file.close()


def signed_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What all sites of a job signed of a checkpoint's state, and the best round, as facts of its file."""
    return {
        "exchange": checkpoint.exchange,
        "signed": [message.decode("ascii") for message in checkpoint.signed],
        "best": dict(checkpoint.best),
    }


def read_signed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Checkpoint that `signed_facts` was given. Raises ValueError or TypeError for other forms."""
    exchange, signed = facts.get("exchange", ""), facts.get("signed", [])
    if type(exchange) is not str or type(signed) is not list:
        raise ValueError("what the sites signed has another form")
    best = facts.get("best", {})
    if type(best) is not dict or not all(type(value) is float for value in best.values()):
        raise ValueError("what it says of the best round has another form")
    return {"exchange": exchange, "signed": tuple(bytes(message, "ascii") for message in signed), "best": best}


def damaged(path: Path, error: Exception) -> DataError:
    """What is told of a file that cannot be read as it should be."""
    return DataError(f"{path} is damaged: {' '.join(str(error).split())[:200]}", DAMAGED_HINT)


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
