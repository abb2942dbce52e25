"""A relay with the real TLS key that lies: `hostile_relay.main([RELAY_FILE, ATTACK])`, a name of LIES.

It is the real server with its coordinator; what it shows to a site of the objects of one round goes through a lie
first. A lie gets the object's name, the site that asks and the true bytes, and gives other bytes, or None to hide the
object. It is about attempts of round ROUND, all other rounds are honest.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import relayed_relay

from fedhpc.relay.http import routes
from fedhpc.relay.store.store import Store, Stored
from fedhpc.secure.transcript import canon, parse_canon, tree
from fedhpc.wire.object_names import ObjectName

ROUND = 2
OTHER = "77" * 32
Lie = Callable[[ObjectName, int, bytes, Store], bytes | None]


class LyingStore:
    """The store as the relay shows it; `asks.site` is who asks, in this thread."""

    asks = threading.local()

    def __init__(self, store: Store, lie: Lie) -> None:
        self._store, self._lie = store, lie
        self._forgeries: dict[tuple[ObjectName, bytes], Stored] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="lies"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def find(self, name: ObjectName) -> Stored | None:
        return self._shown(self._store.find(name))

    def list(self, attempt: Any, after: int = 0) -> list[Stored]:
        return [shown for stored in self._store.list(attempt, after) if (shown := self._shown(stored)) is not None]

    def _shown(self, stored: Stored | None) -> Stored | None:
        site = getattr(self.asks, "site", 0)
        if stored is None or stored.name.kind == "M3v" or not site:
            return stored
        try:
            truth = stored.path.read_bytes()
        except FileNotFoundError:  # cleaned up meanwhile
            return stored
        told = self._lie(stored.name, site, truth, self._store)
        return stored if told == truth else None if told is None else self._forged(stored, told)

    def _forged(self, stored: Stored, data: bytes) -> Stored:
        key = (stored.name, tree(data))
        if key not in self._forgeries:
            handle, path = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            self._forgeries[key] = replace(stored, length=len(data), tree=key[1], path=Path(path))
        return self._forgeries[key]


def tell(lie: Lie) -> None:
    """From now on `lie` stands between the store and who asks."""
    for name in ("_get", "_list"):
        real = getattr(routes.Routes, name)

        def asked(self: Any, connection: Any, head: Any, what: Any, site: int, pin: bytes, real: Any = real) -> Any:
            LyingStore.asks.site = site
            if not isinstance(self._store, LyingStore):
                self._store = LyingStore(self._store, lie)
            return real(self, connection, head, what, site, pin)

        setattr(routes.Routes, name, asked)


# --- lies


def other_state(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
    """Site 2 is asked for an update of another model."""
    here = (name.round, name.name, site) == (ROUND, "M0", 2)
    return canon(parse_canon(truth) | {"state": OTHER}) if here else truth


def messages_dropped(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
    """Nobody sees the M4 of another site in the first attempt."""
    return None if (name.round, name.kind, name.attempt) == (ROUND, "M4", 1) and site != name.owner else truth


def second_survivors(name: ObjectName, site: int, truth: bytes, store: Store) -> bytes | None:
    """Once site 2 has signed M4 over all sites, it is shown a set without site 4, with the M3 of that set."""
    signed = store.find(replace(name, name="M4/2")) is not None
    if (name.round, name.attempt, name.name, site, signed) == (ROUND, 1, "M4r", 2, True):
        return canon(parse_canon(truth) | {"u3": [1, 2, 3], "sum": OTHER})
    return None if (name.round, name.kind) == (ROUND, "M4") and site != name.owner else truth


LIES: dict[str, Lie] = {
    "M0 state": other_state,
    "messages dropped": messages_dropped,
    "survivors changed": second_survivors,
}


def main(words: Sequence[str]) -> int:
    file, attack = words
    tell(LIES[attack])
    return relayed_relay.main([file, ""])
