"""The one door to HDF5 files: written whole or not at all, and read only after their shape has been checked.

A file is written under a temporary name in its own directory, synced, renamed, and the directory synced: a reader
sees the old file or the new one, never a part. A file that is read may come from anywhere: links that leave it,
virtual and external datasets, Python objects, foreign filters and sizes that its bytes cannot hold are refused
before anything is allocated for them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedhpc.errors import DataError, StorageError
from fedhpc.files import sync_folder

# All that h5py raises for a damaged file, depending on which of its structures is hit.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, EOFError)

ALLOWED_FILTERS = ("gzip", "shuffle", "lzf")
_FILTER_NAMES = {h5py.h5z.FILTER_DEFLATE: "gzip", h5py.h5z.FILTER_SHUFFLE: "shuffle", h5py.h5z.FILTER_LZF: "lzf"}
_LARGEST_EXPANSION = 1100  # deflate never expands more than 1032 times, lzf less
LARGEST_CHUNK_BYTES = 64 << 20  # a reader must hold one decompressed chunk

_STALE_AFTER_S = 3600.0
_TOKEN = r"[0-9a-f]{16}"  # noqa: S105 - the random part of a temporary name, no secret


class _Output(io.RawIOBase):
    """The file HDF5 writes to. It keeps the first error and reports all later writes as done.

    HDF5 cannot close a file whose last write failed: it leaks it and may crash when Python ends. The file is
    thrown away after an error, so nothing is lost if HDF5 believes that it went well.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.at = 0
        self.end = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += os.pwrite(self.fd, view[done : done + (1 << 30)], self.at + done)
            except OSError as error:
                self.error = error
        self.at += len(view)
        self.end = max(self.end, self.at)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = os.preadv(self.fd, [view], self.at)
        view[done:] = bytes(len(view) - done)
        self.at += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.end)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def truncate(self, size: int | None = None) -> int:
        self.end = self.at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self.fd, self.end)
            except OSError as error:
                self.error = error
        return self.end

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def new_file(path: Path, mode: int = 0o600) -> Iterator[h5py.File]:
    """An empty HDF5 file to fill; it appears as `path`, durably, when the block ends without an exception.

    Raises StorageError for a full disk or any other failure of the file system; then, and when the block raises,
    the temporary file is removed and what `path` was before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise _storage_error(path, error) from None
    try:
        with contextlib.suppress(OSError):  # some parallel file systems have no locks; remove_stale knows
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        output = _Output(fd)
        try:
            # Format 1.8 and later: checksums over the metadata, attributes larger than 64 KiB.
            with h5py.File(output, "w", libver=("v108", "latest")) as file:
                yield file
        except BaseException:
            if output.error is not None:
                raise _storage_error(path, output.error) from None
            raise
        if output.error is not None:
            raise _storage_error(path, output.error)
        try:
            os.fsync(fd)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except OSError as error:
            raise _storage_error(path, error) from None
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def remove_stale(directory: Path, name: str) -> None:
    """Remove temporary files left in `directory` by writers that died; `name` is a regex of the final names.

    A file that a living process writes is locked, and stays. Where the file system has no locks, only files older
    than an hour go.
    """
    pattern = re.compile(rf"\.(?:{name})\.{_TOKEN}\.tmp")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(directory)):
            if pattern.fullmatch(entry.name) and _is_abandoned(Path(entry.path)):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _is_abandoned(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(fd).st_mtime > _STALE_AFTER_S
    finally:
        os.close(fd)
    return True


def _storage_error(path: Path, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free space or raise the quota; " if full else "check the path, its permissions and the file system; "
    return StorageError(
        f"cannot write {path}: {error.strerror or error}", f"{hint}nothing that was there before has changed"
    )


def open_file(path: Path) -> h5py.File:
    """`path`, open for reading. Raises DataError if it is missing, cut short or no HDF5; StorageError for I/O."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # first: opening a pipe would wait for its writer
            raise DataError(f"{path} is not a regular file", "give the path of an HDF5 file")
        path.open("rb").close()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "check the path") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check its permissions") from None
    trouble = ""
    # No lock: files are never changed after their rename, and many parallel file systems refuse locks. But a file that
    # a user's script has open already, HDF5 opens once more in the same way only (findings/h5py-locking-must-agree.sh).
    for locking in (False, None, True):
        try:
            return h5py.File(path, "r", locking=locking)
        except DAMAGE as error:
            trouble = trouble or str(error)
            if "locking" not in trouble:
                break
    reason = "it is cut short" if "truncated" in trouble else "it is damaged, or not HDF5"
    raise DataError(f"cannot read {path}: {reason}", "copy or make the file again")


def put_text(file: h5py.File, name: str, text: str) -> None:
    """Write the root attribute `name` as a string of fixed length in UTF-8 (a reader sees its size first)."""
    data = text.encode("utf-8") or b"\0"
    file.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", len(data)))


def get_text(file: h5py.File, name: str, limit_bytes: int) -> str:
    """The root attribute `name`: printable text of fixed length, at most `limit_bytes`. Raises DataError."""
    value = _attribute(file, name, lambda kind, size: kind == "S" and size <= limit_bytes)
    try:
        text = bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise DataError(f"{file.filename}: attribute '{name}' is not printable text", "make the file again")
    return text


def get_integer(file: h5py.File, name: str) -> int:
    """The root attribute `name`: one whole number. Raises DataError."""
    return int(_attribute(file, name, lambda kind, size: kind in "iu" and size <= 8))


def _attribute(file: h5py.File, name: str, accept: Any) -> Any:
    try:
        attribute = h5py.h5a.open(file.id, name.encode())
    except DAMAGE:
        raise DataError(f"{file.filename}: attribute '{name}' is missing", "was it made by fedhpc?") from None
    try:
        dtype, shape = attribute.dtype, attribute.shape
        if dtype.hasobject or shape != () or not accept(dtype.kind, dtype.itemsize):
            raise DataError(f"{file.filename}: attribute '{name}' has the wrong type or size", "make it again")
        value = np.empty((), dtype)
        attribute.read(value)
    except DAMAGE:
        raise DataError(f"{file.filename}: attribute '{name}' is damaged", "make the file again") from None
    return value[()]


def get_dataset(file: h5py.File, name: str, dtypes: Sequence[str]) -> h5py.Dataset:
    """The dataset `name`, of one of `dtypes` (NumPy names, any byte order), with nothing in it read yet.

    Raises DataError for links, virtual or external data, other dtypes or filters, and a size that the bytes
    stored for it cannot hold: after this, its shape may be trusted as an allocation.
    """
    where = f"{file.filename}: dataset '{name}'"
    try:
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):  # links first: following one opens other files
            link = file.get("/".join(parts[:depth]), getlink=True)
            if link is not None and not isinstance(link, h5py.HardLink):
                raise DataError(f"{where} is a link to elsewhere", "store the data in the file itself")
        if name not in file:
            raise DataError(f"{where} is missing", "was it made by fedhpc?")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise DataError(f"{where} is not an array", "was it made by fedhpc?")
        dtype = dataset.dtype
        if dtype.hasobject or dtype.newbyteorder("=").name not in dtypes:
            raise DataError(f"{where} has dtype {dtype}", f"it must be {' or '.join(dtypes)}")
        plan = dataset.id.get_create_plist()
        if dataset.is_virtual or dataset.external is not None:
            hint = "store the data in the file itself: a part that is missing would read as zeros"
            raise DataError(f"{where} keeps its values in other files", hint)
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        if any(code not in _FILTER_NAMES for code in filters):
            raise DataError(f"{where} uses a filter that is not allowed", f"use {', '.join(ALLOWED_FILTERS)}")
        need = math.prod(dataset.shape) * dtype.itemsize
        stored = dataset.id.get_storage_size()
        if need > stored * (_LARGEST_EXPANSION if filters else 1):
            raise DataError(f"{where} claims {need} bytes but {stored} are stored", "the file is damaged")
        if dataset.chunks and math.prod(dataset.chunks) * dtype.itemsize > LARGEST_CHUNK_BYTES:
            raise DataError(f"{where} has chunks larger than {LARGEST_CHUNK_BYTES >> 20} MiB", "write it again")
    except DAMAGE as error:
        raise DataError(f"{where} is damaged: {_one_line(error)}", "copy or make the file again") from None
    return dataset


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
