"""The compiled kernel's calls, typed. Each works on one run of one tensor's lanes, or on one block of values.

The results are those of `Codec`, `Masks`, `Tagger` and `fingerprint_block` in fedhpc.secure, bit for bit. All calls
release the interpreter's lock and keep no state between them, so that several threads may share a `Kernel`, its keys
and its streams, each with runs of its own. A run may be cut at any multiple of 16 bytes: offsets and lane numbers say
where a part lies. Tensors with a scale for every element (`exponents`) are not for the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhpc.kernel.extension import Extension

KINDS = ("float32", "float64", "int64")
DECODE_TILE = 1 << 15
"""Lanes between two looks at the range of a sum, as in Codec.decode."""


class Span(NamedTuple):
    """The values of one tensor in a block: bytes start..stop of the block, start a multiple of 16."""

    start: int
    stop: int
    kind: str  # float32, float64 or int64


class Inspected(NamedTuple):
    """What `Kernel.inspect` found."""

    tag: bytes  # the GMAC tag of the block [16], empty without a key
    largest: list[float | int]  # max |x| of each span: int for int64; NaN or infinity where a float is not finite


class Place(NamedTuple):
    """Where a run of lanes lies in its vector."""

    offset: int  # of its first byte among the vector's lanes, a multiple of 16: Piece.start
    lane: int  # its first lane's number among all lanes, gaps not counted: Piece.lane_number


class TagParts(NamedTuple):
    """What a run adds to φ mod 2^64 and φ′ mod 2^128; the arguments of secure.tag.Tag."""

    narrow: int
    wide: int


@dataclass(frozen=True, repr=False)
class Streams:
    """Expanded keys of AES-256-CTR streams with a sign each; wiped when the last reference goes."""

    handle: object


@dataclass(frozen=True, repr=False)
class GmacKey:
    """A key of `Kernel.inspect`: each call expands it anew and wipes that, in a hundredth of a block's time."""

    handle: bytes


@dataclass(frozen=True, repr=False)
class Keys:
    """What a run is rounded, masked and tagged with; each may be absent."""

    masks: Streams | None = None
    tag: Streams | None = None  # one stream, the tag key's; sign +1
    rounding: Streams | None = None  # one stream of public words, for stochastic rounding; absent: half to even


class Kernel:
    """One compiled path of this CPU."""

    def __init__(self, extension: Extension, name: str) -> None:
        """`name`: one of `extension.PATHS`."""
        self.name = name
        self._extension = extension
        self._path = extension.PATHS.split().index(name)

    def streams(self, edges: Sequence[tuple[bytes, int]]) -> Streams:
        """`edges`: (key [32], sign), sign +1 or −1. Raises ValueError for a key of another length."""
        signs = b"".join(b"+" if sign > 0 else b"-" for _, sign in edges)
        return Streams(self._extension.streams(self._path, b"".join(key for key, _ in edges), signs))

    def gmac_key(self, key: bytes) -> GmacKey:
        """`key`: of the fingerprints' blocks [32]. Raises ValueError for another length."""
        if len(key) != 32:
            raise ValueError("a key has 32 bytes")
        return GmacKey(key)

    def inspect(
        self,
        block: NDArray[np.uint8],
        spans: Sequence[Span],
        key: GmacKey | None = None,
        number: int = 0,
        tagged: int | None = None,
    ) -> Inspected:
        """Look at a block of values once: the largest of each span, and the tag that `fingerprint_block` gives.

        `block`: uint8 [n], C-contiguous, the values of one fingerprint block, gaps and salt included. `number`: the
        block's, which is the nonce. `tagged`: how many of its first bytes the tag covers; absent: all.

        It refuses nothing. Where `largest` times the factor is beyond the bound or not finite, `Codec.check` on the
        same values says so in its own words (for float kinds the lane's bound holds for `largest · factor`, rounded).
        """
        table = np.array([(s.start, s.stop, KINDS.index(s.kind), 0) for s in spans], np.int64).reshape(-1, 4)
        count = block.size if tagged is None else tagged
        handle = None if key is None else key.handle
        tag = self._extension.inspect(self._path, handle, number, block, count, table)
        return Inspected(tag, [_number(table[i, 3:], span.kind) for i, span in enumerate(spans)])

    def hide(
        self, values: NDArray[Any] | None, lanes: NDArray[Any], factor: float, place: Place, keys: Keys
    ) -> TagParts:
        """Encode checked `values` [n] into `lanes` [n], tag the lanes, and add the masks.

        `values`: float32, float64 or int64; None where `lanes` hold lanes already. `lanes`: unsigned (or signed) of 8,
        16, 32 or 64 bits. Both C-contiguous, at any address; they are the same memory or share none of it. `factor`:
        w/W·2^s of `Codec`, 1.0 for int64. The tag is (0, 0) without a tag key.
        """
        return self._run(values, lanes, factor, place, keys, opening=False)

    def open(self, lanes: NDArray[Any], place: Place, keys: Keys) -> TagParts:
        """Add the masks `keys.masks` (with the signs that take them off) to `lanes` in place, then tag what is left.

        `lanes`: as in `hide`. What comes next is the hash of the lanes, and `decode`.
        """
        return self._run(None, lanes, 1.0, place, keys, opening=True)

    def _run(
        self,
        values: NDArray[Any] | None,
        lanes: NDArray[Any],
        factor: float,
        place: Place,
        keys: Keys,
        *,
        opening: bool,
    ) -> TagParts:
        handles = [None if key is None else key.handle for key in (keys.rounding, keys.masks, keys.tag)]
        kind = -1 if values is None else KINDS.index(values.dtype.name)
        where = (place.offset, place.lane)
        narrow, low, high = self._extension.run(
            self._path, values, kind, lanes, lanes.itemsize, factor, *where, *handles, opening
        )
        return TagParts(narrow, high << 64 | low)

    def decode(self, lanes: NDArray[Any], values: NDArray[Any], quantum: float, limit: int) -> int:
        """Write float64(X)·2^−s of summed `lanes` [n] into `values` [n], by tiles of DECODE_TILE lanes.

        `quantum`: 2^−s, 1.0 for int64. `limit`: N times the bound of one site, below 2^63. Memory as in `hide`.

        Returns how many lanes were decoded: n, or less where the next tile holds a lane beyond the limit. That tile and
        all behind it are as they were, and `Codec.decode` on the rest of both arrays refuses it in its own words.
        """
        kind = KINDS.index(values.dtype.name)
        return self._extension.decode(self._path, lanes, lanes.itemsize, values, kind, quantum, limit)

    def keystream(self, streams: Streams, offset: int, count: int) -> NDArray[np.uint8]:
        """Bytes offset..offset+count-1 of the sum of the streams, byte by byte mod 2^8 [count]; for known answers.

        `offset`: a multiple of 16.
        """
        out = np.zeros(count, dtype=np.uint8)
        self.open(out, Place(offset, 0), Keys(masks=streams))
        return out


def _number(bits: NDArray[np.int64], kind: str) -> float | int:
    """The number whose bits are in `bits` [1]; integers are unsigned."""
    return bits.view("<u8" if kind == "int64" else kind)[0].item()  # type: ignore[no-any-return]
