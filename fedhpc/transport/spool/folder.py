"""The files of a spool directory: where everything lies, writing whole files, reading on slow shared file systems.

SPOOL/<config>/<site>/out/ is written by the site alone, in/ by the carrier alone, so that each half can be copied one
way. A file appears by rename; a name that begins with a dot is not ready yet. docs/spool.md has the layout.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedhpc.errors import StorageError
from fedhpc.files import hint_for, write_whole
from fedhpc.secure.suite import SHA256, Suite
from fedhpc.transport.spool.modes import file_mode, make_folder
from fedhpc.wire.object_names import ObjectName

MOST_NOTE_BYTES = 64 << 10
MOST_LISTING_BYTES = 8 << 20
MOST_STANDING_BYTES = 4 << 20
MOST_NOTES = 20_000  # of one kind that are looked at; a site has a few dozen

PUTS, WANTS, WATCHES = "puts", "want", "watch"  # notes of the site, below out/
RECEIPTS, ANSWERS = "receipts", "answers"  # notes of the carrier, below in/

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}


@dataclass(frozen=True)
class SpoolFolder:
    """One site's part of a spool directory, for one federation."""

    spool: Path
    config: str  # 64 hex digits
    site: int
    suite: Suite = SHA256  # of the federation: what Trees of its objects are made of

    @property
    def root(self) -> Path:
        """What belongs to this site and this federation."""
        return self.spool / self.config / str(self.site)

    @property
    def out(self) -> Path:
        """The site's half."""
        return self.root / "out"

    @property
    def in_(self) -> Path:
        """The carrier's half."""
        return self.root / "in"

    def sent(self, name: ObjectName) -> Path:
        """Where the site puts an object."""
        return _object(self.out, name)

    def come(self, name: ObjectName) -> Path:
        """Where the carrier puts an object of the relay."""
        return _object(self.in_, name)

    def listing(self, round_: int, attempt: int) -> Path:
        """What the carrier knows of an attempt. No object has such a name."""
        return self.in_ / str(round_) / str(attempt) / "listing.json"

    def note(self, kind: str, name: str) -> Path:
        """A note of a kind: PUTS, WANTS and WATCHES lie in out/, RECEIPTS and ANSWERS in in/."""
        return (self.in_ if kind in (RECEIPTS, ANSWERS) else self.out) / kind / name

    @property
    def standing(self) -> Path:
        """The state of the federation, as the relay told the carrier."""
        return self.in_ / "standing.json"

    @property
    def carrier(self) -> Path:
        """The carrier's sign of life."""
        return self.in_ / "carrier.json"

    @property
    def runs(self) -> Path:
        """The site's sign of life."""
        return self.out / "site.json"

    def require(self) -> None:
        """Raise StorageError unless the spool directory is there: it is never made, since it may be unmounted."""
        if not self.spool.is_dir():
            raise StorageError(
                f"the spool directory {self.spool} is not there",
                "make it once, on a file system that the nodes and the carrier's machine share; is it mounted here?",
            )

    def of(self, round_: int, attempt: int, name: str) -> ObjectName:
        """The full name of an object of this federation. Raises ValueError."""
        return ObjectName(self.config, round_, attempt, name)


def _object(half: Path, name: ObjectName) -> Path:
    return half / str(name.round) / str(name.attempt) / flat(name.name)


def flat(name: str) -> str:
    """`M3v.2` for `M3v/2`: the name of a file."""
    return name.replace("/", ".")


def note_name(name: ObjectName) -> str:
    """`3.1.M1.2`: the name of a note about an object."""
    return f"{name.round}.{name.attempt}.{flat(name.name)}"


def read_note_name(text: str, config: str) -> ObjectName:
    """The object that a note is about. Raises ValueError."""
    parts = text.split(".", 2)
    if len(parts) != 3 or "/" in text:
        raise ValueError("a note is called round.attempt.NAME")
    return ObjectName.parse(f"{config}/{parts[0]}/{parts[1]}/{parts[2].replace('.', '/')}")


def read_attempt_name(text: str, config: str) -> tuple[int, int]:
    """Round and attempt of a note called round.attempt. Raises ValueError."""
    name = read_note_name(f"{text}.A1", config)
    return name.round, name.attempt


def write_file(path: Path, *data: bytes | memoryview) -> None:
    """Put a whole file there, by rename. Raises StorageError."""
    with storage(path, "write"):
        make_folder(path.parent)
        mode = file_mode(path.parent)
    write_whole(path, *data, mode=mode)


def read_file(path: Path, most: int) -> bytes | None:
    """The file's bytes; None if it is not there, or not there yet. Raises StorageError, also for more than `most`."""
    with storage(path, "read"), opened(path) as handle:
        if handle is None:
            return None
        size = os.fstat(handle).st_size
        if size > most:
            raise StorageError(f"{path} has {size} bytes, at most {most} are expected", "it is not a file of a spool")
        data = bytearray()
        while piece := os.read(handle, most + 1 - len(data)):
            data += piece
        return bytes(data) if len(data) <= most else None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """A handle for reading a regular file; None if it is not there (yet). Raises OSError, StorageError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        yield None
        return
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise StorageError(f"{path} is not a regular file", "nothing else belongs in a spool directory")
        yield handle
    finally:
        os.close(handle)


def length_of(path: Path) -> int | None:
    """The size of a whole file; None if it is not there. Raises StorageError."""
    with storage(path, "read"), opened(path) as handle:
        return None if handle is None else os.fstat(handle).st_size


def names_in(folder: Path) -> list[str]:
    """The names of whole files and folders in `folder`, at most MOST_NOTES; none if it is not there."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for _, entry in zip(range(MOST_NOTES), found, strict=False)]
    except OSError as error:
        if error.errno in _NOT_THERE:
            return []
        raise StorageError(f"cannot read {folder}: {error.strerror}", "check permissions") from None
    return sorted(name for name in names if not name.startswith("."))


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there. What cannot be removed stays: it is merely old."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage(path: Path, what: str) -> Iterator[None]:
    """Turn OSError into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESTALE and what == "read":
            raise StorageError(f"{path} changed while it was read", "the file system is slow; start again") from None
        raise StorageError(f"cannot {what} {path}: {error.strerror}", hint_for(error)) from None
