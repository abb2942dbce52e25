"""Mask keys with their signs as one message: how the leader of a site tells them to its other ranks."""

from __future__ import annotations

from collections.abc import Sequence

from fedhpc.secure.keys import KEY_BYTES

Streams = Sequence[tuple[bytes, int]]
"""Mask keys [32] and signs ±1."""


def streams_to_bytes(streams: Streams) -> bytes:
    """(mask key [32], ±1) of each stream, joined [33 each]."""
    return b"".join(key + (b"+" if sign > 0 else b"-") for key, sign in streams)


def streams_from_bytes(data: bytes) -> list[tuple[bytes, int]]:
    """What `streams_to_bytes` was given."""
    step = KEY_BYTES + 1
    return [(data[i : i + KEY_BYTES], 1 if data[i + KEY_BYTES] == ord("+") else -1) for i in range(0, len(data), step)]
