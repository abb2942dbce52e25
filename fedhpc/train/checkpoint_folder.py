"""One round's checkpoint of a site whose ranks hold a part of the model each: a folder with a file of every rank.

    round-000012/
      rank-0003-of-0008.h5    what rank 3 holds of the model and the outer state, its bytes joined, in `data`; SHA-256
                              of each 2^20 of them in `digests`
      exp_avg-0003-of-0008.h5 the same of optimiser state that is cut as the model: a file of each rank for each kind
      private.h5              the rest of the trainer's private state
      index.h5                numbers, hashes, what is still to be summed, what each rank holds, and the SHA-256 of all
                              other files

The index is written last: without it the round is not there. The bytes are those of the tensors in layout order, then
of the strategy's arrays by name. A site with another number of ranks reads the parts that it needs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.agreement.run_folder import CHECKPOINT_INDEX
from fedhpc.data import hdf5
from fedhpc.errors import DataError, InternalError, StorageError
from fedhpc.federation.checkpoint import Checkpoint, StoredState, Tensors
from fedhpc.federation.held_stream import HeldStream, Runs, Segment, joined, segments_of
from fedhpc.federation.ranges import Form, Forms, Held
from fedhpc.federation.state_tensors import TOTAL_WEIGHT, model_name, state_arrays, total_bytes
from fedhpc.files import private_folder, sync_folder, write_whole
from fedhpc.mpi.collectives import Group, SerialGroup
from fedhpc.mpi.together import together
from fedhpc.train.checkpoint_arrays import DAMAGED_HINT, damaged, read_arrays, read_signed, signed_facts, write_arrays
from fedhpc.train.rank_files import KIND, NAME, SCHEMA_VERSION, RankFiles, rank_file, write_rank

_PRIVATE = "private.h5"
_STALE_NAME = rf"(?:(?:index|private)\.h5|{NAME.pattern})"
_MOST_RANKS = 1 << 16
_SEEN_WITHIN_S = 10.0  # file systems over a network show a new file late


# --- writing


def write_folder(folder: Path, checkpoint: Checkpoint, held: Held) -> None:
    """Write what all ranks hold of `checkpoint`; every rank of the site calls it.

    Raises StorageError, on every rank, if one of them cannot write, or does not see what the leader writes.
    """
    site = held.site
    seen = secrets.token_bytes(16) if site.rank == 0 else None
    together(site, lambda: _clear(folder, seen) if seen else None, name_rank=True)
    token = site.broadcast_bytes(seen)
    outer = sorted(name for name in checkpoint.outer if name != TOTAL_WEIGHT)
    entries = [*checkpoint.tensors.items(), *((model_name(name), checkpoint.outer[name]) for name in outer)]
    stream = HeldStream(held, [(name, np.ascontiguousarray(array)) for name, array in entries])

    def write_mine() -> bytes:
        if site.rank:
            _refuse_unseen(folder, token, site)
        return write_rank(rank_file(folder, site.rank, site.size), checkpoint.round_, site, stream)

    digests = site.gather_bytes(together(site, write_mine, name_rank=True))
    parts = {kind: _write_part(folder, checkpoint, held, kind) for kind in checkpoint.parts}

    def write_index() -> None:
        if site.rank == 0:
            for kind, rank in itertools.product(("rank", *parts), range(site.size)):
                _refuse_absent(rank_file(folder, rank, site.size, kind), site, rank)
            facts = _facts(checkpoint, held, outer)
            facts["files"] = [digest.hex() for digest in digests]
            facts["parts"] = parts
            facts["sha256"] = write_arrays(folder / _PRIVATE, SCHEMA_VERSION, {}, {"private": checkpoint.private})
            write_arrays(folder / CHECKPOINT_INDEX, SCHEMA_VERSION, facts, {"pending": checkpoint.pending})
            _remove_others(folder, site.size, ("rank", *parts))

    together(site, write_index, name_rank=True)


def _write_part(folder: Path, checkpoint: Checkpoint, held: Held, kind: str) -> dict[str, Any]:
    """Write what this rank holds of optimiser state; what the index says of it. Collective."""
    if not KIND.fullmatch(kind):
        raise InternalError(f"optimiser state is called {kind!r}", "please report it")
    site, pieces = held.site, checkpoint.parts[kind]()
    stream = HeldStream(held, [(name, np.ascontiguousarray(piece)) for name, piece in pieces.items()])
    path = rank_file(folder, site.rank, site.size, kind)
    written = together(site, lambda: write_rank(path, checkpoint.round_, site, stream), name_rank=True)
    return {"tensors": list(pieces), "files": [digest.hex() for digest in site.gather_bytes(written)]}


def _facts(checkpoint: Checkpoint, held: Held, outer: Sequence[str]) -> dict[str, Any]:
    total = checkpoint.outer.get(TOTAL_WEIGHT)
    return {
        "round": checkpoint.round_,
        "sums": checkpoint.sums,
        "config": checkpoint.config.hex(),
        "ledger": checkpoint.ledger.hex(),
        "whole": checkpoint.whole,
        "blind": checkpoint.blind.hex(),
        **signed_facts(checkpoint),
        "total_weight": None if total is None else float(total[0]).hex(),
        "tensors": [[name, form.dtype.name, list(form.shape)] for name, form in held.forms.items()],
        "outer": list(outer),
        "bounds": [list(bound) for bound in held.bounds],
    }


def _clear(folder: Path, token: bytes) -> None:
    """An empty folder but for files that are written over, and a mark that the other ranks look for."""
    private_folder(folder)
    hdf5.remove_stale(folder, _STALE_NAME)
    try:
        (folder / CHECKPOINT_INDEX).unlink(missing_ok=True)  # first: from here on the round is not there
        sync_folder(folder)
        sync_folder(folder.parent)  # the folder's own name
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


def _remove_others(folder: Path, ranks: int, kinds: Sequence[str]) -> None:
    """Files of an earlier try with another number of ranks, and the mark."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            match = NAME.fullmatch(entry.name)
            if entry.name == "shared" or (match and (match[1] not in kinds or int(match[2]) != ranks)):
                entry.unlink()


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
            self._signed = read_signed(facts)
            weight = facts["total_weight"]
            self.total_weight = None if weight is None else float.fromhex(weight)
            self.forms: Forms = {n: Form(_float(kind), _shape(shape)) for n, kind, shape in facts["tensors"]}
            self.outer = [str(name) for name in facts["outer"]]
            self._private = str(facts["sha256"])
            bounds = [(int(first), int(last)) for first, last in facts["bounds"]]
            if len(bounds) > _MOST_RANKS:
                raise ValueError(f"{len(bounds)} ranks")
            files = [bytes.fromhex(digest) for digest in facts["files"]]
            held = Held(SerialGroup(), self.forms, bounds)
            cut_as = [*self.forms, *map(model_name, self.outer)]
            segments = segments_of(held, cut_as)
            parts = {_kind(kind): _part(held, part) for kind, part in facts.get("parts", {}).items()}
        except (*hdf5.DAMAGE, AttributeError, IndexError) as error:
            raise damaged(path, error) from None
        named = ((cut_as, files, segments), *((p.names, p.digests, p.segments) for p in parts.values()))
        for names, digests, of in named:
            places = [0, *(segment.stop for segment in of)]
            whole = places[-1] == sum(self.forms[name].nbytes for name in names)
            if not whole or len(digests) != len(bounds) or [s.start for s in of] != places[:-1]:
                raise DataError(f"{path} is damaged: its ranks do not hold all of the model", DAMAGED_HINT)
        self._state = RankFiles(folder, "rank", self.round_, files, segments)
        self._parts = {
            kind: (part.names, RankFiles(folder, kind, self.round_, part.digests, part.segments))
            for kind, part in parts.items()
        }

    @property
    def nbytes(self) -> int:
        """Of the model and the outer state."""
        return self._state.nbytes

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        """Copy bytes start..stop of the model and the outer state, checked, into `into` [stop - start]."""
        self._state.read(start, stop, into)

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
            parts={kind: partial(self._part, held, kind) for kind in self._parts},
            **self._signed,
        )

    def _part(self, held: Held, kind: str) -> Tensors:
        """What this rank holds of optimiser state, read now; closes its files."""
        names, files = self._parts[kind]
        pieces = {name: np.empty(held.piece_shape(name), held.forms[name].dtype) for name in names}
        try:
            for start, memory in HeldStream(held, list(pieces.items())).mine.all:
                files.read(start, start + memory.size, memory)
        finally:
            files.close()
        return pieces

    def private(self, *, keep: bool = True) -> dict[str, NDArray[Any]]:
        """The trainer's private state; `keep`: False to check it only."""
        path = self.folder / _PRIVATE
        stored = read_arrays(path, (SCHEMA_VERSION,), ("private",), keep=keep)
        if stored.sha256 != self._private:
            raise DataError(f"{path} is not the one of {self.folder / CHECKPOINT_INDEX}", DAMAGED_HINT)
        return stored.groups["private"]

    def open(self) -> None:
        """Open the files of the state, which have as many bytes as the index says then."""
        self._state.open()

    def check(self) -> None:
        """Read all there is. Raises DataError."""
        for files in self._all:
            files.check()
        self.private(keep=False)

    def paths(self) -> Iterable[Path]:
        """All files."""
        ranks = itertools.chain.from_iterable(files.paths() for files in self._all)
        return [self.folder / CHECKPOINT_INDEX, self.folder / _PRIVATE, *ranks]

    def close(self) -> None:
        """Close the files of the ranks."""
        for files in self._all:
            files.close()

    @property
    def _all(self) -> list[RankFiles]:
        return [self._state, *(files for _, files in self._parts.values())]


class _Part(NamedTuple):
    """What an index says of one kind of optimiser state."""

    names: list[str]  # of the tensors that have it
    digests: list[bytes]
    segments: list[Segment]


def _part(held: Held, said: Any) -> _Part:
    names = [str(name) for name in said["tensors"]]
    return _Part(names, [bytes.fromhex(digest) for digest in said["files"]], segments_of(held, names))


def _kind(said: str) -> str:
    if not KIND.fullmatch(said):
        raise ValueError(f"state called {said!r}")
    return said


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


def _shape(said: Sequence[Any]) -> tuple[int, ...]:
    shape = tuple(map(int, said))
    if min(shape, default=0) < 0:
        raise ValueError(f"a tensor of shape {shape}")
    return shape


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
