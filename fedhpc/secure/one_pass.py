"""What a stretch of a vector goes through, in one pass over memory where a compiled kernel runs, else step by step.

Checked and fingerprinted; then encoded, tagged and masked; once it is summed unmasked, tagged and decoded. The bytes,
tags and refusals are the same either way: the steps by NumPy (ring.py, masks.py, tag.py, ledger.py) are the reference.
What the kernel lacks, tensors with a scale for each element, is encoded and decoded by NumPy around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.kernel.calls import Kernel, Keys, Place, Span, Streams
from fedhpc.kernel.choice import kernel
from fedhpc.secure.ledger import fingerprint_block
from fedhpc.secure.masks import Masks
from fedhpc.secure.ring import Codec, Piece
from fedhpc.secure.tag import Tag, Tagger

Edges = Sequence[tuple[bytes, int]]
"""Mask keys [32] and signs ±1."""


class Run(NamedTuple):
    """A piece of a stretch where it lies."""

    piece: Piece
    lanes: NDArray[Any]  # unsigned, of the piece's bits [n]
    values: NDArray[Any] | None  # of its kind [n]; None where the lanes hold the encoded values already


class Worker(ABC):
    """Does the runs of a stretch under one set of keys. Not for two threads at once."""

    @abstractmethod
    def encode(self, runs: Sequence[Run]) -> None:
        """Write checked values into their lanes, as far as `cover` does not do it in its own pass."""

    @abstractmethod
    def cover(self, runs: Sequence[Run]) -> Tag:
        """Tag the lanes, then add the masks. The same runs were given to `encode` just before."""

    @abstractmethod
    def uncover(self, runs: Sequence[Run]) -> Tag:
        """Add the masks, whose signs take off what is on the lanes, then tag what is left."""

    @abstractmethod
    def decode(self, runs: Sequence[Run]) -> None:
        """Write summed lanes into their values. Raises PolicyError as Codec.decode."""


def workers(codec: Callable[[], Codec], masks: Edges, tag_key: bytes | None) -> Callable[[], Worker]:
    """What makes a worker for a thread; all of them share the expanded keys.

    `codec` makes a codec for a thread's own use. `tag_key` [32]: absent where nothing is tagged; tags are 0 then.
    """
    compiled = kernel()
    if compiled is None:
        return lambda: _Steps(codec(), masks, tag_key)
    expanded = compiled.streams(masks) if masks else None
    tag = compiled.streams([(tag_key, 1)]) if tag_key is not None else None
    return lambda: _OnePass(compiled, codec(), expanded, tag)


class _Steps(Worker):
    """By NumPy: each step goes through the stretch by tiles that stay in a core's cache."""

    def __init__(self, codec: Codec, masks: Edges, tag_key: bytes | None) -> None:
        self._codec = codec
        self._masks = Masks(masks) if masks else None
        self._tagger = None if tag_key is None else Tagger(tag_key)

    @override
    def encode(self, runs: Sequence[Run]) -> None:
        for piece, lanes, values in runs:
            if values is not None:
                self._codec.encode(values, lanes, piece)

    @override
    def cover(self, runs: Sequence[Run]) -> Tag:
        tag = self._tag(runs)
        self._mask(runs)
        return tag

    @override
    def uncover(self, runs: Sequence[Run]) -> Tag:
        self._mask(runs)
        return self._tag(runs)

    @override
    def decode(self, runs: Sequence[Run]) -> None:
        for piece, lanes, values in runs:
            assert values is not None
            self._codec.decode(lanes, values, piece)

    def _tag(self, runs: Sequence[Run]) -> Tag:
        if self._tagger is None:
            return Tag()
        return sum((self._tagger.of_lanes(run.lanes, run.piece) for run in runs), Tag())

    def _mask(self, runs: Sequence[Run]) -> None:
        if self._masks is not None:
            for piece, lanes, _ in runs:
                self._masks.add(lanes, piece.start)


class _OnePass(Worker):
    """By the kernel: values are read once, and written once as masked lanes."""

    def __init__(self, compiled: Kernel, codec: Codec, masks: Streams | None, tag: Streams | None) -> None:
        rounding = compiled.streams([(codec.rounding, 1)]) if codec.rounding is not None else None
        self._kernel, self._codec = compiled, codec
        self._keys = Keys(masks, tag, rounding)

    @override
    def encode(self, runs: Sequence[Run]) -> None:
        for piece, lanes, values in runs:
            if values is not None and self._codec.has_exponents(piece.tensor):
                self._codec.encode(values, lanes, piece)

    @override
    def cover(self, runs: Sequence[Run]) -> Tag:
        tag = Tag()
        for piece, lanes, values in runs:
            tensor = piece.tensor
            encoded = values is None or self._codec.has_exponents(tensor)
            factor = 1.0 if encoded or tensor.kind == "int64" else self._codec.factor(tensor)
            found = self._kernel.hide(None if encoded else values, lanes, factor, _place(piece), self._keys)
            tag = tag + Tag(*found)
        return tag

    @override
    def uncover(self, runs: Sequence[Run]) -> Tag:
        tag = Tag()
        if self._keys.masks is not None or self._keys.tag is not None:
            for piece, lanes, _ in runs:
                tag = tag + Tag(*self._kernel.open(lanes, _place(piece), self._keys))
        return tag

    @override
    def decode(self, runs: Sequence[Run]) -> None:
        for piece, lanes, values in runs:
            assert values is not None
            done, tensor = 0, piece.tensor
            if not self._codec.has_exponents(tensor):
                done = self._kernel.decode(lanes, values, tensor.quantum or 1.0, self._codec.limit(tensor))
            if done < lanes.size:
                self._codec.decode(lanes[done:], values[done:], piece)


def _place(piece: Piece) -> Place:
    return Place(piece.start, piece.lane_number)


class Inspector:
    """Checks values and fingerprints them, block by block. Not for two threads at once."""

    def __init__(self, codec: Codec, key: bytes | None) -> None:
        """`key`: of the blocks' fingerprints [32]; absent where nothing is remembered."""
        self._codec, self._key = codec, key
        self._kernel = kernel()
        self._expanded = None if self._kernel is None or key is None else self._kernel.gmac_key(key)

    def look(self, block: NDArray[np.uint8], first: int, number: int, pieces: Sequence[Piece], tagged: int) -> bytes:
        """The tag of the first `tagged` bytes of block `number` [16]; empty without a key, or where nothing is tagged.

        `block`: the values of `pieces` and what lies between them; it begins at byte `first` of all values. Raises
        DataError as Codec.check.
        """
        key = self._key if tagged else None
        if self._kernel is None:
            for piece in pieces:
                self._codec.check(piece.values_in(block, first), piece)
            return b"" if key is None else fingerprint_block(key, number, block[:tagged])
        alike = [piece for piece in pieces if not self._codec.has_exponents(piece.tensor)]
        spans = [Span(p.values_start - first, p.values_stop - first, p.tensor.kind) for p in alike]
        expanded = None if key is None else self._expanded
        found = self._kernel.inspect(block, spans, expanded, number, tagged)
        largest = {piece.start: value for piece, value in zip(alike, found.largest, strict=True)}
        for piece in pieces:
            if piece.start not in largest or not self._codec.admits(largest[piece.start], piece.tensor):
                self._codec.check(piece.values_in(block, first), piece)
        return found.tag
