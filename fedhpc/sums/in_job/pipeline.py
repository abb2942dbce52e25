"""One rank's part of a sum in one job: chunks are hidden, added over the sites, and opened.

Chunks are hidden a batch at a time, since every allreduce is a meeting of all sites, and a site that is still masking
holds up the rest. With a core to spare, a helper thread hides the next batch while the wire carries this one (NumPy and
AES release the interpreter lock).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.cores import ONE, Cores
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Codec, lanes_of
from fedhpc.secure.suite import SHA256, Suite
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.in_job.segments import Chunk, Segment, schedule
from fedhpc.sums.streams import Streams

CHUNK_BYTES = 16 << 20  # in one allreduce: measured best among 1 to 16 MiB where ranks share cores
_BATCH = 16  # chunks hidden together where ranks share cores: there a meeting costs more than memory traffic
_BATCH_AHEAD = 1  # with a helper thread: small, so that the wire starts early; with windows: a few chunks of memory
_AHEAD = 1  # batches hidden before they are needed


Hidden = list[tuple[Chunk, NDArray[np.uint8]]]  # a batch: each chunk and the window of its lanes


class Pipeline:
    """Carries parts of vectors through the exchange. One per rank."""

    def __init__(
        self, exchange: Exchange, *, chunk_bytes: int = CHUNK_BYTES, overlap: bool = False, cores: Cores = ONE
    ) -> None:
        """`chunk_bytes`: a multiple of 16. `overlap`: hide the next chunk in a helper thread.

        `cores`: over which each chunk is shared out, beside the one that waits for the wire where there is overlap.
        """
        self._exchange, self._cores = exchange, cores
        self._chunk_bytes = chunk_bytes
        self._overlap = overlap

    def run(
        self,
        vector: Vector,
        own: Sequence[Segment],
        codec: Callable[[], Codec],
        streams: Streams,
        stages: Stages,
        suite: Suite | None = SHA256,
    ) -> list[bytes]:
        """Replace the values of this rank's `own` segments by their sum over the sites; digests of the sum's blocks.

        `codec` makes a codec: hiding and opening may run at the same time, each with scratch memory of its own.
        `suite`: what makes them; None: there are none. Raises PolicyError for a sum out of range.
        """
        if not own:
            return []
        engine = BlockEngine(vector, (own[0].start, own[-1].stop), codec, stages, suite=suite, cores=self._cores)
        engine.begin_hiding(streams)
        engine.begin_opening(())
        chunks = schedule(vector.layout, own, self._chunk_bytes)
        size = _BATCH if vector.layout.in_place and not self._overlap else _BATCH_AHEAD
        batches = [chunks[i : i + size] for i in range(0, len(chunks), size)]
        for batch in self._hidden(batches, lambda batch: [(c, engine.hide(c.start, c.stop)) for c in batch]):
            for chunk, window in batch:
                begun = time.perf_counter()
                self._exchange.add(lanes_of(window, 0, window.size, chunk.bits), chunk.owners)
                stages.wire += time.perf_counter() - begun
                engine.open(chunk.start, chunk.stop, window)
        return engine.opened_digests()

    def _hidden(self, batches: Sequence[list[Chunk]], hide: Callable[[list[Chunk]], Hidden]) -> Iterator[Hidden]:
        """The batches in order, each after `hide`."""
        if not self._overlap or len(batches) < 2:
            yield from map(hide, batches)
            return
        with ThreadPoolExecutor(1, "fedhpc-hide") as helper:
            waiting: deque[Future[Any]] = deque()
            for batch in batches:
                waiting.append(helper.submit(hide, batch))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
