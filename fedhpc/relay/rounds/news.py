"""What became whole since the federation looked last, READY already read.

The thread that brings a READY reads it, its site's own, before it asks for the federation's lock: a long one makes its
own site wait and nobody else.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedhpc.errors import PolicyError
from fedhpc.relay.rounds.ready import Ready, read_ready
from fedhpc.relay.store.object_store import Store, Stored
from fedhpc.wire import kinds
from fedhpc.wire.object_names import ObjectName

_log = logging.getLogger("fedhpc.relay")


@dataclass(frozen=True)
class Piece:
    """One object. `ready`: what a READY says, None for one of another form and for every other object."""

    stored: Stored
    ready: Ready | None

    @property
    def name(self) -> ObjectName:
        """Of the object."""
        return self.stored.name

    @property
    def owner(self) -> int:
        """The site that wrote it; 0: the relay."""
        return self.name.owner or 0


class News:
    """Pieces in the order in which they came. Any thread may put, the holder of the federation's lock takes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Piece] = deque()

    def put(self, stored: Stored) -> None:
        """An object became whole."""
        self._waiting.append(_piece(stored))

    def put_before(self, all_: Iterable[Stored]) -> None:
        """What was there already, in its order; twice the same object does no harm."""
        self._waiting.extendleft(reversed([_piece(stored) for stored in all_]))

    def take(self) -> Iterator[Piece]:
        """All that has come, without READY that were dropped or replaced since they were read."""
        while self._waiting:
            piece = self._waiting.popleft()
            if piece.ready is None or self._store.find(piece.name) == piece.stored:
                yield piece

    def __bool__(self) -> bool:
        return bool(self._waiting)


def _piece(stored: Stored) -> Piece:
    name, ready = stored.name, None
    if kinds.kind_of(name) is kinds.READY:
        try:
            ready, _ = read_ready(stored.path.read_bytes())
        except PolicyError as error:
            _log.warning("site %s, round %d: %s", name.owner, name.round, error.what)
        except OSError:
            pass  # its site has left since
    return Piece(stored, ready)
