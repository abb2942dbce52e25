"""The extension module `_core` as Python sees it, and its import where it was built."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast


class Extension(Protocol):
    """What module.c has. `path` is the place of a name in PATHS; keys are handles, or None."""

    PATHS: str  # names of what was compiled and what this CPU can run, the best first, with spaces between
    FLAGS: str  # of this CPU, those that matter here

    def streams(self, path: int, keys: bytes, signs: bytes, /) -> object:
        """Expanded `keys` [32 each] with signs `+` and `-`, in a capsule that wipes them."""

    def inspect(self, path: int, key: bytes | None, number: int, block: Any, tagged: int, spans: Any, /) -> bytes:
        """As Kernel.inspect; `spans` int64 [n, 4]: start, stop, kind and, written by it, the largest value's bits."""

    def run(self, *arguments: Any) -> tuple[int, int, int]:
        """As Kernel.hide and Kernel.open: φ, and the low and the high half of φ′."""

    def decode(self, path: int, lanes: Any, width: int, values: Any, kind: int, quantum: float, limit: int, /) -> int:
        """As Kernel.decode."""


def load() -> Extension | None:
    """The extension, or None where it was not built."""
    try:
        return cast(Extension, import_module("fedhpc.kernel._core"))
    except ImportError:
        return None
