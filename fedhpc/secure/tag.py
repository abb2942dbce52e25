"""The tag that shows a sum was altered: φ and φ′, random linear sums of the lanes (docs/protocol.md section 4).

φ = Σ r_i·x̃[i] over lanes of at most 32 bits mod 2^64, φ′ = the same over 64-bit lanes mod 2^128. x̃[i] is the signed
integer: with the unsigned lane, a flip of the top bit of a 64-bit lane would add a multiple of 2^64. r_i is word i of a
stream that the relay does not know, addressed by the lane's number, so that each rank tags its part and parts add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.masks import SLACK_BYTES, TILE_BYTES, Keystream
from fedhpc.secure.ring import Piece

TAG_BYTES = 24

_WORD = 4  # bytes of r_i
_TILE_LANES = TILE_BYTES // 8
_NARROW = 1 << 64
_WIDE = 1 << 128
_LOW = np.int64(0xFFFFFFFF)


@dataclass(frozen=True)
class Tag:
    """φ mod 2^64 and φ′ mod 2^128."""

    narrow: int = 0
    wide: int = 0

    def __add__(self, other: Tag) -> Tag:
        return Tag((self.narrow + other.narrow) % _NARROW, (self.wide + other.wide) % _WIDE)

    def __neg__(self) -> Tag:
        return Tag(-self.narrow % _NARROW, -self.wide % _WIDE)

    def to_bytes(self) -> bytes:
        """φ (8 bytes) ‖ φ′ (16 bytes), little-endian [24]."""
        return self.narrow.to_bytes(8, "little") + self.wide.to_bytes(16, "little")


def tag_from_bytes(data: bytes) -> Tag:
    """The tag in `data` [24]. Raises PolicyError for another length."""
    if len(data) != TAG_BYTES:
        raise PolicyError(f"a tag of {len(data)} bytes instead of {TAG_BYTES}")
    return Tag(int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little"))


def tag_masks(t2: bytes, streams: Iterable[tuple[bytes, int]]) -> Tag:
    """The sum of the tag masks of signed mask keys, (key [32], sign)."""
    total = Tag()
    for key, sign in streams:
        word = tag_from_bytes(derive(t2, key, labels.KEY_TAG_MASK)[:TAG_BYTES])
        total = total + (word if sign > 0 else -word)
    return total


class Tagger:
    """Tags pieces of a vector of lanes, tile by tile, in constant memory. One per thread."""

    def __init__(self, key: bytes) -> None:
        """`key`: k_tag [32]."""
        self._stream = Keystream(key)
        self._random = np.empty(_TILE_LANES * _WORD + SLACK_BYTES, dtype=np.uint8)
        self._r = np.empty(_TILE_LANES, dtype=np.int64)
        self._x = np.empty(_TILE_LANES, dtype=np.int64)
        self._half = np.empty(_TILE_LANES, dtype=np.int64)

    def __repr__(self) -> str:
        return "Tagger(<key>)"

    def of(self, window: NDArray[np.uint8], pieces: Sequence[Piece], first: int = 0) -> Tag:
        """The tag of the lanes of `pieces` in a window of the vector's lanes that begins at byte `first`."""
        return sum((self.of_lanes(piece.lanes_in(window, first), piece) for piece in pieces), Tag())

    def of_lanes(self, lanes: NDArray[Any], piece: Piece) -> Tag:
        """The tag of the lanes [n] of `piece`."""
        narrow = wide = 0
        signed = lanes.view(f"<i{piece.tensor.lane_bytes}")
        for at in range(0, signed.size, _TILE_LANES):
            tile = signed[at : at + _TILE_LANES]
            words = self._words(piece.lane_number + at, tile.size)
            if piece.tensor.bits == 64:
                wide += self._wide(tile, words)
            else:
                narrow += self._narrow(tile, words)
        return Tag(narrow % _NARROW, wide % _WIDE)

    def _words(self, lane: int, count: int) -> NDArray[np.int64]:
        raw = self._stream.read(lane * _WORD, count * _WORD, self._random)
        np.copyto(self._r[:count], raw.view("<u4"))
        return self._r[:count]

    def _narrow(self, tile: NDArray[Any], words: NDArray[np.int64]) -> int:
        x = self._x[: tile.size]
        np.copyto(x, tile)
        return int(np.dot(x, words))  # wraps mod 2^64, which is what φ is

    def _wide(self, tile: NDArray[np.int64], words: NDArray[np.int64]) -> int:
        """Σ r·x with x = h·2^32 + l: both products stay below 2^64, and their halves add up without a wrap."""
        x, half = self._x[: tile.size], self._half[: tile.size]
        np.right_shift(tile, 32, out=x)
        np.multiply(x, words, out=x)  # |h·r| ≤ 2^63 − 2^31: signed
        total = self._halves(x, half, signed=True) << 32
        np.bitwise_and(tile, _LOW, out=x)
        np.multiply(x.view(np.uint64), words.view(np.uint64), out=x.view(np.uint64))
        return total + self._halves(x, half, signed=False)

    def _halves(self, products: NDArray[np.int64], half: NDArray[np.int64], *, signed: bool) -> int:
        """The exact sum of at most 2^15 products, their upper halves read as signed or not."""
        np.bitwise_and(products, _LOW, out=half)
        low = int(half.sum())
        if signed:
            np.right_shift(products, 32, out=half)
        else:
            np.right_shift(products.view(np.uint64), np.uint64(32), out=half.view(np.uint64))
        return (int(half.sum()) << 32) + low
