"""The rows that an ingest has read, until it knows how many there are: in memory, then in a file without a name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import StorageError

_IN_MEMORY_BYTES = 256 << 20
_BLOCK_BYTES = 8 << 20
_BLOCK_ROWS = 4096


class KeptRows:
    """Rows of `width` float32. `directory` is where the file would lie: its name is removed at once."""

    def __init__(self, width: int, directory: Path) -> None:
        self.width = width
        self._directory = directory
        self._rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * width)))
        self._block = np.empty((self._rows, width), np.float32)
        self._filled = 0
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, "w+b", dir=str(directory))  # noqa: SIM115 - till `close`

    def next_row(self) -> NDArray[np.float32]:
        """The place [width] to write the next row to. It counts once `keep` is called."""
        row: NDArray[np.float32] = self._block[self._filled]
        return row

    def keep(self) -> None:
        """Keep what was written to `next_row`. Raises StorageError."""
        self._filled += 1
        if self._filled == self._rows:
            self._write()

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All rows, in their order, in blocks [rows, width]. Raises StorageError."""
        self._write()
        try:
            self._file.seek(0)
            while data := self._file.read(self._block.nbytes):
                yield np.frombuffer(data, np.float32).reshape(-1, self.width)
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Forget the rows."""
        self._file.close()

    def _write(self) -> None:
        try:
            self._file.write(self._block[: self._filled].tobytes())
        except OSError as error:
            raise self._failed(error) from None
        self._filled = 0

    def _failed(self, error: OSError) -> StorageError:
        hint = "free space or raise the quota: the rows need as much room again until the store is written"
        return StorageError(f"cannot keep rows in {self._directory}: {error.strerror or error}", hint)
