"""Which data a site trains on, as its ledger knows it, and with which ledgers' homes a store was used.

The second is kept in the user's data directory, since a store may lie where nothing can be written:
stores/HASH.json, {"homes": […], "store": PATH}, for the path of the store.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path

from fedhpc.files import write_whole
from fedhpc.ledger.home import LedgerHome, data_directory
from fedhpc.secure import labels
from fedhpc.secure.ledger import UNKNOWN, home_key

_ENDS_BYTES = 1 << 20
_MOST_BYTES = 1 << 20


def store_mark(key: bytes, store: Path) -> bytes:
    """What the ledger with this `key` [32] knows a store by [64]; UNKNOWN if it is not there.

    A keyed hash of its path, and one of its size, first and last MiB: the same data are those at the same path, though
    rows were added, and a copy elsewhere. A folder is known by its path alone.
    """
    secret = home_key(key, labels.KEY_LEDGER_DATA)
    path = os.fsencode(os.path.realpath(store))
    where = hmac.digest(secret, b"path\0" + path, "sha256")
    try:
        if store.is_dir():
            return where + where
        with open(store, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            ends = file.read(_ENDS_BYTES)
            file.seek(max(0, size - _ENDS_BYTES))
            ends += file.read(_ENDS_BYTES)
    except OSError:
        return UNKNOWN
    return where + hmac.digest(secret, b"content\0" + size.to_bytes(8, "little") + ends, "sha256")


def remember_home(home: LedgerHome, store: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Note that a run used `store` with `home`. Raises StorageError."""
    homes = homes_of(store, environment)
    mine = os.path.realpath(home.folder)
    if mine in homes:
        return
    path = _note_of(store, environment)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps({"homes": [*homes, mine], "store": os.path.realpath(store)})
    write_whole(path, text.encode() + b"\n", mode=0o600)


def homes_of(store: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The homes that `store` was used with and that are still there."""
    try:
        with open(_note_of(store, environment), "rb") as file:
            homes = json.loads(file.read(_MOST_BYTES))["homes"]
        return [home for home in homes if isinstance(home, str) and LedgerHome(Path(home)).ledger.exists()]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _note_of(store: Path, environment: Mapping[str, str]) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(store))).hexdigest()
    return data_directory(environment) / "stores" / f"{name}.json"
