"""Sealed boxes between two sites: AES-256-GCM (SP 800-38D) under a key of one attempt and one direction.

The nonce is the number of the message that carries the box. It never repeats under a key, because a key belongs to one
attempt and one direction and a site repeats stored bytes instead of sealing anew (docs/protocol.md sections 2 and 6).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedhpc.errors import PolicyError
from fedhpc.secure.transcript import u64

SEAL_BYTES = 16  # what a box is longer than its content


def seal(key: bytes, number: int, transcript: bytes, content: bytes) -> bytes:
    """Seal(k, n, aad, m): `content` encrypted under `key` [32], bound to `transcript` [len(content) + 16]."""
    return AESGCM(key).encrypt(_nonce(number), content, transcript)


def unseal(key: bytes, number: int, transcript: bytes, box: bytes, length: int, who: str) -> bytes:
    """The content [length] of a box that site `who` sealed.

    Raises PolicyError for a box of another length, before it is opened, and for one that does not open.
    """
    if len(box) != length + SEAL_BYTES:
        raise PolicyError(f"site {who} sealed {len(box) - SEAL_BYTES} bytes where {length} belong")
    try:
        return AESGCM(key).decrypt(_nonce(number), box, transcript)
    except InvalidTag:
        raise PolicyError(
            f"a box that site {who} sealed for this site does not open",
            "it was changed on the way, belongs to another attempt, or the site used another key",
        ) from None


def _nonce(number: int) -> bytes:
    return u64(number) + bytes(4)
