"""Salt of a sum, and what is made of the sites' sum of salts (docs/protocol.md section 3).

A hash of a plain sum can be tried out against every sum that is likely, so none reaches the relay without 280 bits of
each honest site in it. A site's salt follows from its own key and what is summed, so a repeated round has it again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedhpc.secure import labels
from fedhpc.secure.keys import KEY_BYTES, derive
from fedhpc.secure.masks import SLACK_BYTES, Keystream
from fedhpc.secure.transcript import hash_parts, u64

SALT_LANES = 5
SALT_BYTES = 8 * SALT_LANES
_WORD = (1 << 56) - 1  # the salts of 100 sites stay within a lane

NO_BLIND = bytes(KEY_BYTES)  # of a state that is public


def salt_key(config: bytes, identity: bytes, number: int) -> bytes:
    """k_salt of site `number` [32], from its private Ed25519 key `identity` [32] and the configuration's hash [32]."""
    return derive(config, identity, labels.KEY_SALT, number)


def salt_words(key: bytes, number: int, round_: int, purpose: str, base: bytes) -> NDArray[np.int64]:
    """The salt of site `number` in one round, int64 [5], each from 0 to 2^56 − 1; the same whenever it is repeated."""
    salt = hash_parts(labels.HASH_SALT, u64(round_), purpose.encode("ascii"), base)
    stream = Keystream(derive(salt, key, labels.KEY_SALT, number))
    words = stream.read(0, SALT_BYTES, np.empty(SALT_BYTES + SLACK_BYTES, dtype=np.uint8)).view("<u8")
    return (words & np.uint64(_WORD)).astype(np.int64)


def blind_after(blind: bytes, salt: bytes) -> bytes:
    """The blind [32] of the state that follows one of `blind` [32], after a sum of salts S = `salt` [40].

    Without salt, where one site exchanges nothing, it stays.
    """
    return derive(blind, salt, labels.KEY_BLIND) if salt else blind


def layout_key(config: bytes, round_: int, salt: bytes) -> bytes:
    """The key [32] of the layout's hash in `round_`, where `salt` [40] is S of the sum that fixed the scales.

    Scales tell the size of values that nobody outside the sum may know. Empty without salt: the scales are public.
    """
    return derive(hash_parts(labels.HASH_LAYOUT_KEY, config, u64(round_)), salt, labels.KEY_LAYOUT) if salt else b""
