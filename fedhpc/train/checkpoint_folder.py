"""One round's checkpoint of a site whose ranks hold a part of the model each: a folder with a file of every rank.

    round-000012/
      rank-0003-of-0008.h5    what rank 3 holds of the model and the outer state, its bytes joined, in `data`; SHA-256
                              of each 2^20 of them in `digests`
      private.h5              the trainer's private state
      index.h5                numbers, hashes, what is still to be summed, what each rank holds, and the SHA-256 of all
                              other files

The index is written last: without it the round is not there. The bytes are those of the tensors in layout order, then
of the strategy's arrays by name. A site with another number of ranks reads the parts that it needs.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.agreement.run_folder import CHECKPOINT_INDEX
from fedhpc.data import hdf5
from fedhpc.errors import DataError, FedhpcError, StorageError
from fedhpc.federation.checkpoint import Checkpoint, StoredState, Tensors
from fedhpc.federation.held_stream import HeldStream, Runs, Segment, joined, segments_of
from fedhpc.federation.ranges import Form, Forms, Held
from fedhpc.federation.state_tensors import TOTAL_WEIGHT, model_name, state_arrays, total_bytes
from fedhpc.files import private_folder, sync_folder, write_whole
from fedhpc.mpi.collectives import Group, SerialGroup
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, u64
from fedhpc.train.checkpoint_arrays import DAMAGED_HINT, damaged, read_arrays, write_arrays

SCHEMA_VERSION = 3
_PRIVATE = "private.h5"
_STALE_NAME = r"(?:index|private|rank-\d{4,6}-of-\d{4,6})\.h5"
_MOST_RANKS = 1 << 16
_SEEN_WITHIN_S = 10.0  # file systems over a network show a new file late


def rank_file(folder: Path, rank: int, ranks: int) -> Path:
    """The file of rank `rank` of `ranks`."""
    return folder / f"rank-{rank:04d}-of-{ranks:04d}.h5"


# --- writing


def write_folder(folder: Path, checkpoint: Checkpoint, held: Held) -> None:
    """Write what all ranks hold of `checkpoint`; every rank of the site calls it.

    Raises StorageError, on every rank, if one of them cannot write, or does not see what the leader writes.
    """
    site = held.site
    seen = secrets.token_bytes(16) if site.rank == 0 else None
    _together(site, lambda: _clear(folder, seen) if seen else None)
    token = site.broadcast_bytes(seen)
    outer = sorted(name for name in checkpoint.outer if name != TOTAL_WEIGHT)
    entries = [*checkpoint.tensors.items(), *((model_name(name), checkpoint.outer[name]) for name in outer)]
    stream = HeldStream(held, [(name, np.ascontiguousarray(array)) for name, array in entries])
    written: list[bytes] = []

    def write_mine() -> None:
        if site.rank:
            _refuse_unseen(folder, token, site)
        written.append(_write_rank(rank_file(folder, site.rank, site.size), checkpoint.round_, site, stream))

    _together(site, write_mine)
    digests = site.gather_bytes(written[0])

    def write_index() -> None:
        if site.rank == 0:
            for rank in range(site.size):
                _refuse_absent(rank_file(folder, rank, site.size), site, rank)
            facts = _facts(checkpoint, held, outer)
            facts["files"] = [digest.hex() for digest in digests]
            facts["sha256"] = write_arrays(folder / _PRIVATE, SCHEMA_VERSION, {}, {"private": checkpoint.private})
            write_arrays(folder / CHECKPOINT_INDEX, SCHEMA_VERSION, facts, {"pending": checkpoint.pending})
            _remove_others(folder, site.size)

    _together(site, write_index)


def _facts(checkpoint: Checkpoint, held: Held, outer: Sequence[str]) -> dict[str, Any]:
    total = checkpoint.outer.get(TOTAL_WEIGHT)
    return {
        "round": checkpoint.round_,
        "sums": checkpoint.sums,
        "config": checkpoint.config.hex(),
        "ledger": checkpoint.ledger.hex(),
        "whole": checkpoint.whole,
        "blind": checkpoint.blind.hex(),
        "total_weight": None if total is None else float(total[0]).hex(),
        "tensors": [[name, form.dtype.name, list(form.shape)] for name, form in held.forms.items()],
        "outer": list(outer),
        "bounds": [list(bound) for bound in held.bounds],
    }


def _together(site: Group, work: Callable[[], None]) -> None:
    """Do `work` on every rank; what one of them cannot do is raised on all."""
    told = b""
    try:
        work()
    except FedhpcError as error:
        told = f"{error.what}\n{error.hint}".encode()
    for rank, said in enumerate(site.gather_bytes(told)):
        if said:
            what, _, hint = said.decode().partition("\n")
            raise StorageError(f"{site.label}, rank {rank}: {what}" if site.size > 1 else what, hint)


def _clear(folder: Path, token: bytes) -> None:
    """An empty folder but for files that are written over, and a mark that the other ranks look for."""
    private_folder(folder)
    hdf5.remove_stale(folder, _STALE_NAME)
    try:
        (folder / CHECKPOINT_INDEX).unlink(missing_ok=True)  # first: from here on the round is not there
        sync_folder(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}", "check the file system") from None
    write_whole(folder / "shared", token, mode=0o600)


def _refuse_unseen(folder: Path, token: bytes, site: Group) -> None:
    def sees() -> bool:
        with contextlib.suppress(OSError):
            return (folder / "shared").read_bytes() == token
        return False

    if not _soon(sees):
        raise StorageError(
            f"does not see what the leader of its site writes in {folder}",
            "the run directory must be on a file system that all ranks of the site share, not on a node's own disk",
        )


def _refuse_absent(path: Path, site: Group, rank: int) -> None:
    if not _soon(path.exists):
        raise StorageError(
            f"does not see {path} of rank {rank}",
            "the run directory must be on a file system that all ranks of the site share, not on a node's own disk",
        )


def _soon(seen: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while not seen():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _remove_others(folder: Path, ranks: int) -> None:
    """Files of an earlier try with another number of ranks, and the mark."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            match = re.fullmatch(r"rank-\d+-of-(\d+)\.h5", entry.name)
            if entry.name == "shared" or (match and int(match[1]) != ranks):
                entry.unlink()


def _write_rank(path: Path, round_: int, site: Group, stream: HeldStream) -> bytes:
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


# --- reading


class StoredFolder:
    """One round's folder. Raises DataError for what is damaged or absent, StorageError for I/O."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / CHECKPOINT_INDEX
        stored = read_arrays(path, (SCHEMA_VERSION,), ("pending",))
        facts, self.pending = stored.facts, stored.groups["pending"]
        try:
            self.round_, self.sums = int(facts["round"]), int(facts["sums"])
            self.config, self.ledger = bytes.fromhex(facts["config"]), bytes.fromhex(facts["ledger"])
            self.blind, self.whole = bytes.fromhex(facts["blind"]), facts["whole"] is True
            weight = facts["total_weight"]
            self.total_weight = None if weight is None else float.fromhex(weight)
            self.forms: Forms = {n: Form(_float(kind), tuple(map(int, shape))) for n, kind, shape in facts["tensors"]}
            self.outer = [str(name) for name in facts["outer"]]
            self._private = str(facts["sha256"])
            bounds = [(int(first), int(last)) for first, last in facts["bounds"]]
            self._files = [bytes.fromhex(digest) for digest in facts["files"]]
            held = Held(SerialGroup(), self.forms, bounds)
            self._segments = segments_of(held, [*self.forms, *map(model_name, self.outer)])
        except (*hdf5.DAMAGE, AttributeError, IndexError) as error:
            raise damaged(path, error) from None
        ends = [segment.stop for segment in self._segments]
        starts = [0, *ends[:-1]]
        if len(self._files) != len(bounds) or [s.start for s in self._segments] != starts[: len(ends)]:
            raise DataError(f"{path} is damaged: its ranks do not hold all of the model", DAMAGED_HINT)
        self._ends, self._offsets = ends, _offsets(self._segments, len(bounds))
        self._ranks: dict[int, _RankFile] = {}

    @property
    def nbytes(self) -> int:
        """Of the model and the outer state."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        """Copy bytes start..stop of the model and the outer state, checked, into `into` [stop - start]."""
        for index in range(bisect.bisect_right(self._ends, start), len(self._segments)):
            segment = self._segments[index]
            if segment.start >= stop:
                break
            low, high = max(segment.start, start), min(segment.stop, stop)
            self._rank(segment.rank).read(self._offsets[index] + low - segment.start, into[low - start : high - start])

    def checkpoint(self, held: Held | None) -> Checkpoint:
        """What this rank holds of all that is here; `held` absent: all of it. The private state is the leader's."""
        held = held or Held(SerialGroup(), self.forms)
        if held.forms != self.forms:
            raise DataError(
                "the checkpoint holds another model than this task builds", "did the task's options change?"
            )
        if held.replicated:  # no more memory than the files have bytes
            self.open()
        tensors = held.empty()
        outer = {name: np.empty_like(tensors[model_name(name)]) for name in self.outer}
        stream = HeldStream(held, [*tensors.items(), *((model_name(n), a) for n, a in outer.items())])
        for start, memory in stream.mine.all:
            self.read(start, start + memory.size, memory)
        total: Tensors = {} if self.total_weight is None else {TOTAL_WEIGHT: np.array([self.total_weight])}
        return Checkpoint(
            round_=self.round_,
            sums=self.sums,
            config=self.config,
            tensors=tensors,
            outer=outer | total,
            private=self.private() if held.site.rank == 0 else {},
            ledger=self.ledger,
            blind=self.blind,
            pending=self.pending,
            whole=self.whole,
        )

    def private(self, *, keep: bool = True) -> dict[str, NDArray[Any]]:
        """The trainer's private state; `keep`: False to check it only."""
        path = self.folder / _PRIVATE
        stored = read_arrays(path, (SCHEMA_VERSION,), ("private",), keep=keep)
        if stored.sha256 != self._private:
            raise DataError(f"{path} is not the one of {self.folder / CHECKPOINT_INDEX}", DAMAGED_HINT)
        return stored.groups["private"]

    def open(self) -> None:
        """Open the files of all ranks, which have as many bytes as the index says then."""
        for rank in range(len(self._files)):
            self._rank(rank)

    def check(self) -> None:
        """Read all there is. Raises DataError."""
        for rank in range(len(self._files)):
            self._rank(rank).check()
        self.private(keep=False)

    def paths(self) -> Iterable[Path]:
        """All files."""
        return [
            self.folder / CHECKPOINT_INDEX,
            self.folder / _PRIVATE,
            *(self._path(r) for r in range(len(self._files))),
        ]

    def close(self) -> None:
        """Close the files of the ranks."""
        for file in self._ranks.values():
            file.close()
        self._ranks = {}

    def _path(self, rank: int) -> Path:
        return rank_file(self.folder, rank, len(self._files))

    def _rank(self, rank: int) -> _RankFile:
        if rank not in self._ranks:
            nbytes = sum(s.stop - s.start for s in self._segments if s.rank == rank)
            ranks = len(self._files)
            self._ranks[rank] = _RankFile(self._path(rank), self.round_, rank, ranks, nbytes, self._files[rank])
        return self._ranks[rank]


class FolderState(StoredState):
    """The state in a round's folder; all its files are open, so that it can be read to its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = stored = StoredFolder(folder)
        stored.open()
        tail = state_arrays({}, {}, stored.total_weight, stored.round_, stored.blind)
        self.round_, self.sums = stored.round_, stored.sums
        self.nbytes = stored.nbytes + total_bytes(tail)
        self._tail = Runs([(stored.nbytes + start, memory) for start, memory in joined(tail).all])

    @override
    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        self._folder.read(start, min(stop, self._folder.nbytes), into)
        self._tail.read(start, stop, into)

    @override
    def close(self) -> None:
        self._folder.close()


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


def _float(kind: str) -> np.dtype[Any]:
    if kind not in ("float32", "float64"):
        raise ValueError(f"a tensor of {kind}")
    return np.dtype(kind)


def remove_folder(folder: Path) -> None:
    """Remove a round's folder, the index first. Raises OSError."""
    (folder / CHECKPOINT_INDEX).unlink(missing_ok=True)
    sync_folder(folder)
    for entry in list(os.scandir(folder)):
        os.unlink(entry.path)
    folder.rmdir()
