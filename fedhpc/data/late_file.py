"""An HDF5 file that each process opens at its first read, so that no open handle crosses into another process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py

from fedhpc.data import hdf5
from fedhpc.errors import DataError


class LateFile:
    """The file at `path`, as it was when this was made; may be pickled and forked."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if there is no such file."""
        self.path = path
        self._identity = _identity(path)
        self._file: h5py.File | None = None
        self._pid = 0

    def handle(self) -> h5py.File:
        """The open file. Raises DataError if it is another one by now, and what hdf5.open_file raises."""
        if self._file is None or self._pid != os.getpid():
            if _identity(self.path) != self._identity:
                raise DataError(f"{self.path} was changed while in use", "start again with the new file")
            self._file, self._pid = hdf5.open_file(self.path), os.getpid()
        return self._file

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_pid": 0}


def _identity(path: Path) -> tuple[int, int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
