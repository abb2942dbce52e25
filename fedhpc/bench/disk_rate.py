"""What a folder takes to disk: the floor for a relay that keeps every vector before it says so.

Random bytes, which no file system makes smaller, are written in one file and fsynced, as the relay does with vectors.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from pathlib import Path

from fedhpc.doctor.file_system import mount_of, nearest

_BLOCK = 1 << 20
_IN_MEMORY = ("tmpfs", "ramfs")
_TABLE = Path("/proc/self/mounts")


def written_bytes_per_s(folder: Path, nbytes: int) -> float:
    """Bytes over the seconds of write and fsync of `nbytes` in a file of `folder`, which is removed. Raises OSError."""
    block = memoryview(secrets.token_bytes(min(_BLOCK, nbytes)))
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        begun = time.perf_counter()
        for at in range(0, nbytes, _BLOCK):
            _write_all(file.fileno(), block[: nbytes - at])
        os.fsync(file.fileno())
        return nbytes / (time.perf_counter() - begun)


def store_of(folder: Path) -> str:
    """`disk`, or `memory` where what is written to `folder` is only in memory."""
    mount = mount_of(nearest(folder).resolve(), _TABLE.read_text().splitlines()) if _TABLE.exists() else None
    return "memory" if mount is not None and mount.kind in _IN_MEMORY else "disk"


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]
