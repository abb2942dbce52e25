"""Which hash Tree is made of: the suite that all sites signed in federation.toml (docs/protocol.md section 2).

Tree covers all bytes of a vector or a state, so it is the one hash whose speed matters. It is made of BLAKE3, several
times as fast as SHA-256 on one core, or of SHA-256, for sites that may use approved algorithms only. Nothing else
depends on the suite, and nobody chooses it at run time: its name is hashed into every Tree, so one of another suite is
never equal, and sites that read another configuration share no mask anyway.

This is the only module that imports the package blake3, which a site can do without where its federations use SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import ConfigError
from fedhpc.secure import labels
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, hash_parts, u64

try:
    from blake3 import blake3 as _blake3
except ImportError:
    _blake3 = None  # type: ignore[assignment, misc]

Bytes = bytes | memoryview


class Digest(Protocol):
    """A hash that is fed piece by piece."""

    def update(self, data: Bytes, /) -> object:
        """Take more bytes."""
        ...

    def digest(self) -> bytes:
        """Of what was taken so far [32]."""
        ...


@dataclass(frozen=True)
class Suite:
    """One way to make Tree. Thread-safe."""

    name: str
    new: Callable[[], Digest] = field(repr=False, compare=False)
    """An empty hash, for a block that comes in pieces."""
    _of: Callable[[Bytes], Digest] = field(repr=False, compare=False)

    def block(self, data: Bytes) -> bytes:
        """The digest of one block, of 2^20 bytes or fewer [32]."""
        return self._of(data).digest()

    def root(self, length: int, digests: Iterable[bytes]) -> bytes:
        """Tree(B) of `length` bytes from the digests of its 2^20-byte blocks, in order [32]."""
        return hash_parts(labels.HASH_TREE, self.name.encode("ascii"), u64(length), b"".join(digests))

    def tree(self, data: Bytes | NDArray[Any]) -> bytes:
        """Tree(B): a hash that several ranks can compute together, block by block [32]."""
        view = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
        blocks = range(0, view.size, TREE_BLOCK_BYTES)
        return self.root(view.size, (self.block(view[i : i + TREE_BLOCK_BYTES].data) for i in blocks))

    def joined_blocks(self, arrays: Sequence[NDArray[Any]], first: int, last: int) -> list[bytes]:
        """The digests of blocks first..last-1 of the arrays' bytes joined, without joining them.

        `arrays`: C-contiguous, any dtype. Used by the ranks of a site that hash a model together.
        """
        start, stop = first * TREE_BLOCK_BYTES, last * TREE_BLOCK_BYTES
        digests: list[bytes] = []
        digest, filled, at = self.new(), 0, 0
        for array in arrays:
            view = array.reshape(-1).view(np.uint8)
            low, high = max(start - at, 0), min(stop - at, view.size)
            at += view.size
            while low < high:
                take = min(high - low, TREE_BLOCK_BYTES - filled)
                digest.update(view[low : low + take].data)
                low, filled = low + take, filled + take
                if filled == TREE_BLOCK_BYTES:
                    digests.append(digest.digest())
                    digest, filled = self.new(), 0
        if filled:
            digests.append(digest.digest())
        return digests


SHA256 = Suite("sha256", hashlib.sha256, hashlib.sha256)
"""Where the configuration names no suite."""

SUITES = (SHA256.name, "blake3")


def suite_named(name: str) -> Suite:
    """The suite of that name. Raises ConfigError (64) where it needs a package that is not installed here."""
    if name == SHA256.name:
        return SHA256
    if name not in SUITES:
        raise ConfigError(f"secure.suite = '{name}'", 'a suite is "blake3" or "sha256"')
    if _blake3 is None:
        raise ConfigError(
            'the federation has secure.suite = "blake3", and the Python package blake3 is not installed here',
            "install it (`pip install 'blake3>=1.0'`), or ask the coordinator for an epoch with suite = \"sha256\" "
            "under [secure]",
        )
    return Suite("blake3", _blake3, _blake3)
