"""What the vectors of whole rounds share about salt and blind. Called by make.py and protocol_round.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.state_tensors import state_arrays
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.salt import NO_BLIND, blind_after, layout_key, salt_key, salt_words
from fedhpc.secure.suite import SHA256, Suite
from fedhpc.secure.transcript import state_hash


def add_salt(vector: Vector, config: bytes, private: bytes, u: int, round_: int, base: bytes) -> None:
    """The salt of a training sum's vector, as site `u` with this private Ed25519 key has it."""
    vector.salt[:] = salt_words(salt_key(config, private, u), u, round_, "train", base)


def lanes_without_gaps(vector: Vector) -> list[NDArray[Any]]:
    """The named tensors of a vector as they lie in it."""
    layout = vector.layout
    ends = [at + t.lanes * t.lane_bytes for t, at in zip(layout.named, layout.offsets, strict=False)]
    return [vector.buffer[at:end] for at, end in zip(layout.offsets, ends, strict=False)]


def next_state(
    arrays: list[NDArray[Any]], config: bytes, round_: int, blind: bytes, salt: bytes, suite: Suite = SHA256
) -> bytes:
    """The state with `arrays` as its model, no strategy of its own, no W, and `round_` as the training rounds done."""
    model = {str(number): array for number, array in enumerate(arrays)}
    joined = state_arrays(model, {}, None, round_, blind_after(blind, salt))
    return state_hash(config, round_, suite.tree(b"".join(np.ascontiguousarray(a).tobytes() for a in joined)))


def salt_vectors(config: bytes, private: bytes, base: bytes) -> dict[str, Any]:
    """k_salt and the salt of several sums, blinds one after the other, and the keyed hash of a layout."""
    key = salt_key(config, private, 3)
    of = [(1, "train", base), (2**40, "train", base), (1, "weights", bytes(32)), (1, "mean age", bytes(32))]
    sums = [np.array([1 << 58, 0, 7, 99 * (1 << 56), 5], dtype="<i8").tobytes(), bytes(40), bytes(range(40))]
    blinds = [NO_BLIND]
    for s in sums:
        blinds.append(blind_after(blinds[-1], s))
    # A user's own array may have the name that the last tensor has.
    layout = Layout([Tensor("salt", "float32", (3,), 21), Tensor("n", "int64", ())], salted=True)
    keyed = layout_key(config, 9, sums[0])
    return {
        "config": config.hex(),
        "private": private.hex(),
        "site": 3,
        "k_salt": key.hex(),
        "salts": [
            {"round": r, "purpose": p, "base": b.hex(), "words": [str(w) for w in salt_words(key, 3, r, p, b)]}
            for r, p, b in of
        ],
        "S": [s.hex() for s in sums],
        "blinds": [b.hex() for b in blinds],
        "layout": layout.as_json(),
        "layout_round": 9,
        "layout_key": keyed.hex(),
        "layout_hash": layout.hash.hex(),
        "layout_hash_in_M0": layout.hash_under(keyed).hex(),
    }
