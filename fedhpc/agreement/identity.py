"""The file of a site's private Ed25519 key."""

from __future__ import annotations

import re
from pathlib import Path

from fedhpc.errors import ConfigError, StorageError

_KEY = re.compile(r"[0-9a-f]{64}")


def lost_keys_hint(folder: Path) -> str:
    """What to do at a site that meets others at a relay and has lost a key. `folder`: where its site file is."""
    return (
        f"put the keys back from a backup; if one is lost, `fedhpc site rotate {folder}` makes new ones, and `fedhpc "
        f"site request {folder} --token - --wait` has them admitted, given a token of `fedhpc federation invite`: that "
        "is the next epoch"
    )


def read_identity(path: Path, hint: str = "") -> bytes:
    """The private key in a key file, raw [32]. `hint`: where there is none.

    Raises StorageError if it is missing or others can read it: a key that others can read is not this site's alone.
    """
    try:
        status = path.stat()
        text = path.read_text(encoding="ascii").strip() if status.st_size <= 1024 else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise StorageError(f"cannot read the key file {path}: {reason}", hint) from None
    if status.st_mode & 0o077:
        raise StorageError(f"the key file {path} can be read by others", f"chmod 600 {path}")
    if not _KEY.fullmatch(text):
        raise ConfigError(f"{path} is not a key file", "; ".join(filter(None, ("it holds 64 hex digits", hint))))
    return bytes.fromhex(text)
