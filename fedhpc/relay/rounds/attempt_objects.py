"""The small interface to wherever the objects of one attempt are kept.

Names are those of wire/kinds.py without the prefix `config/round/attempt/`: `M0`, `M1/u`, `M3v/u`, `Y`.
"""

from __future__ import annotations

import hmac
from typing import Protocol

from fedhpc.errors import PolicyError
from fedhpc.secure.suite import Suite


class Objects(Protocol):
    """Storage of one attempt. Every call but `write` returns once it is durable; a caller may die between any two."""

    suite: Suite
    """Of the federation: what Trees are made of."""

    def get(self, name: str) -> bytes | None:
        """A small object, or None."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Store a small object whole: after a crash it is there or not, never in part."""
        ...

    def names(self) -> list[str]:
        """The names of all small objects; large ones may be among them."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a large object that is whole; 0 if it is not."""
        ...

    def tree(self, name: str) -> bytes:
        """Tree [32] of the bytes of a large object that is whole, as they came; b"" if it is not."""
        ...

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes of a large object from `offset` on. From several threads at once.

        Of one that is not whole yet: bytes that have come. Raises OSError where they are gone.
        """
        ...

    def make(self, name: str, length: int) -> None:
        """A large object of `length` bytes will be written: all of them. Nothing is promised by it."""
        ...

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Write a part of a large object that is being made; nobody sees it before `keep`."""
        ...

    def read_made(self, name: str, offset: int, view: memoryview) -> None:
        """Fill `view` with what `write` has put there."""
        ...

    def unmake(self, name: str) -> None:
        """Forget a large object that is being made, if there is one."""
        ...

    def keep(self, name: str, tree: bytes) -> None:
        """Make the large object durable and visible, in place of one that is there; `tree`: its Tree [32]."""
        ...


def put_once(objects: Objects, name: str, data: bytes) -> None:
    """Store `data`, or find the same bytes there. Raises PolicyError for other bytes under a name that is taken."""
    there = objects.get(name)
    if there is None:
        objects.put(name, data)
    elif not hmac.compare_digest(there, data):
        raise PolicyError(f"{name} is there already with other bytes", "an object is written once")
