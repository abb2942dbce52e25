"""The store's objects of one attempt, as machine.py and summing.py see them, and what of it goes when it is done.

An object of the relay is made as `M0.own`, then gets its meta file, then its name: after a crash it is there or not,
and what is left of it is cleared at the next start. A sum grows in a file of its maker's own, `Y.7.own`: after a change
of the roster another one may begin while the first still writes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable
from functools import partial
from operator import eq
from pathlib import Path

from typing_extensions import override

from fedhpc.files import sync_folder
from fedhpc.relay.rounds.attempt_objects import Objects
from fedhpc.relay.store.found_on_disk import remove_empty
from fedhpc.relay.store.object_store import Attempt, Store
from fedhpc.relay.store.upload import Upload, full_disk_is_a_problem
from fedhpc.secure.suite import Suite
from fedhpc.secure.transcript import MAX_CANON_BYTES
from fedhpc.wire import kinds
from fedhpc.wire.object_names import ObjectName

_makers = itertools.count()


class KeptAttempt(Objects):
    """One attempt's objects in the store. A message longer than canonical JSON may be counts as absent."""

    def __init__(self, store: Store, attempt: Attempt, suite: Suite) -> None:
        """`suite`: the federation's."""
        self._store, self._attempt, self.suite = store, attempt, suite
        self._maker = next(_makers)

    @override
    def get(self, name: str) -> bytes | None:
        stored = self._store.find(self._name(name))
        if stored is None or stored.length > MAX_CANON_BYTES:
            return None
        try:
            return stored.path.read_bytes()
        except FileNotFoundError:  # dropped since it was found
            return None

    @override
    def put(self, name: str, data: bytes) -> None:
        """Raises Problem (507)."""
        self.put_beside(name, data, None)

    def put_beside(self, name: str, data: bytes, beside: frozenset[str] | None) -> bool:
        """`put`, unless something has come into the attempt that is not in `beside`; whether it was put."""
        self._store.room_for(len(data))
        with full_disk_is_a_problem():
            self._scratch(name).write_bytes(data)
        return self._adopt(name, self._scratch(name), len(data), self.suite.tree(data), beside)

    @override
    def names(self) -> list[str]:
        return [stored.name.name for stored in self._store.list(self._attempt)]

    @override
    def size(self, name: str) -> int:
        stored = self._store.find(self._name(name))
        return 0 if stored is None else stored.length

    @override
    def tree(self, name: str) -> bytes:
        stored = self._store.find(self._name(name))
        return b"" if stored is None else stored.found

    @override
    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        path = self._store.path(self._name(name))
        try:
            _read(path, offset, view)
        except FileNotFoundError:
            _read(path.with_name(path.name + ".part"), offset, view)

    @override
    def read_made(self, name: str, offset: int, view: memoryview) -> None:
        _read(self._growing(name), offset, view)

    @override
    def unmake(self, name: str) -> None:
        path = self._store.path(self._name(name))
        with contextlib.suppress(FileNotFoundError):
            self._growing(name).unlink()
            remove_empty(path.parent)

    @override
    def make(self, name: str, length: int) -> None:
        with contextlib.suppress(OSError):
            self._store.reuse(self._growing(name), length)

    @override
    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Raises Problem (507)."""
        path = self._growing(name)
        with full_disk_is_a_problem():
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while data:
                    count = os.pwrite(fd, data, offset)
                    data, offset = data[count:], offset + count
            finally:
                os.close(fd)

    @override
    def keep(self, name: str, tree: bytes) -> None:
        """Raises Problem (507)."""
        growing = self._growing(name)
        self._adopt(name, growing, growing.stat().st_size, tree)

    def _adopt(self, name: str, scratch: Path, length: int, tree: bytes, beside: frozenset[str] | None = None) -> bool:
        full = self._name(name)
        if self._store.find(full) or self._store.upload(full):
            self._store.drop(lambda other: other == full)
        final = self._store.path(full)
        head = Upload(full, final, length, self.suite)
        try:
            with full_disk_is_a_problem():
                head.create()
                head.declare_tree(tree)
                head.close()
                for path in (scratch, final.with_name(final.name + ".meta")):
                    _sync(path)
                final.with_name(final.name + ".part").unlink()  # bytes and meta are what a whole object has
                scratch.rename(final)
                sync_folder(final.parent)
        except BaseException:
            head.discard()
            raise
        shown = self._store.publish(full, length, tree, beside)
        if not shown:
            final.unlink()
            head.discard()
        return shown

    def _scratch(self, name: str) -> Path:
        path = self._store.path(self._name(name))
        with full_disk_is_a_problem():
            path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(path.name + ".own")

    def _growing(self, name: str) -> Path:
        """Where this maker puts a large object together."""
        path = self._store.path(self._name(name))
        return path.with_name(f"{path.name}.{self._maker}.own")

    def _name(self, name: str) -> ObjectName:
        return ObjectName(*self._attempt, name)


def _read(path: Path, offset: int, view: memoryview) -> None:
    """Raises OSError if the file is shorter than it was."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a few microseconds a piece, and nothing to close later
    try:
        while view:
            count = os.preadv(fd, [view], offset)
            if count == 0:
                raise OSError(f"{path} is shorter than it was")
            view, offset = view[count:], offset + count
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def drop_large(store: Store, config: str, round_: int, attempt: int | None, *, also_sum: bool = True) -> None:
    """The vectors, and the sum, of an attempt or (None) of all attempts of a round."""

    def goes(name: ObjectName) -> bool:
        here = name.config == config and name.round == round_ and attempt in (None, name.attempt)
        return here and (name.kind == kinds.M3V.name or (also_sum and name.name == kinds.Y.name))

    store.drop(goes)


def drop_messages(store: Store, where: Attempt, answered: Iterable[int]) -> None:
    """All of an old attempt but that it was given up and, if sites answered in it, over which set it did.

    Answers that do not count go first: they cannot be told from the others once the rest has gone.
    """
    bound, answer = set(answered), kinds.M5.name
    kept = {kinds.NEXT.name} | ({kind.name for kind in kinds.KINDS if kind.binds} if bound else set())
    names = [stored.name for stored in store.list(where)]
    if bound and any(name.kind == answer and name.owner not in bound for name in names):
        store.drop(lambda name: name.attempt_name == where and name.kind == answer and name.owner not in bound)
    if any(name.kind not in kept for name in names):
        store.drop(lambda name: name.attempt_name == where and name.kind not in kept)


def drop_ready(store: Store, lobby: Attempt, site: int) -> None:
    """READY and LEAVE of a site that leaves, so that it can be ready again with the same words.

    READY first: a relay that is killed in between finds LEAVE, and comes here again.
    """
    for kind in (kinds.READY.name, kinds.LEAVE.name):
        store.drop(partial(eq, ObjectName(*lobby, f"{kind}/{site}")))
