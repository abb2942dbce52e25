"""Arrays one after another as one stream of bytes, of which each rank of a site holds its ranges (ranges.py).

Hashes, files and other sites know a model and its state as such a stream. It goes to the leader, or comes from it, in
windows, so that no rank ever holds all of it.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.ranges import Held
from fedhpc.federation.state_tensors import arrays_of_checkpoint, tensors_tree, total_bytes
from fedhpc.mpi.byte_moves import Plan, Read, Span, move
from fedhpc.secure.suite import Suite
from fedhpc.secure.transcript import TREE_BLOCK_BYTES

WINDOW_BYTES = 8 << 20
_MIXED_AT_ONCE = 16  # blocks of several ranks that are hashed together

Entry = tuple[str | None, NDArray[Any]]
"""What this rank holds of an array whose elements are cut as those of a tensor of the model, and that tensor's name;
None: of a small array that every rank holds whole."""


class Runs:
    """Stretches of a stream in this rank's memory."""

    def __init__(self, runs: Sequence[tuple[int, NDArray[np.uint8]]]) -> None:
        """`runs`: (first byte, memory), rising, apart."""
        self.all = runs
        self._starts = [start for start, _ in runs]

    def views(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(first byte, memory) of what lies in bytes start..stop, rising: views."""
        for index in range(max(bisect.bisect_right(self._starts, start) - 1, 0), len(self.all)):
            at, memory = self.all[index]
            if at >= stop:
                break
            low, high = max(at, start), min(at + memory.size, stop)
            if low < high:
                yield low, memory[low - at : high - at]

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        """Copy bytes start..stop into `into` [stop - start]; what is not here stays as it is there."""
        for at, view in self.views(start, stop):
            into[at - start : at - start + view.size] = view

    def write(self, start: int, stop: int, data: NDArray[np.uint8]) -> None:
        """Replace bytes start..stop by `data`, where they are here."""
        for at, view in self.views(start, stop):
            view[:] = data[at - start : at - start + view.size]


def joined(arrays: Sequence[NDArray[Any]]) -> Runs:
    """Whole C-contiguous `arrays` one after another."""
    runs, at = [], 0
    for array in arrays:
        runs.append((at, raw(array)))
        at += array.nbytes
    return Runs(runs)


class LoadedState:
    """The state of a whole checkpoint in memory, as one stream of bytes: see StoredState."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        arrays = [np.ascontiguousarray(array) for array in arrays_of_checkpoint(checkpoint)]
        self.round_, self.sums, self.nbytes = checkpoint.round_, checkpoint.sums, total_bytes(arrays)
        self.read = joined(arrays).read

    def close(self) -> None:
        """Nothing is open."""


class Segment(NamedTuple):
    """Bytes start..stop of a stream, which rank `rank` holds."""

    start: int
    stop: int
    rank: int


def segments_of(held: Held, cut_as: Sequence[str], at: int = 0) -> list[Segment]:
    """Who holds a stream of arrays that are cut, each, as a tensor; it begins at byte `at`. Where all hold
    all it is the leader.
    """
    found = []
    for name in cut_as:
        form = held.forms[name]
        item = form.dtype.itemsize
        found += [Segment(at + start * item, at + stop * item, rank) for rank, start, stop in held.cuts(name)]
        at += form.nbytes
    return found


class HeldStream:
    """One stream of a site. Every rank makes every call, and holds its own segments of the bytes."""

    def __init__(self, held: Held, entries: Sequence[Entry]) -> None:
        """`entries`: the arrays in the order of the stream, C-contiguous; the stream reads and writes their memory."""
        self._site, self._replicated = held.site, held.replicated
        self._arrays = [array for _, array in entries]
        self._segments: list[Segment] = []
        mine, at = [], 0
        for name, array in entries:
            if name is None:
                self._segments.append(Segment(at, at + array.nbytes, 0))
                mine.append((at, raw(array)))
                at += array.nbytes
                continue
            self._segments += segments_of(held, [name], at)
            mine.append((at + held.cut(name)[0] * array.itemsize, raw(array)))
            at += held.forms[name].nbytes
        self.nbytes = at
        """Of the whole stream."""
        self.mine = Runs([run for run in mine if run[1].size])
        self._stops = [segment.stop for segment in self._segments]

    def within(self, start: int, stop: int) -> list[Segment]:
        """The segments in bytes start..stop, cut to them."""
        found = []
        for index in range(bisect.bisect_right(self._stops, start), len(self._segments)):
            segment = self._segments[index]
            if segment.start >= stop:
                break
            low, high = max(segment.start, start), min(segment.stop, stop)
            if low < high:
                found.append(Segment(low, high, segment.rank))
        return found

    def to_leader(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes in order, in windows, at the leader, each valid until the next; the other ranks get empty ones.

        Every rank goes through all of them.
        """
        leads = self._site.rank == 0
        window = np.empty(min(WINDOW_BYTES, self.nbytes) if leads else 0, np.uint8)
        for start in range(0, self.nbytes, WINDOW_BYTES):
            stop = min(start + WINDOW_BYTES, self.nbytes)
            if self._replicated:
                if leads:
                    self.mine.read(start, stop, window)
            else:
                plan = Plan(self._spans(self.within(start, stop)), self._at_leader((start, stop)))
                move(self._site, plan, self.mine.read, Runs([(start, window)]).write)
            yield window[: stop - start] if leads else window

    def from_leader(self, read: Read) -> None:
        """Fill the arrays of all ranks with the stream, which the leader can `read` in windows, one after another."""
        leads = self._site.rank == 0
        window = np.empty(min(WINDOW_BYTES, self.nbytes) if leads else 0, np.uint8)
        for start in range(0, self.nbytes, WINDOW_BYTES):
            stop = min(start + WINDOW_BYTES, self.nbytes)
            if leads:
                read(start, stop, window[: stop - start])
            everywhere = [[(start, stop)]] * self._site.size
            wanted = everywhere if self._replicated else self._spans(self.within(start, stop))
            plan = Plan(self._at_leader((start, stop)), wanted)
            move(self._site, plan, Runs([(start, window)]).read, self.mine.write)

    def _spans(self, segments: Iterable[Segment]) -> list[list[Span]]:
        """Of each rank."""
        spans: list[list[Span]] = [[] for _ in range(self._site.size)]
        for start, stop, rank in segments:
            spans[rank].append((start, stop))
        return spans

    def _at_leader(self, span: Span) -> list[list[Span]]:
        return [[span], *([] for _ in range(self._site.size - 1))]

    def tree(self, suite: Suite) -> bytes:
        """Tree of the stream [32], on every rank. Each rank hashes the blocks that it holds, or a share of them."""
        if self._replicated or self._site.size == 1:
            return tensors_tree(self._site, self._arrays, suite)
        owners: list[int] = []
        digests: dict[int, bytes] = {}
        mixed: list[tuple[int, list[Segment]]] = []
        for block, start in enumerate(range(0, self.nbytes, TREE_BLOCK_BYTES)):
            stop = min(start + TREE_BLOCK_BYTES, self.nbytes)
            segments = self.within(start, stop)
            owner = segments[0].rank
            owners.append(owner)
            if any(segment.rank != owner for segment in segments):
                mixed.append((block, segments))
            elif owner == self._site.rank:
                digests[block] = _digest(suite, (view for _, view in self.mine.views(start, stop)))
        for first in range(0, len(mixed), _MIXED_AT_ONCE):
            digests |= self._mixed(suite, mixed[first : first + _MIXED_AT_ONCE])
        gathered = self._site.gather_bytes(b"".join(digests[block] for block in sorted(digests)))
        taken = [0] * self._site.size
        found = []
        for owner in owners:
            found.append(gathered[owner][taken[owner] : taken[owner] + 32])
            taken[owner] += 32
        return suite.root(self.nbytes, found)

    def _mixed(self, suite: Suite, blocks: Sequence[tuple[int, list[Segment]]]) -> dict[int, bytes]:
        """The digests of blocks of several ranks, by number, at the rank that holds the first byte of each."""
        mine = [block for block, segments in blocks if segments[0].rank == self._site.rank]
        here = [(b * TREE_BLOCK_BYTES, min((b + 1) * TREE_BLOCK_BYTES, self.nbytes)) for b in mine]
        gathered = [(start, np.empty(stop - start, np.uint8)) for start, stop in here]
        held = self._spans(segment for _, segments in blocks for segment in segments)
        wanted = self._spans(s._replace(rank=segments[0].rank) for _, segments in blocks for s in segments)
        move(self._site, Plan(held, wanted), self.mine.read, Runs(gathered).write)
        return {block: _digest(suite, [memory]) for block, (_, memory) in zip(mine, gathered, strict=True)}

    def sha256(self) -> str:
        """SHA-256 of the whole stream, in hex, on every rank."""
        digest = hashlib.sha256()
        if self._replicated or self._site.size == 1:
            for array in self._arrays:
                digest.update(raw(array).data)
            return digest.hexdigest()
        for window in self.to_leader():
            digest.update(window.data)
        return self._site.broadcast_bytes(digest.digest() if self._site.rank == 0 else None).hex()


def spread(held: Held, pieces: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, int, NDArray[Any]]]:
    """All of the tensors whose `pieces` the ranks hold, on every rank: (name, first element, values [n]), in order.

    It comes in windows, and is valid until the next. Every rank goes through all of it.
    """
    site = held.site
    if held.replicated or site.size == 1:
        yield from ((name, 0, piece.reshape(-1)) for name, piece in pieces.items())
        return
    buffer = np.empty(WINDOW_BYTES, np.uint8)
    for window in _windows(held):
        places: list[Segment] = []  # of neighbours that one rank holds
        for name, rank, start, stop, at, size in window:
            if rank == site.rank:
                first = held.cut(name)[0]
                buffer[at : at + size] = raw(pieces[name].reshape(-1)[start - first : stop - first])
            low = places.pop().start if places and places[-1].rank == rank else at
            places.append(Segment(low, at + size, rank))
        for low, high, rank in places:
            site.broadcast(buffer[low:high], rank)
        for name, _, start, _, at, size in window:
            yield name, start, buffer[at : at + size].view(held.forms[name].dtype)


def whole_tensors(held: Held, pieces: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The whole tensors whose `pieces` the ranks hold, on every rank: copies, in their shapes. Collective."""
    found = {name: np.empty(form.shape, form.dtype) for name, form in held.forms.items()}
    for name, first, values in spread(held, pieces):
        found[name].reshape(-1)[first : first + values.size] = values
    return found


class _Slot(NamedTuple):
    """Elements start..stop of a tensor, of rank `rank`, at bytes at..at + size of a window."""

    name: str
    rank: int
    start: int
    stop: int
    at: int
    size: int


def _windows(held: Held) -> Iterator[list[_Slot]]:
    """All elements in order, in windows of at most WINDOW_BYTES in which values lie at multiples of 8."""
    window: list[_Slot] = []
    at = 0
    for name, form in held.forms.items():
        item = form.dtype.itemsize
        for rank, start, stop in held.cuts(name):
            while start < stop:
                if at + item > WINDOW_BYTES:
                    yield window
                    window, at = [], 0
                upto = min(stop, start + (WINDOW_BYTES - at) // item)
                size = (upto - start) * item
                window.append(_Slot(name, rank, start, upto, at, size))
                start, at = upto, -(-(at + size) // 8) * 8
    if window:
        yield window


def raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a C-contiguous array: a view."""
    view: NDArray[np.uint8] = array.reshape(-1).view(np.uint8)
    return view


def _digest(suite: Suite, parts: Iterable[NDArray[np.uint8]]) -> bytes:
    digest = suite.new()
    for part in parts:
        digest.update(part.data)
    return digest.digest()
