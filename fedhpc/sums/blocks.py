"""A rank's part of a masked sum, stretch by stretch: values become masked lanes, and summed lanes become values again.

Both protocols go through a vector this way. `hide` encodes, tags and masks a stretch just before it is sent; `open`
unmasks, tags, hashes and decodes it just after its sum has come. A stretch is a chunk in one job and a block over a
relay. The compiled kernel goes through it once where it runs; else NumPy and AES do, by tiles of 256 KiB, which fit a
core's cache (secure/one_pass.py). A rank with several cores shares out the blocks of a stretch.

Lanes lie in a window of the stretch's size, never in a second whole vector. Where all lanes are as wide as their values
(`Layout.in_place`) the window is the memory of the values.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import InternalError
from fedhpc.federation.cores import ONE, Cores
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure.one_pass import Run, Worker, workers
from fedhpc.secure.ring import Codec
from fedhpc.secure.suite import SHA256, Digest, Suite
from fedhpc.secure.tag import Tag
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.sums.streams import Streams


class BlockEngine:
    """Hides and opens bytes `part` of a vector's lanes. Thread-safe for stretches of different blocks."""

    def __init__(
        self,
        vector: Vector,
        part: tuple[int, int],
        codec: Callable[[], Codec],
        stages: Stages | None = None,
        suite: Suite | None = SHA256,
        cores: Cores = ONE,
    ) -> None:
        """`vector` holds the values of `part`, whole blocks of 2^20 bytes.

        `codec` makes a codec for a thread's own use. `stages`: where the seconds of each step are added.
        `suite`: what the opened sum is hashed with; None: it is not hashed. `cores`: over which a stretch of several
        blocks is shared out.
        """
        self.vector, self.part = vector, part
        self._codec, self._cores = codec, cores
        self._stages = Stages() if stages is None else stages
        self._lock = threading.Lock()
        self._encoded: set[tuple[int, int]] = set()  # stretches whose memory holds lanes, no longer values
        self._masked: set[tuple[int, int]] = set()
        self._streams: Streams = ()
        self._hiding = self._opening = _Tools(codec, (), None)
        self._windows: list[NDArray[np.uint8]] = []
        self.tag = Tag()
        """Of the lanes hidden since `begin_hiding`, or of the sum opened since `begin_opening`."""
        self._suite = suite
        self.hasher = None if suite is None else BlockHasher(suite)

    def memory(self) -> NDArray[np.uint8]:
        """The lanes of the whole part, in the memory of its values: what a transport sends from and receives into."""
        window = self.vector.shared(*self.part)
        if window is None:
            raise InternalError("a transport moves lanes that are as wide as their values", "please report it")
        return window

    def begin_hiding(self, streams: Streams, tag_key: bytes | None = None) -> None:
        """Hide under these masks from now on, and tag with `tag_key`; masks of an earlier attempt are taken off."""
        self._unmask()
        self._streams, self._hiding, self.tag = streams, _Tools(self._codec, streams, tag_key), Tag()

    def hide(self, low: int, high: int) -> NDArray[np.uint8]:
        """The masked lanes of bytes low..high, gaps zero, in a window that `open` takes back."""
        shared = self.vector.shared(low, high)
        window = self._lend(low, high) if shared is None else shared
        encoded = (low, high) in self._encoded

        def share(cut: tuple[int, int]) -> tuple[Tag, float, float]:
            runs = self._runs(window, low, cut, values=not encoded)
            with self._hiding.one() as worker:
                begun = time.perf_counter()
                worker.encode(runs)
                between = time.perf_counter()
                tag = worker.cover(runs)
            return tag, between - begun, time.perf_counter() - between

        tags, encoding, covering = zip(*self._cores.map(share, self._cuts(low, high)), strict=True)
        with self._lock:
            if shared is not None:
                self._encoded.add((low, high))
                self._masked.add((low, high))
            self.tag = sum(tags, self.tag)
            self._stages.encode += sum(encoding) / len(tags)
            if self._streams:
                self._stages.masks += sum(covering) / len(tags)
            else:
                self._stages.encode += sum(covering) / len(tags)
        return window

    def begin_opening(self, streams: Streams, tag_key: bytes | None = None) -> None:
        """The sum comes now. `streams` take off the masks that are left in it; `tag_key` tags what is under them."""
        self._opening, self.tag = _Tools(self._codec, streams, tag_key), Tag()
        self.hasher = None if self._suite is None else BlockHasher(self._suite)
        if self.vector.layout.in_place:
            self._streams, self._masked = (), set()  # the sum overwrites what was hidden

    def open(self, low: int, high: int, window: NDArray[np.uint8] | None = None) -> None:
        """Turn the summed lanes of bytes low..high in `window` into values.

        Without a window they lie in the memory of the values. Raises PolicyError for a sum out of range.
        """
        shared = self.vector.shared(low, high)
        lanes = shared if window is None else window
        if lanes is None:
            raise InternalError("lanes of another width than their values lie in a window of their own")
        self._clear_gaps(lanes, low, high)  # those bytes are the relay's

        def share(cut: tuple[int, int]) -> tuple[Tag, float, float]:
            runs = self._runs(lanes, low, cut)
            with self._opening.one() as worker:
                begun = time.perf_counter()
                tag = worker.uncover(runs)
                if self.hasher is not None:
                    self.hasher.add(cut[0], lanes[cut[0] - low : cut[1] - low])
                hashed = time.perf_counter()
                worker.decode(runs)
            return tag, hashed - begun, time.perf_counter() - hashed

        tags, hashing, decoding = zip(*self._cores.map(share, self._cuts(low, high)), strict=True)
        with self._lock:
            self.tag = sum(tags, self.tag)
            self._stages.digest += sum(hashing) / len(tags)
            self._stages.decode += sum(decoding) / len(tags)
            if shared is None:
                self._windows.append(lanes)

    def opened_digests(self) -> list[bytes]:
        """The digests of the opened sum's blocks in this part, in order; none where it is not hashed."""
        return [] if self.hasher is None else self.hasher.finish(self.part[1])

    def _cuts(self, low: int, high: int) -> list[tuple[int, int]]:
        """Bytes low..high in shares of whole blocks, one for each core."""
        ends = [low, *range((low // TREE_BLOCK_BYTES + 1) * TREE_BLOCK_BYTES, high, TREE_BLOCK_BYTES), high]
        return [(ends[start], ends[stop]) for start, stop in self._cores.shares(len(ends) - 1)]

    def _runs(self, window: NDArray[np.uint8], first: int, cut: tuple[int, int], *, values: bool = True) -> list[Run]:
        """What lies in bytes `cut` of the lanes, in a window that begins at byte `first`."""
        pieces = self.vector.layout.pieces(*cut)
        return [Run(p, p.lanes_in(window, first), self.vector.of(p) if values else None) for p in pieces]

    def _lend(self, low: int, high: int) -> NDArray[np.uint8]:
        """A window for the lanes of bytes low..high, gaps zero; one that was used before has its pages already."""
        with self._lock:
            fitting = [i for i, window in enumerate(self._windows) if window.size == high - low]
            window = self._windows.pop(fitting[-1]) if fitting else np.empty(high - low, dtype=np.uint8)
        self._clear_gaps(window, low, high)
        return window

    def _clear_gaps(self, window: NDArray[np.uint8], low: int, high: int) -> None:
        for start, stop in self.vector.layout.geometry.gaps(low, high):
            window[start - low : stop - low] = 0

    def _unmask(self) -> None:
        """Take this site's own masks off again: a new attempt needs the lanes."""
        if not self._masked:
            return
        worker = workers(self._codec, [(key, -sign) for key, sign in self._streams], None)()
        for low, high in self._masked:
            window = self.vector.shared(low, high)
            assert window is not None
            worker.uncover(self._runs(window, low, (low, high), values=False))
        self._masked = set()


class _Tools:
    """What a thread needs for a stretch, with scratch memory of its own: lent, not made anew for every stretch."""

    def __init__(self, codec: Callable[[], Codec], streams: Streams, tag_key: bytes | None) -> None:
        self._new = workers(codec, streams, tag_key)
        self._free: list[Worker] = []

    @contextmanager
    def one(self) -> Iterator[Worker]:
        try:
            tools = self._free.pop()  # not after a look whether there are any: another thread may take the last ones
        except IndexError:
            tools = self._new()
        yield tools
        self._free.append(tools)


class BlockHasher:
    """The digests of the 2^20-byte blocks of a vector's lanes, which come in rising order within each block.

    Bytes that are left out are gaps, and zero; no block is all gap. Thread-safe for different blocks.
    """

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._open: dict[int, tuple[Digest, int]] = {}  # block number -> its hash so far, up to byte
        self._digests: dict[int, bytes] = {}

    def add(self, start: int, lanes: NDArray[np.uint8]) -> None:
        """Hash `lanes`, which begin at byte `start` of the vector."""
        at, stop = start, start + lanes.size
        while at < stop:
            number = at // TREE_BLOCK_BYTES
            to = min(stop, (number + 1) * TREE_BLOCK_BYTES)
            if number not in self._open:
                self._open[number] = self._suite.new(), number * TREE_BLOCK_BYTES
            digest, hashed = self._open[number]
            if at > hashed:
                digest.update(bytes(at - hashed))
            digest.update(lanes[at - start : to - start].data)
            self._open[number] = digest, to
            if to == (number + 1) * TREE_BLOCK_BYTES:
                self._close(number, to)
            at = to

    def finish(self, stop: int) -> list[bytes]:
        """The digests of all blocks, in order. `stop`: the end of the part, where its last block ends too."""
        for number in list(self._open):
            self._close(number, min(stop, (number + 1) * TREE_BLOCK_BYTES))
        return [self._digests[number] for number in sorted(self._digests)]

    def _close(self, number: int, stop: int) -> None:
        digest, hashed = self._open.pop(number)
        digest.update(bytes(stop - hashed))
        self._digests[number] = digest.digest()
