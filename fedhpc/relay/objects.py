"""What the relay keeps of an attempt, by name, and the small interface to wherever it is kept.

Names are those of docs/protocol.md section 7 without the prefix `config/round/attempt/`: `M0`, `M1/u` … `M6/u`, `M3v/u`
for the masked vector, `U1`, `U2` for the sets the relay formed, `M4r`, and `Y` for the sum.
"""

from __future__ import annotations

import hmac
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import PolicyError

VECTOR = "M3v"
SUM = "Y"


class Objects(Protocol):
    """Storage of one attempt. Every call returns once it is durable; a caller may die between any two."""

    def get(self, name: str) -> bytes | None:
        """A small object, or None."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Store a small object whole: after a crash it is there or not, never in part."""
        ...

    def names(self) -> list[str]:
        """The names of all small objects."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a large object that are there; 0 if none."""
        ...

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Bytes offset..offset+count-1 of a large object."""
        ...

    def write(self, name: str, offset: int, data: bytes | NDArray[np.uint8]) -> None:
        """Write at `offset` ≤ size of a large object."""
        ...


def put_once(objects: Objects, name: str, data: bytes) -> None:
    """Store `data`, or find the same bytes there. Raises PolicyError for other bytes under a name that is taken."""
    there = objects.get(name)
    if there is None:
        objects.put(name, data)
    elif not hmac.compare_digest(there, data):
        raise PolicyError(f"{name} is there already with other bytes", "an object is written once")
