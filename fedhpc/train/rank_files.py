"""Files of the ranks of a site, in which one stream of bytes lies: each rank's own, and SHA-256 of each 2^20 of them.

KIND-0003-of-0008.h5      what rank 3 holds of the stream, joined, in `data`; the digests in `digests`
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhpc.data import hdf5
from fedhpc.errors import DataError
from fedhpc.federation.held_stream import HeldStream, Segment
from fedhpc.mpi.collectives import Group
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, u64
from fedhpc.train.checkpoint_arrays import DAMAGED_HINT, damaged

SCHEMA_VERSION = 3
KIND = re.compile(r"[a-z][a-z_]{0,63}")
NAME = re.compile(rf"({KIND.pattern})-\d{{4,6}}-of-(\d{{4,6}})\.h5")


def rank_file(folder: Path, rank: int, ranks: int, kind: str = "rank") -> Path:
    """The file of rank `rank` of `ranks`."""
    return folder / f"{kind}-{rank:04d}-of-{ranks:04d}.h5"


def write_rank(path: Path, round_: int, site: Group, stream: HeldStream) -> bytes:
    """Write this rank's bytes; the digest of its file [32]."""
    nbytes = sum(memory.size for _, memory in stream.mine.all)
    digests = []
    with hdf5.new_file(path) as file:
        data = file.create_dataset("data", shape=(nbytes,), dtype=np.uint8)
        at = 0
        for block in _blocks(stream.mine.all):
            data[at : at + block.size] = block
            digests.append(hashlib.sha256(block.data).digest())
            at += block.size
        file.create_dataset("digests", data=np.frombuffer(b"".join(digests), np.uint8))
        file.attrs["schema_version"] = np.int64(SCHEMA_VERSION)
    return _file_digest(round_, site.rank, site.size, nbytes, b"".join(digests))


def _file_digest(round_: int, rank: int, ranks: int, nbytes: int, digests: bytes) -> bytes:
    """Of a rank's file: which it is, and its bytes."""
    head = b"".join(map(u64, (round_, rank, ranks, nbytes)))
    return hashlib.sha256(b"fedhpc checkpoint rank v3\0" + head + digests).digest()


def _blocks(runs: Sequence[tuple[int, NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
    """The bytes of `runs`, joined, in blocks of 2^20; each is valid until the next."""
    buffer = np.empty(TREE_BLOCK_BYTES, np.uint8)
    filled = 0
    for _, memory in runs:
        at = 0
        while at < memory.size:
            take = min(memory.size - at, TREE_BLOCK_BYTES - filled)
            buffer[filled : filled + take] = memory[at : at + take]
            at, filled = at + take, filled + take
            if filled == TREE_BLOCK_BYTES:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


class RankFiles:
    """One stream in the files of all ranks. Raises DataError for what is damaged or absent, StorageError for I/O."""

    def __init__(
        self, folder: Path, kind: str, round_: int, digests: Sequence[bytes], segments: Sequence[Segment]
    ) -> None:
        """`digests` [ranks]: of each file. `segments`: which rank holds which bytes of the stream, in order."""
        self._folder, self._kind, self._round, self._digests = folder, kind, round_, digests
        self._segments = segments
        self._ends = [segment.stop for segment in segments]
        self._offsets = _offsets(segments, len(digests))
        self._open: dict[int, _RankFile] = {}

    @property
    def nbytes(self) -> int:
        """Of the whole stream."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        """Copy bytes start..stop, checked, into `into` [stop - start]."""
        for index in range(bisect.bisect_right(self._ends, start), len(self._segments)):
            segment = self._segments[index]
            if segment.start >= stop:
                break
            low, high = max(segment.start, start), min(segment.stop, stop)
            self._rank(segment.rank).read(self._offsets[index] + low - segment.start, into[low - start : high - start])

    def open(self) -> None:
        """Open all files, which have as many bytes as the index says then."""
        for rank in range(len(self._digests)):
            self._rank(rank)

    def check(self) -> None:
        """Read all there is."""
        for rank in range(len(self._digests)):
            self._rank(rank).check()

    def paths(self) -> list[Path]:
        """All files."""
        return [self._path(rank) for rank in range(len(self._digests))]

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open = {}

    def _path(self, rank: int) -> Path:
        return rank_file(self._folder, rank, len(self._digests), self._kind)

    def _rank(self, rank: int) -> _RankFile:
        if rank not in self._open:
            nbytes = sum(s.stop - s.start for s in self._segments if s.rank == rank)
            ranks = len(self._digests)
            self._open[rank] = _RankFile(self._path(rank), self._round, rank, ranks, nbytes, self._digests[rank])
        return self._open[rank]


class _RankFile:
    """The bytes of one rank, checked block by block."""

    def __init__(self, path: Path, round_: int, rank: int, ranks: int, nbytes: int, digest: bytes) -> None:
        self._path, self._nbytes = path, nbytes
        self._file = hdf5.open_file(path)
        self._at, self._block = -1, np.empty(0, np.uint8)
        try:
            self._data = hdf5.get_dataset(self._file, "data", ["uint8"])
            digests = hdf5.get_dataset(self._file, "digests", ["uint8"])
            blocks = -(-nbytes // TREE_BLOCK_BYTES)
            if self._data.shape != (nbytes,) or self._data.chunks is not None or digests.shape != (32 * blocks,):
                raise DataError(f"{path} holds {self._data.shape} bytes, not {nbytes}", DAMAGED_HINT)
            self._digests = bytes(digests[:])
            if _file_digest(round_, rank, ranks, nbytes, self._digests) != digest:
                raise DataError(f"{path} is not the one that the index names", DAMAGED_HINT)
        except hdf5.DAMAGE as error:
            self._file.close()
            raise damaged(path, error) from None
        except BaseException:
            self._file.close()
            raise

    def read(self, offset: int, into: NDArray[np.uint8]) -> None:
        at = 0
        while at < into.size:
            block = (offset + at) // TREE_BLOCK_BYTES
            self._load(block)
            low = offset + at - block * TREE_BLOCK_BYTES
            take = min(into.size - at, self._block.size - low)
            into[at : at + take] = self._block[low : low + take]
            at += take

    def _load(self, block: int) -> None:
        if block == self._at:
            return
        start = block * TREE_BLOCK_BYTES
        try:
            data: NDArray[np.uint8] = self._data[start : min(start + TREE_BLOCK_BYTES, self._nbytes)]
        except hdf5.DAMAGE as error:
            raise damaged(self._path, error) from None
        if hashlib.sha256(data.data).digest() != self._digests[32 * block : 32 * block + 32]:
            raise DataError(f"{self._path} is damaged: its content does not have its SHA-256", DAMAGED_HINT)
        self._at, self._block = block, data

    def check(self) -> None:
        for block in range(-(-self._nbytes // TREE_BLOCK_BYTES)):
            self._load(block)

    def close(self) -> None:
        self._file.close()


def _offsets(segments: Sequence[Segment], ranks: int) -> list[int]:
    """Where each segment begins in the bytes of its rank."""
    filled = [0] * ranks
    found = []
    for start, stop, rank in segments:
        found.append(filled[rank])
        filled[rank] += stop - start
    return found
