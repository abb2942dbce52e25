"""One rail's part of a masked sum, chunk by chunk: encode, mask, sum over the sites, hash, decode, all in place.

Chunks are prepared a batch at a time, since every allreduce is a meeting of all sites and a site that is still masking
holds up the rest. With a core to spare, a helper thread prepares the
next batch while the wire carries this one (NumPy and AES release the interpreter lock).
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Codec, Layout, lanes_of
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.sums.in_job.exchange import Exchange

CHUNK_BYTES = 16 << 20  # in one allreduce: measured best among 1 to 16 MiB where ranks share cores
_BATCH = 16  # chunks prepared together where ranks share cores: there a meeting costs more than memory traffic
_BATCH_AHEAD = 1  # with a helper thread: small, so that the wire starts early
_AHEAD = 1  # batches prepared before they are needed


class LaneMasks(Protocol):
    """What hides lanes: Masks, or NoMasks."""

    def add(self, lanes: NDArray[Any], offset: int) -> None:
        """Add this site's masks to `lanes` at byte `offset` of the vector."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Bytes start..stop of the vector, lanes of one width."""

    start: int
    stop: int
    bits: int


def cut(layout: Layout, start: int, stop: int, chunk_bytes: int) -> list[Chunk]:
    """The chunks of bytes start..stop: at most `chunk_bytes` each, cut where the lane width changes."""
    chunks = []
    for run_start, run_stop, bits in layout.runs(start, stop):
        for at in range(run_start, run_stop, chunk_bytes):
            chunks.append(Chunk(at, min(at + chunk_bytes, run_stop), bits))
    return chunks


class Pipeline:
    """Carries parts of vectors through the exchange. One per rank; its scratch memory is a few tiles."""

    def __init__(self, exchange: Exchange, *, chunk_bytes: int = CHUNK_BYTES, overlap: bool = False) -> None:
        """`chunk_bytes`: a multiple of 16. `overlap`: prepare the next chunk in a helper thread."""
        self._exchange = exchange
        self._chunk_bytes = chunk_bytes
        self._overlap = overlap

    def run(
        self,
        vector: Vector,
        part: tuple[int, int],
        codec: Callable[[], Codec],
        masks: LaneMasks,
        stages: Stages,
        *,
        digest: bool,
    ) -> list[bytes]:
        """Replace bytes `part` of `vector` by their sum over the sites, decoded; gives SHA-256 of X's blocks if asked.

        `codec` makes a codec: encoding and decoding run at the same time and each need their own scratch.
        Errors: DataError before anything of a chunk is sent, PolicyError for a sum out of range.
        """
        buffer, layout = vector.buffer, vector.layout
        encoder, decoder = codec(), codec()
        hasher = BlockHasher(buffer, part[0]) if digest else None

        def prepare(batch: list[Chunk]) -> list[Chunk]:
            for chunk in batch:
                for piece in layout.pieces(chunk.start, chunk.stop):
                    begun = time.perf_counter()
                    encoder.encode(buffer, piece)
                    encoded = time.perf_counter()
                    masks.add(lanes_of(buffer, piece.start, piece.stop, chunk.bits), piece.start)
                    stages.encode += encoded - begun
                    stages.masks += time.perf_counter() - encoded
            return batch

        chunks = cut(layout, *part, self._chunk_bytes)
        size = _BATCH_AHEAD if self._overlap else _BATCH
        for batch in self._prepared([chunks[i : i + size] for i in range(0, len(chunks), size)], prepare):
            for chunk in batch:
                begun = time.perf_counter()
                self._exchange.add(lanes_of(buffer, chunk.start, chunk.stop, chunk.bits))
                summed = time.perf_counter()
                if hasher is not None:
                    hasher.advance(chunk.stop)
                hashed = time.perf_counter()
                for piece in layout.pieces(chunk.start, chunk.stop):
                    decoder.decode(buffer, piece)
                stages.wire += summed - begun
                stages.digest += hashed - summed
                stages.decode += time.perf_counter() - hashed
        return [] if hasher is None else hasher.finish(part[1])

    def _prepared(
        self, batches: Sequence[list[Chunk]], prepare: Callable[[list[Chunk]], list[Chunk]]
    ) -> Iterator[list[Chunk]]:
        """The batches in order, each after `prepare`."""
        if not self._overlap or len(batches) < 2:
            yield from map(prepare, batches)
            return
        with ThreadPoolExecutor(1, "fedhpc-prepare") as helper:
            waiting: deque[Future[list[Chunk]]] = deque()
            for batch in batches:
                waiting.append(helper.submit(prepare, batch))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class BlockHasher:
    """SHA-256 of the 2^20-byte blocks of a growing stretch of a buffer, gaps included, before it is decoded."""

    def __init__(self, buffer: NDArray[np.uint8], start: int) -> None:
        """`start` is a multiple of the block size."""
        self._buffer = buffer
        self._start = self._at = start
        self._digest = hashlib.sha256()
        self._digests: list[bytes] = []

    def advance(self, stop: int) -> None:
        """Hash up to byte `stop`."""
        while self._at < stop:
            block_end = (self._at // TREE_BLOCK_BYTES + 1) * TREE_BLOCK_BYTES
            to = min(stop, block_end)
            self._digest.update(self._buffer[self._at : to].data)
            self._at = to
            if to == block_end:
                self._digests.append(self._digest.digest())
                self._digest = hashlib.sha256()

    def finish(self, stop: int) -> list[bytes]:
        """The digests of all blocks up to byte `stop`."""
        self.advance(stop)
        if self._at > self._start and self._at % TREE_BLOCK_BYTES:
            self._digests.append(self._digest.digest())
        return self._digests
