"""One rank's part of a vector on its way through a relay, block by block, in place: encoded, tagged, masked; and back.

The threads that move blocks call `hide` just before a block is sent and `open` just after one was received, so that
work and wire overlap, and a block is still in the caches when it is hashed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fedhpc.federation.vector import Vector
from fedhpc.secure.masks import Masks
from fedhpc.secure.ring import Codec, Piece, lanes_of
from fedhpc.secure.tag import Tag, Tagger
from fedhpc.secure.transcript import TREE_BLOCK_BYTES

Streams = Sequence[tuple[bytes, int]]  # (mask key [32], sign)


class HiddenPart:
    """Bytes `part` of a vector, whole blocks of 2^20 bytes. Thread-safe for different blocks."""

    def __init__(self, vector: Vector, part: tuple[int, int], codec: Callable[[], Codec]) -> None:
        """`codec` makes a codec for a thread of its own."""
        self.vector, self.part = vector, part
        self._codec = codec
        self._lock = threading.Lock()
        self._encoded: set[int] = set()  # blocks, by their first byte
        self._masked: set[int] = set()
        self._streams: Streams = ()
        self._tools = _Tools(codec, (), b"")
        self.tag = Tag()
        """Of this part's lanes: of the vector after hiding, of the sum after opening."""
        self.digests: dict[int, bytes] = {}
        """Block number -> SHA-256 of the opened sum's block."""

    def begin_hiding(self, streams: Streams, tag_key: bytes) -> None:
        """Hide with these mask keys from now on. What an earlier attempt has masked is unmasked first."""
        self._reveal()
        self._streams, self._tools, self.tag = streams, _Tools(self._codec, streams, tag_key), Tag()

    def hide(self, low: int, high: int) -> None:
        """Make the block at byte `low` ready to be sent."""
        buffer = self.vector.buffer
        with self._tools.one() as (codec, masks, tagger):
            pieces = self.vector.layout.pieces(low, high)
            if low not in self._encoded:
                for piece in pieces:
                    codec.encode(buffer, piece)
                self._encoded.add(low)
            tag = tagger.of(buffer, pieces)
            self._mask(masks, pieces)
            self._masked.add(low)
        with self._lock:
            self.tag = self.tag + tag

    def begin_opening(self, streams: Streams, tag_key: bytes) -> None:
        """The sum comes now; `streams` take away what hides it."""
        self._streams, self._tools, self.tag = (), _Tools(self._codec, streams, tag_key), Tag()
        self.digests = {}

    def open(self, low: int, high: int) -> None:
        """Turn the received block at byte `low` into values. Raises PolicyError for a sum out of range."""
        buffer = self.vector.buffer
        with self._tools.one() as (codec, masks, tagger):
            pieces = self.vector.layout.pieces(low, high)
            self._clear_gaps(pieces, low, high)
            self._mask(masks, pieces)
            tag = tagger.of(buffer, pieces)
            digest = hashlib.sha256(buffer[low:high].data).digest()
            for piece in pieces:
                codec.decode(buffer, piece)
        with self._lock:
            self.tag = self.tag + tag
            self.digests[low // TREE_BLOCK_BYTES] = digest

    def opened_digests(self) -> list[bytes]:
        """The digests of X's blocks in this part, in order."""
        return [self.digests[index] for index in sorted(self.digests)]

    def _reveal(self) -> None:
        """Take this site's own masks off again: a new attempt needs the vector."""
        masks = Masks([(key, -sign) for key, sign in self._streams])
        for low in self._masked:
            high = min(low + TREE_BLOCK_BYTES, self.part[1])
            self._mask(masks, self.vector.layout.pieces(low, high))
        self._masked = set()

    def _mask(self, masks: Masks, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            masks.add(lanes_of(self.vector.buffer, piece.start, piece.stop, piece.tensor.bits), piece.start)

    def _clear_gaps(self, pieces: Sequence[Piece], low: int, high: int) -> None:
        """Whatever the relay put between tensors is nobody's."""
        for piece in pieces:
            self.vector.buffer[low : piece.start] = 0
            low = piece.stop
        self.vector.buffer[low:high] = 0


class _Tools:
    """What a thread needs for a block, with scratch memory of its own: lent, not made anew for every block."""

    def __init__(self, codec: Callable[[], Codec], streams: Streams, tag_key: bytes) -> None:
        self._codec, self._streams, self._tag_key = codec, streams, tag_key
        self._free: list[tuple[Codec, Masks, Tagger]] = []

    @contextmanager
    def one(self) -> Iterator[tuple[Codec, Masks, Tagger]]:
        try:
            tools = self._free.pop()  # not after a look whether there are any: another thread may take the last ones
        except IndexError:
            tools = self._new()
        yield tools
        self._free.append(tools)

    def _new(self) -> tuple[Codec, Masks, Tagger]:
        return self._codec(), Masks(self._streams), Tagger(self._tag_key)
