"""The extension module `_core` as Python sees it, and its import where it was built."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast


class Extension(Protocol):
    """Functions of module.c. `path` is an index of `paths()`; handles are capsules."""

    def paths(self) -> list[str]:
        """Names of what was compiled and what this CPU can run, the best first."""

    def flags(self) -> list[str]:
        """Flags of this CPU that matter here."""

    def streams(self, path: int, edges: list[tuple[bytes, int]], /) -> object:
        """Expanded keys."""

    def gmac_key(self, path: int, key: bytes, /) -> object:
        """An expanded key and powers of its hash key."""

    def inspect(
        self, path: int, key: object, number: int, block: Any, tagged: int, spans: Sequence[tuple[int, int, int]], /
    ) -> tuple[bytes, list[float | int]]:
        """As Kernel.inspect."""

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
