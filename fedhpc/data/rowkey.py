"""The key that hides row identifiers: row id = HMAC-SHA256(key, identifier), so a store names no person.

Identifiers cannot be tried out without the key; with it, anybody can. It is 32 random bytes in hex, in a file that
only its owner can read. One key per federation: the same person gets unrelated row ids in two federations.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from fedhpc.errors import ConfigError, PolicyError, StorageError

KEY_BYTES = 32
_HEX = re.compile(rb"[0-9a-f]{64}\n?")


def create_key(path: Path) -> None:
    """Write a new random key to `path`, mode 0600. Raises ConfigError if `path` exists, StorageError for I/O."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists", "a key is never overwritten: row ids made with it could not be made again"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", "check the directory") from None
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}", "free space or raise the quota") from None


def read_key(path: Path) -> bytes:
    """The 32 bytes in `path`. Raises PolicyError if others may read the file, ConfigError if it is not a key."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(128)
    except OSError as error:
        raise ConfigError(f"cannot read key {path}: {error.strerror}", "`fedhpc data key FILE` makes one") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PolicyError(f"key {path} can be read by others (mode {mode & 0o777:04o})", f"chmod 600 {path}")
    if not _HEX.fullmatch(data):
        raise ConfigError(f"{path} is not a row-id key", "it must hold 64 hex digits; `fedhpc data key FILE` makes one")
    return bytes.fromhex(data.decode().strip())


def row_id(key: bytes, identifier: str) -> bytes:
    """HMAC-SHA256(key, identifier in UTF-8): 32 bytes."""
    return hmac.digest(key, identifier.encode("utf-8"), "sha256")
