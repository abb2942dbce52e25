"""The relay's objects on disk: written once, counted against quotas, found again after a restart.

Layout: `ROOT/config/round/attempt/M3v.2` with its blocks' marks in `M3v.2.meta`; `M3v.2.part` while it is partial. An
object is visible when it has been renamed, never before. Sites are kept apart: each federation has a quota, and each
site of it at most an equal share, so one site cannot fill the disk for the others. What the relay itself says is made
as `Y.own` and renamed; it is outside the quota, for a round must not fail because sites have stored much.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedhpc.errors import StorageError
from fedhpc.relay.problems import Problem
from fedhpc.relay.store.found_on_disk import found_on_disk, remove_empty
from fedhpc.relay.store.spare_files import KEPT_S, SpareFiles
from fedhpc.relay.store.upload import Upload, full_disk_is_a_problem, read_head
from fedhpc.secure.suite import Suite
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName

Attempt = tuple[str, int, int]
_BOOT = Path("/proc/sys/kernel/random/boot_id")
MAX_UPLOADS_PER_SITE = 32  # each holds two open files


def _boot() -> str:
    """The name of this boot of the machine. Without /proc each process counts as one: nothing else tells."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return secrets.token_hex(16)


@dataclass(frozen=True)
class Quota:
    """What one federation may keep at the relay, and the share of it that one site may use."""

    bytes: int
    objects: int
    sites: int

    def share(self, owner: int | None) -> tuple[int, int]:
        """Bytes and objects for one site; the relay itself may use everything."""
        return (self.bytes, self.objects) if owner is None else (self.bytes // self.sites, self.objects // self.sites)


@dataclass(frozen=True)
class Stored:
    """A whole object. `sequence` orders the objects of this process's life.

    `tree` [32] is what its site declared, `found` [32] what its bytes hashed to as they came.
    """

    name: ObjectName
    length: int
    tree: bytes
    sequence: int
    path: Path
    found: bytes


class Store:
    """All objects of all federations. Thread-safe. One process holds a store at a time."""

    def __init__(self, root: Path, reserve_bytes: int = 64 << 20) -> None:
        self._root, self._reserve_bytes = root, reserve_bytes
        self._lock = threading.Lock()
        self._objects: dict[ObjectName, Stored] = {}
        self._attempts: dict[Attempt, dict[ObjectName, Stored]] = {}  # the same, by attempt
        self._uploads: dict[ObjectName, Upload] = {}
        self._used: dict[tuple[str, int | None], list[int]] = {}
        self._waiters: dict[ObjectName | Attempt, set[threading.Event]] = {}
        self._readers: dict[int, int] = {}  # sequence -> how many read that object now
        self._sequence = 0
        self.life = os.urandom(8).hex()  # sequences of another life mean nothing
        self.on_object: list[Callable[[Stored], None]] = []
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = (root / "lock").open("a+")
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.rebooted = self._is_of_another_boot()
            self._spare = SpareFiles(root / "spare")
        except BlockingIOError:
            raise StorageError(
                f"another relay uses the store {root}", "end that one first, or is it this one?"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot use the store {root}: {error.strerror}") from None
        for name, length, found in found_on_disk(root, rebooted=self.rebooted):
            if isinstance(found, Upload):
                self._uploads[name] = found
            else:
                self._add(name, length, *found)
            self._count(name, length, 1)
        self._note_boot()  # not before: a relay killed until here has not looked at everything with suspicion
        self.found_at_start = self._sequence

    def _is_of_another_boot(self) -> bool:
        """Whether the store was used before the machine started. The lock file says when that was."""
        self._lock_file.seek(0)
        self._noted, self._this_boot = self._lock_file.read(), _boot()
        return self._noted not in ("", self._this_boot)

    def _note_boot(self) -> None:
        if self._noted == self._this_boot:
            return
        try:
            self._lock_file.truncate(0)
            self._lock_file.write(self._this_boot)
            self._lock_file.flush()
            os.fsync(self._lock_file.fileno())
        except OSError as error:
            raise StorageError(f"cannot use the store {self._root}: {error.strerror}") from None

    # --- reading

    def find(self, name: ObjectName) -> Stored | None:
        """The whole object, or None."""
        with self._lock:
            return self._objects.get(name)

    def upload(self, name: ObjectName) -> Upload | None:
        """The partial object, or None."""
        with self._lock:
            return self._uploads.get(name)

    def list(self, attempt: Attempt, after: int = 0) -> list[Stored]:
        """The attempt's whole objects with a sequence above `after`, oldest first."""
        with self._lock:
            found = [s for s in self._attempts.get(attempt, {}).values() if s.sequence > after]
        return sorted(found, key=lambda s: s.sequence)

    def of(self, config: str) -> Sequence[Stored]:
        """All whole objects of a federation, oldest first."""
        with self._lock:
            found = [s for n, s in self._objects.items() if n.config == config]
        return sorted(found, key=lambda s: s.sequence)

    def path(self, name: ObjectName) -> Path:
        """Where an object is, or would be."""
        folder = self._root / name.config / str(name.round) / str(name.attempt)
        return folder / name.name.replace("/", ".")

    @contextmanager
    def reading(self, stored: Stored) -> Iterator[None]:
        """While it lasts, the object's file is not written over, even if it is dropped. Raises Problem (404)."""
        with self._lock:
            if self._objects.get(stored.name) is not stored:
                raise Problem("absent", f"{stored.name.name} has been removed")
            self._readers[stored.sequence] = self._readers.get(stored.sequence, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._readers[stored.sequence] -= 1
                if not self._readers[stored.sequence]:
                    del self._readers[stored.sequence]

    @contextmanager
    def waiter(self, what: ObjectName | Attempt) -> Iterator[threading.Event]:
        """An event that is set when the object (or any object of the attempt) becomes whole. Look again after it."""
        event = threading.Event()
        with self._lock:
            self._waiters.setdefault(what, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                self._waiters[what].discard(event)
                if not self._waiters[what]:
                    del self._waiters[what]

    def wake_all(self) -> None:
        """Wake every waiter: the relay stops."""
        with self._lock:
            for events in self._waiters.values():
                for event in events:
                    event.set()

    def totals(self) -> dict[str, dict[int | None, dict[str, int]]]:
        """Configuration -> owner (None: the relay) -> bytes, objects and, of these, the partial ones (uploads)."""
        with self._lock:
            found: dict[str, dict[int | None, dict[str, int]]] = {}
            for (config, owner), (size, count) in self._used.items():
                found.setdefault(config, {})[owner] = {"bytes": size, "objects": count, "uploads": 0}
            for name in self._uploads:
                found[name.config][name.owner]["uploads"] += 1
            return found

    def disk(self) -> tuple[int, int]:
        """Free bytes of the disk, and how many of them are never used."""
        return shutil.disk_usage(self._root).free, self._reserve_bytes

    # --- writing

    def begin(self, name: ObjectName, length: int, quota: Quota, suite: Suite, *, durable: bool = True) -> Upload:
        """The upload of an object, new or taken up again. Nothing is allocated before length and quota are checked.

        `suite`: the federation's, which its blocks are hashed by; what came by another one is begun anew. A new one
        that is not `durable` outlives a kill of the relay, but no reboot of its machine.

        For a whole object of that length the upload it had is returned, `finished`, so that a repeat can be compared.
        Raises Problem: other length (409), quota or disk (507), too large (413).
        """
        with self._lock:
            stored = self._objects.get(name)
            known = self._uploads.get(name)
            if known is not None and known.suite != suite:  # the roster said another one, so nothing of it counts
                del self._uploads[name]
                self._count(name, -known.length, -1)
                known.discard()
                known = None
            if known is not None and self._lacks(0):  # perhaps it is taken up again because the disk was full
                self._spare.drop()
            if stored is None and known is None:
                self._check(name, length, quota)
                known = Upload(name, self.path(name), length, suite, durable=durable)
                self._count(name, length, 1)
                self._uploads[name] = known
                try:
                    with full_disk_is_a_problem():
                        self.reuse(known.part, length)
                    known.create()
                except BaseException:
                    del self._uploads[name]
                    self._count(name, -length, -1)
                    known.discard()
                    raise
        have = stored.length if stored else known.length if known else length
        if have != length:
            raise Problem("other-bytes", f"{name.name} has {have} bytes, not {length}")
        return _repeat(stored) if stored else known  # type: ignore[return-value]

    def finish(self, upload: Upload) -> bool:
        """Make the upload visible if it is whole; True if it is (or already was). Raises Problem (422, 507).

        `suite`: the federation's.
        """
        try:
            if not upload.finish():
                return False
        except Problem as problem:
            if problem.kind == "tree-mismatch":
                self._forget(upload)
            raise
        with self._lock:
            if self._uploads.get(upload.name) is not upload:
                return True
            del self._uploads[upload.name]
            stored = self._appear(upload.name, upload.length, upload.tree or b"", upload.found_tree)
        self._tell(stored)
        return True

    def room_for(self, length: int) -> None:
        """Raise Problem (507) unless the disk has room for `length` bytes more, perhaps without spare files."""
        if self._lacks(length) and (not self._spare.drop() or self._lacks(length)):
            raise Problem("disk-full", f"no space for {length} bytes")

    def _lacks(self, length: int) -> bool:
        return shutil.disk_usage(self._root).free < length + self._reserve_bytes

    def reuse(self, path: Path, length: int) -> None:
        """Put a file of `length` bytes at `path`, if none is there and a spare one is, with anything in it.

        Raises OSError.
        """
        if length > BLOCK_BYTES and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._spare.take(path, length)

    def publish(self, name: ObjectName, length: int, tree: bytes, beside: frozenset[str] | None = None) -> bool:
        """Show a durable object of the relay, if just `beside` (None: anything) is in its attempt; whether it is."""
        with self._lock:
            if beside is not None and {n.name for n in self._attempts.get(name.attempt_name, ())} != beside:
                return False
            self._count(name, length, 1)
            stored = self._appear(name, length, tree, tree)
        self._tell(stored)
        return True

    def drop_rounds(self, config: str, before: int) -> int:
        """Remove every object of the federation's rounds below `before`, but not of round 0; how many."""
        return self.drop(lambda name: name.config == config and 0 < name.round < before)

    def drop_attempt(self, attempt: Attempt) -> int:
        """Remove every object of one attempt; how many."""
        return self.drop(lambda name: name.attempt_name == attempt)

    def expire_uploads(self, idle_s: float) -> int:
        """Remove partial objects that nobody has touched for `idle_s`; how many."""
        limit = time.time() - idle_s
        with self._lock:
            idle = [u for u in self._uploads.values() if u.last_active < limit]
        for upload in idle:
            upload.discard()
            self._forget(upload)
        self._spare.drop(KEPT_S)
        return len(idle)

    def close(self) -> None:
        """Release the files and the lock."""
        with self._lock:
            for upload in self._uploads.values():
                upload.close()
            self._lock_file.close()

    # --- inside; the caller holds the lock where nothing else is said

    def _check(self, name: ObjectName, length: int, quota: Quota) -> None:
        most_bytes, most_objects = quota.share(name.owner)
        if length > most_bytes:
            raise Problem("too-large", f"{length} bytes; at most {most_bytes} of this federation's quota for one site")
        size, count = self._used.get((name.config, name.owner), (0, 0))
        all_used = [u for (config, owner), u in self._used.items() if config == name.config and owner is not None]
        if size + length > most_bytes or sum(u[0] for u in all_used) + length > quota.bytes:
            raise Problem("quota", f"{name.name} of {length} bytes does not fit into the federation's quota")
        if count + 1 > most_objects or sum(u[1] for u in all_used) + 1 > quota.objects:
            raise Problem("quota", "too many objects of this federation")
        of_site = [u for n, u in self._uploads.items() if (n.config, n.owner) == (name.config, name.owner)]
        if len(of_site) >= MAX_UPLOADS_PER_SITE:
            raise Problem("quota", f"{MAX_UPLOADS_PER_SITE} unfinished objects of this site: finish them first")
        self.room_for(length)

    def _count(self, name: ObjectName, size: int, objects: int) -> None:
        used = self._used.setdefault((name.config, name.owner), [0, 0])
        used[0], used[1] = used[0] + size, used[1] + objects
        if used[1] == 0:
            del self._used[name.config, name.owner]

    def _add(self, name: ObjectName, length: int, tree: bytes, found: bytes) -> Stored:
        self._sequence += 1
        stored = Stored(name, length, tree, self._sequence, self.path(name), found)
        self._objects[name] = self._attempts.setdefault(name.attempt_name, {})[name] = stored
        return stored

    def _appear(self, name: ObjectName, length: int, tree: bytes, found: bytes) -> Stored:
        """Add the object and wake who waits for it."""
        stored = self._add(name, length, tree, found)
        for what in (name, name.attempt_name):
            for event in self._waiters.get(what, ()):
                event.set()
        return stored

    def _tell(self, stored: Stored) -> None:
        """Without the lock."""
        for call in self.on_object:
            call(stored)

    def _forget(self, upload: Upload) -> None:
        """Takes the lock."""
        with self._lock:
            if self._uploads.get(upload.name) is upload:
                del self._uploads[upload.name]
                self._count(upload.name, -upload.length, -1)

    def drop(self, goes: Callable[[ObjectName], bool]) -> int:
        """Remove every object, whole or partial, for which `goes` says so; how many."""
        with self._lock:
            objects = [s for n, s in self._objects.items() if goes(n)]
            uploads = [u for n, u in self._uploads.items() if goes(n)]
            for stored in objects:
                del self._objects[stored.name], self._attempts[stored.name.attempt_name][stored.name]
                if not self._attempts[stored.name.attempt_name]:
                    del self._attempts[stored.name.attempt_name]
                self._count(stored.name, -stored.length, -1)
            read = set(self._readers)
        # Without the lock: large files take long. A relay killed here finds the objects again, and drops them.
        for stored in objects:
            if stored.length > BLOCK_BYTES and stored.sequence not in read:
                self._spare.put(stored.path, stored.length)
            else:
                stored.path.unlink(missing_ok=True)
            stored.path.with_name(stored.path.name + ".meta").unlink(missing_ok=True)
        for upload in uploads:
            upload.discard()
            self._forget(upload)
        names = [s.name for s in objects] + [u.name for u in uploads]
        for config, round_, attempt in {n.attempt_name for n in names}:
            remove_empty(self._root / config / str(round_) / str(attempt))
        return len(objects) + len(uploads)


class _Repeat(Upload):
    """A whole object, to compare the blocks of a repeated PUT with; it never writes."""

    def write_block(self, index: int, block: memoryview) -> bool:
        """Accept the bytes that are there, refuse others."""
        if index not in self._there:
            raise Problem("other-bytes", "the object is gone")
        return super().write_block(index, block)


def _repeat(stored: Stored) -> Upload:
    suite = read_head(stored.path.with_name(stored.path.name + ".meta")).suite
    upload = _Repeat(stored.name, stored.path, stored.length, suite)
    upload.recall()
    upload.finished = True
    return upload
