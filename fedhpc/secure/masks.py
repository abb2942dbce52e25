"""Masks: keyed pseudo-random lanes added to a vector, tile by tile (docs/protocol.md section 2, PRG).

One AES-256-CTR stream (SP 800-38A) per key, counter from the zero block, addressed by the byte's place in the
vector, so that every rank masks its own part and no part of a stream is ever used for two places. The key is used for
one vector of one attempt only, which is why a fixed start of the counter is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

TILE_BYTES = 256 << 10  # fits a core's L2 cache beside the lanes it is added to
SLACK_BYTES = 15
_BLOCK = 16

_ZEROS = bytes(TILE_BYTES + _BLOCK)


class Keystream:
    """PRG(key): AES-256-CTR from the zero block, big-endian 128-bit counter, readable at any byte."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a mask key has 32 bytes")
        self._algorithm = algorithms.AES(key)
        self._encryptor: CipherContext | None = None
        self._at = -1  # the byte at which the encryptor stands

    def __repr__(self) -> str:
        return "Keystream(<key>)"

    def read(self, offset: int, count: int, scratch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bytes offset..offset+count-1 of the stream, as a view of `scratch`, uint8 of at least count + 15 bytes.

        The slack is asked for by `update_into` of the `cryptography` package. Reading on where the last call stopped is
        faster than elsewhere. Not for two threads at once.
        """
        encryptor = self._encryptor
        if encryptor is None or offset != self._at:
            block, skip = divmod(offset, _BLOCK)
            encryptor = Cipher(self._algorithm, modes.CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
            if skip:
                encryptor.update(_ZEROS[:skip])
        self._encryptor, self._at = encryptor, offset + count
        for start in range(0, count, TILE_BYTES):
            encryptor.update_into(memoryview(_ZEROS)[: min(count - start, TILE_BYTES)], scratch[start:].data)
        return scratch[:count]


class Masks:
    """The sum of a site's signed mask streams, to be added to its lanes.

    `edges`: (key [32], sign), sign +1 where the other site has the higher number and −1 where it has the lower, so that
    the streams of an edge cancel in the sum of the two sites (lane by lane, mod 2^k).
    """

    def __init__(self, edges: Sequence[tuple[bytes, int]]) -> None:
        self._streams = [(Keystream(key), sign) for key, sign in edges]
        self._scratch = np.empty(TILE_BYTES + SLACK_BYTES, dtype=np.uint8)

    def __repr__(self) -> str:
        return f"Masks({len(self._streams)} streams)"

    def add(self, lanes: NDArray[Any], offset: int) -> None:
        """Add to `lanes` [n], unsigned of 8, 16, 32 or 64 bits, that lie at byte `offset` of the vector; in place."""
        per_tile = TILE_BYTES // lanes.itemsize
        for start in range(0, lanes.size, per_tile):
            piece = lanes[start : start + per_tile]
            for stream, sign in self._streams:
                words = stream.read(offset + start * lanes.itemsize, piece.nbytes, self._scratch).view(lanes.dtype)
                if sign > 0:
                    np.add(piece, words, out=piece)
                else:
                    np.subtract(piece, words, out=piece)
