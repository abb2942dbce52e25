"""Files of vectors and sums that are no longer needed, kept to be written over by the next ones.

Blocks of a file that is made anew have to be found on the disk, and pages of it in memory: for a large file that costs
more processor time than everything else that is done with its bytes. A spare file has both. It holds masked bytes of a
round that is over, and nobody sees them: an object appears when all of it was written over.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

MOST = 64  # files
KEPT_S = 900.0  # unused, then a file goes


class SpareFiles:
    """Thread-safe. Its folder is emptied at the start."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self._folder = folder
        folder.mkdir(exist_ok=True, mode=0o700)
        for path in folder.iterdir():
            path.unlink()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._files: list[tuple[int, float, Path]] = []  # length, since when, where; the oldest first

    def put(self, path: Path, length: int) -> None:
        """Take over a file of `length` bytes that nobody has open, or remove it. One that is gone is no error."""
        with self._lock:
            spare = self._folder / str(next(self._numbers))
            try:
                os.rename(path, spare)
            except FileNotFoundError:
                return
            self._files.append((length, time.monotonic(), spare))
            old = self._files.pop(0) if len(self._files) > MOST else None
        if old is not None:
            old[2].unlink()

    def take(self, path: Path, length: int) -> bool:
        """Put a file of `length` bytes, with anything in them, at `path`, where none is; whether there was one."""
        with self._lock:
            found = next((f for f in reversed(self._files) if f[0] == length), None)
            if found is None:
                return False
            self._files.remove(found)
            os.rename(found[2], path)
            return True

    def drop(self, unused_s: float = -1.0) -> int:
        """Remove those that were unused for so long, or all; how many bytes."""
        with self._lock:
            limit = time.monotonic() - unused_s
            gone = [f for f in self._files if f[1] < limit]
            self._files = [f for f in self._files if f[1] >= limit]
        for _, _, path in gone:
            path.unlink()
        return sum(length for length, _, _ in gone)
