"""The values of a sum as one vector: what a rank holds of it, named views, and the parts that rails carry."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import ConfigError, DataError, InternalError
from fedhpc.secure.ring import Layout, Piece
from fedhpc.secure.transcript import TREE_BLOCK_BYTES

_NAME = re.compile(r"[ !#-\[\]-~]{1,200}")


class Vector:
    """The values of a vector that this rank holds, in one contiguous buffer. A sum replaces them by the summed values.

    Of a statistic every rank holds all of them, of a model's update its part (ranges.py). The code that sums relies on
    `part` only, and asks for pieces of it.
    """

    def __init__(self, layout: Layout, part: tuple[int, int] | None = None) -> None:
        """`part`: (start, stop) in bytes of the lanes whose values are held; absent: all.

        `start` is a multiple of 16; so is `stop`, unless it is the end.
        """
        self.layout = layout
        self.part = part or (0, layout.nbytes)
        self.first, stop = layout.values_of(*self.part)
        self.buffer = np.zeros(stop - self.first, dtype=np.uint8)
        """The values held, gaps included; its byte 0 is byte `first` of all values."""
        self.sources: dict[str, str] = {}
        """The kinds of the numbers that were put in, by tensor, where lanes are wider than they need."""

    def of(self, piece: Piece) -> NDArray[Any]:
        """The values of `piece`, which lies in `part`: a view."""
        return piece.values_in(self.buffer, self.first)

    def shared(self, start: int, stop: int) -> NDArray[np.uint8] | None:
        """The memory of the values of lane bytes start..stop, if the lanes may use it too; else None."""
        return self.buffer[start - self.first : stop - self.first] if self.layout.in_place else None

    def whole(self) -> NDArray[np.uint8]:
        """The buffer, of a rank that holds all of it: for statistics and for vectors that are gathered."""
        if self.part != (0, self.layout.nbytes):
            raise InternalError("this rank holds a part of the vector only", "please report it")
        return self.buffer

    def view(self, name: str) -> NDArray[Any]:
        """The tensor `name` in its kind and shape, at a rank that holds the whole vector: a view."""
        for index, tensor in enumerate(self.layout.named):  # the salt has no name here
            if tensor.name == name:
                raw = self.whole()[self.layout.values.offsets[index] : self.layout.values.end(index)]
                return raw.view(tensor.kind).reshape(tensor.shape)
        raise KeyError(name)

    def views(self) -> dict[str, NDArray[Any]]:
        """All named tensors."""
        return {t.name: self.view(t.name) for t in self.layout.named}

    def held(self) -> dict[str, NDArray[Any]]:
        """What this rank holds of each named tensor: views, flat, or in the tensor's shape where it is all of it."""
        found = {t.name: np.empty(0 if t.lanes else t.shape, t.kind) for t in self.layout.named}
        for piece in self.named_pieces(self.part):
            values, tensor = self.of(piece), piece.tensor
            found[tensor.name] = values.reshape(tensor.shape) if values.size == tensor.lanes else values
        return found

    def named_pieces(self, part: tuple[int, int]) -> list[Piece]:
        """The pieces in bytes `part` of the lanes, without the salt."""
        return [piece for piece in self.layout.pieces(*part) if not self._is_salt(piece)]

    def _is_salt(self, piece: Piece) -> bool:
        return self.layout.salted and piece.tensor is self.layout.tensors[-1]

    @property
    def salt(self) -> NDArray[np.int64]:
        """What this rank holds of the salt, int64 [up to 5]: a view; empty where one site sums alone."""
        found = [self.of(piece) for piece in self.layout.pieces(*self.part) if self._is_salt(piece)]
        return found[0] if found else np.empty(0, np.int64)

    def put_salt(self, words: NDArray[np.int64]) -> None:
        """Write what this rank holds of the salt `words` [5]."""
        for piece in self.layout.pieces(*self.part):
            if self._is_salt(piece):
                held = self.of(piece)
                held[:] = words[piece.lane : piece.lane + held.size]

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
    cuts = [min(nbytes, -(-blocks * i // rails) * TREE_BLOCK_BYTES) for i in range(rails + 1)]
    return list(itertools.pairwise(cuts))


def check_text(text: Any, what: str) -> str:
    """`text`, if it is text that canonical JSON can hold. ConfigError otherwise."""
    if not (isinstance(text, str) and _NAME.fullmatch(text)):
        raise ConfigError(f"{what} is {text!r}", "1 to 200 printable ASCII characters without quote and backslash")
    return text
