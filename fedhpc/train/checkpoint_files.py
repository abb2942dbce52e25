"""One site's checkpoints, each whole and durable, or absent.

    round-000012.h5      of a site of one rank: index, tensors, outer, private, pending (checkpoint_arrays.py)
    round-000012/        of a site whose ranks hold a part of the model each: a file of every rank
                         (checkpoint_folder.py)

    best/                the best round's by a metric, whichever form it has (links to the same files)

A site may go on with another number of ranks: either is read by any.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedhpc.agreement.run_folder import CHECKPOINT_INDEX, checkpoints
from fedhpc.data import hdf5
from fedhpc.errors import DataError, InternalError, StorageError
from fedhpc.federation.checkpoint import Checkpoint, StoredState
from fedhpc.federation.held_stream import LoadedState
from fedhpc.federation.ranges import Held, forms_of
from fedhpc.federation.state_tensors import TOTAL_WEIGHT, model_name
from fedhpc.files import private_folder, sync_folder
from fedhpc.mpi.together import together
from fedhpc.train.checkpoint_arrays import damaged, read_arrays, read_signed, signed_facts, write_arrays
from fedhpc.train.checkpoint_folder import FolderState, StoredFolder, remove_folder, write_folder

BEST = "best"
SCHEMA_VERSION = 2
_WITHOUT_BLIND = 1  # of fedhpc 0.1.0: its model can still be exported, but no run continues from it
_NAME = re.compile(r"round-(\d{6,12})(\.h5)?")
_STALE_NAME = r"round-\d{6,12}\.h5"
_GROUPS = ("tensors", "outer", "private", "pending")

_Identity = tuple[tuple[int, int, int], ...]


class Hdf5Checkpoints:
    """The checkpoints in one directory, of which the newest `keep` (at least 2) whole ones are kept.

    The ranks of one site write; others may read. Files are for their owner only (mode 0600), because
    the private state in them must not leave the site. Raises StorageError if the directory cannot be used.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError("keep at least two checkpoints: sites may have to go back by one round")
        self.directory = directory
        self.keep = keep
        self._whole: dict[int, _Identity] = {}  # files whose digest this process has checked
        self._read_last: tuple[_Identity, Checkpoint] | None = None
        private_folder(directory)
        hdf5.remove_stale(directory, _STALE_NAME)

    def path(self, round_: int) -> Path:
        """Where the checkpoint of `round_` is, or would be, in one file."""
        return self.directory / f"round-{round_:06d}.h5"

    def folder(self, round_: int) -> Path:
        """Where it is, or would be, in a file of every rank."""
        return self.directory / f"round-{round_:06d}"

    def rounds(self) -> list[int]:
        """Rounds with a whole checkpoint, rising. Each file is read once to check its digest; then only its age."""
        return [round_ for round_ in self._files() if self._is_whole(round_)]

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint` atomically and durably, then remove those older than the newest `keep`.

        Every rank of the site calls it. Raises StorageError if it cannot be written; then all that was there is still
        there.
        """
        round_, held = checkpoint.round_, checkpoint.held
        if round_ < 0:
            raise InternalError(f"a checkpoint of round {round_}", "please report it")
        if held is not None:
            write_folder(self.folder(round_), checkpoint, held)
            if held.site.rank:
                return
        else:
            _write_file(self.path(round_), checkpoint)
        with suppress(OSError):  # of an earlier try with another number of ranks
            if held is not None:
                self.path(round_).unlink(missing_ok=True)
            elif self.folder(round_).exists():
                remove_folder(self.folder(round_))
        self._whole[round_] = _identity(self._paths(round_))
        self._read_last = None
        self._prune(round_)

    def load(self, round_: int, held: Held | None = None) -> Checkpoint:
        """The checkpoint of `round_`, its digests checked, as much as `held` gives this rank; absent: all of it.

        Raises DataError if it is missing, damaged or of another model; on every rank of the site where all call.
        What `rounds` has just read to check it is handed out once, and not read again: a large model takes seconds.
        """
        read, self._read_last = self._read_last, None
        if held is not None:
            return together(held.site, lambda: self._load(round_, held))
        if read is not None and read[1].round_ == round_ and self._whole.get(round_) == read[0]:
            return read[1]
        return self._load(round_, None)

    def _load(self, round_: int, held: Held | None) -> Checkpoint:
        if self._in_folder(round_):
            folder = StoredFolder(self.folder(round_))
            try:
                checkpoint = folder.checkpoint(held)
            finally:
                folder.close()
            place = self.folder(round_)
        else:
            place = self.path(round_)
            checkpoint = _read_file(place)
            if held is not None:
                checkpoint = _cut(checkpoint, held)
        if checkpoint.round_ != round_:
            raise DataError(f"{place} holds round {checkpoint.round_}", "it was renamed; give it its old name back")
        return checkpoint

    def _in_folder(self, round_: int) -> bool:
        return (self.folder(round_) / CHECKPOINT_INDEX).exists()

    def _paths(self, round_: int) -> Iterable[Path]:
        """All files of a checkpoint. Raises DataError."""
        if not self._in_folder(round_):
            return [self.path(round_)]
        folder = StoredFolder(self.folder(round_))
        return folder.paths()

    def state(self, round_: int) -> StoredState:
        """The state of `round_`, of which a folder's is read piece by piece. Raises DataError if it is damaged."""
        if not self._in_folder(round_):
            return LoadedState(self.load(round_))
        return FolderState(self.folder(round_))

    def keep_apart(self, round_: int) -> None:
        """Have the checkpoint of `round_`, the best yet, in `best/` in place of the one that is there.

        Its files are linked, so they take no more room. Raises StorageError.
        """
        if round_ not in self._files():
            return
        place = self.folder(round_) if self._in_folder(round_) else self.path(round_)
        best = self.directory / BEST
        new = best / f".{place.name}.new"
        try:
            private_folder(best)
            _remove_whole(new)
            if place.is_dir():
                new.mkdir(mode=0o700)
                for file in place.iterdir():
                    _link(file, new / file.name)
            else:
                _link(place, new)
            _remove_whole(best / place.name)  # of the same round, before it was repeated
            new.rename(best / place.name)
            for old in best.iterdir():
                if old.name != place.name:
                    _remove_whole(old)
            sync_folder(best)
        except OSError as error:
            raise StorageError(f"cannot keep the best checkpoint: {error}", f"check {best}") from None

    def discard_after(self, round_: int) -> None:
        """Remove the checkpoints newer than `round_`, damaged ones too. Raises StorageError."""
        newer = [number for number in self._files(damaged=True) if number > round_]
        try:
            for number in newer:
                self._remove(number)
            for number, path in checkpoints(self.directory / BEST).items():
                if number > round_:
                    _remove_whole(path)
            if newer:
                sync_folder(self.directory)
        except OSError as error:
            raise StorageError(f"cannot remove a checkpoint: {error}", f"check {self.directory}") from None

    def _remove(self, round_: int) -> None:
        self._whole.pop(round_, None)
        self.path(round_).unlink(missing_ok=True)
        if self.folder(round_).exists():
            remove_folder(self.folder(round_))

    def _files(self, *, damaged: bool = False) -> list[int]:
        """Rounds of which there is something; `damaged`: also folders without an index."""
        try:
            names = os.listdir(self.directory)
        except OSError as error:
            raise StorageError(f"cannot list {self.directory}: {error.strerror}", "check the file system") from None
        matches = [match for name in names if (match := _NAME.fullmatch(name))]
        found = {int(m[1]) for m in matches if m[2] or damaged or (self.directory / m[0] / CHECKPOINT_INDEX).exists()}
        return sorted(n for n in found if self.path(n).name in names or self.folder(n).name in names)

    def _is_whole(self, round_: int) -> bool:
        path = self.path(round_)
        try:
            identity = _identity(self._paths(round_))
            if self._whole.get(round_) != identity:
                self._read_last = None  # one in memory, not two
                self._check(round_, identity)
                self._whole[round_] = identity
        except (DataError, FileNotFoundError):
            self._whole.pop(round_, None)
            return False
        except OSError as error:  # not damage: calling it so would start the federation over
            raise StorageError(f"cannot read {path}: {error.strerror}", "check the file system") from None
        return True

    def _check(self, round_: int, identity: _Identity) -> None:
        """Read a checkpoint. Raises DataError if it is damaged."""
        if not self._in_folder(round_):
            self._read_last = identity, self.load(round_)
            return
        folder = StoredFolder(self.folder(round_))
        try:
            folder.check()
        finally:
            folder.close()
        if folder.round_ != round_:
            raise DataError(f"{folder.folder} holds round {folder.round_}", "give it its old name back")

    def _prune(self, newest: int) -> None:
        """Remove what is older than the `keep` newest whole checkpoints up to `newest`, the one just written."""
        whole = [round_ for round_ in self.rounds() if round_ <= newest]
        if len(whole) >= self.keep:
            for round_ in self._files(damaged=True):
                if round_ < whole[-self.keep]:
                    with suppress(OSError):  # the new checkpoint is safe; an old one that stays does no harm
                        self._remove(round_)


def _link(file: Path, new: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(file, new)
    except OSError:
        shutil.copyfile(file, new)
        new.chmod(0o600)


def _remove_whole(path: Path) -> None:
    """A file or a folder of a checkpoint, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _identity(paths: Iterable[Path]) -> _Identity:
    found = [path.stat() for path in paths]
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)


def _write_file(path: Path, checkpoint: Checkpoint) -> None:
    facts = {
        "round": checkpoint.round_,
        "sums": checkpoint.sums,
        "config": checkpoint.config.hex(),
        "ledger": checkpoint.ledger.hex(),
        "whole": checkpoint.whole,
        "blind": checkpoint.blind.hex(),
        **signed_facts(checkpoint),
    }
    write_arrays(path, SCHEMA_VERSION, facts, {group: getattr(checkpoint, group) for group in _GROUPS})


def _read_file(path: Path) -> Checkpoint:
    """The checkpoint in `path`, or DataError."""
    stored = read_arrays(path, (_WITHOUT_BLIND, SCHEMA_VERSION), _GROUPS)
    facts = stored.facts
    try:
        return Checkpoint(
            round_=int(facts["round"]),
            sums=int(facts["sums"]),
            config=bytes.fromhex(facts["config"]),
            ledger=bytes.fromhex(facts["ledger"]),
            whole=facts.get("whole") is True,
            blind=bytes.fromhex(facts["blind"]) if stored.version == SCHEMA_VERSION else b"",
            **read_signed(facts),
            **cast(Any, stored.groups),
        )
    except hdf5.DAMAGE as error:
        raise damaged(path, error) from None


def _cut(checkpoint: Checkpoint, held: Held) -> Checkpoint:
    """What this rank holds of a whole `checkpoint`. Raises DataError if it is of another model."""
    if forms_of(checkpoint.tensors) != held.forms:
        raise DataError("the checkpoint holds another model than this task builds", "did the task's options change?")
    outer = {name: array for name, array in checkpoint.outer.items() if name != TOTAL_WEIGHT}
    if {model_name(name) for name in outer} - held.forms.keys():
        raise DataError("the checkpoint holds the state of another strategy")
    cut = {name: np.array(held.piece(model_name(name), array), order="C") for name, array in outer.items()}
    total = {name: array for name, array in checkpoint.outer.items() if name == TOTAL_WEIGHT}
    return replace(checkpoint, tensors=held.pieces(checkpoint.tensors), outer=cut | total)
