"""From named arrays to sections of one vector, and the vector's parts for the rails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import ConfigError, DataError
from fedhpc.secure.ring import Layout
from fedhpc.secure.salt import SALT_BYTES
from fedhpc.secure.transcript import TREE_BLOCK_BYTES

_NAME = re.compile(r"[ !#-\[\]-~]{1,200}")


class Vector:
    """One contiguous buffer with a typed view per tensor. Sums happen in place: views hold inputs, then the sum."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.buffer = np.zeros(layout.nbytes, dtype=np.uint8)
        self.sources: dict[str, str] = {}
        """The kinds of the numbers that were put in, by tensor, where lanes are wider than they need."""

    def view(self, name: str) -> NDArray[Any]:
        """The tensor `name` in the buffer, in its kind and shape."""
        for tensor, offset in zip(self.layout.named, self.layout.offsets, strict=False):  # the salt has no name here
            if tensor.name == name:
                raw = self.buffer[offset : offset + tensor.lanes * tensor.lane_bytes]
                return raw.view(tensor.kind).reshape(tensor.shape)
        raise KeyError(name)

    def views(self) -> dict[str, NDArray[Any]]:
        """All named tensors."""
        return {t.name: self.view(t.name) for t in self.layout.named}

    @property
    def salt(self) -> NDArray[np.int64]:
        """The salt, int64 [5] in the buffer; empty where one site sums alone."""
        return self.buffer[self.layout.nbytes - SALT_BYTES if self.layout.salted else self.layout.nbytes :].view("<i8")

    def fill(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy `arrays` into their tensors; same names, shapes and kinds."""
        for name, array in arrays.items():
            np.copyto(self.view(name), array, casting="same_kind")


def sum_kind(name: str, array: NDArray[Any]) -> str:
    """The kind that an array is summed as: integers as int64, float32 and float64 as they are. DataError otherwise."""
    if array.dtype == np.float32 or array.dtype == np.float64:
        return str(array.dtype.name)
    if array.dtype.kind in "ib" or (array.dtype.kind == "u" and array.dtype.itemsize < 8):
        return "int64"
    if array.dtype.kind == "u":
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise DataError(f"'{name}' holds a number beyond 2^63 - 1", "it does not fit a 64-bit lane")
        return "int64"
    raise DataError(f"'{name}' has dtype {array.dtype}", "sums take integers, float32 and float64; convert it first")


def parts(nbytes: int, rails: int) -> list[tuple[int, int]]:
    """(start, stop) in bytes of each rail's part of a vector: whole blocks of 2^20 bytes, so hashes can be shared out.

    A vector of less than a block is rail 0's alone: splitting it would cost more than it saves.
    """
    blocks = -(-nbytes // TREE_BLOCK_BYTES)
    step = -(-blocks // rails) * TREE_BLOCK_BYTES
    return [(min(nbytes, i * step), min(nbytes, (i + 1) * step)) for i in range(rails)]


def check_text(text: Any, what: str) -> str:
    """`text`, if it is one and can stand in canonical JSON. ConfigError otherwise."""
    if not (isinstance(text, str) and _NAME.fullmatch(text)):
        raise ConfigError(f"{what} is {text!r}", "1 to 200 printable ASCII characters without quote and backslash")
    return text
