"""A vector on its way through a relay: hidden again for every attempt, from the same values."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedhpc.federation.hidden_part import HiddenPart
from fedhpc.federation.layout import Vector
from fedhpc.secure.ring import Codec, Layout, Tensor

LAYOUT = Layout([Tensor("w", "float32", (5,), 20), Tensor("n", "int64", (300_000,)), Tensor("b", "float64", (3,), 30)])
BLOCK = 1 << 20


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def vector() -> Vector:
    made = Vector(LAYOUT)
    draw = np.random.default_rng(5)
    made.fill({"w": draw.standard_normal(5).astype(np.float32), "n": np.arange(300_000), "b": draw.standard_normal(3)})
    return made


def hidden(part: HiddenPart, name: str) -> tuple[bytes, bytes]:
    """(bytes, tag) as they leave for the relay in an attempt whose keys are called `name`."""
    part.begin_hiding(((key(name), 1), (key(name + "'"), -1)), key(f"tag {name}"))
    for low in range(0, LAYOUT.nbytes, BLOCK):
        part.hide(low, min(low + BLOCK, LAYOUT.nbytes))
    return part.vector.buffer.tobytes(), part.tag.to_bytes()


def made() -> HiddenPart:
    return HiddenPart(vector(), (0, LAYOUT.nbytes), lambda: Codec(4, "aa", {}))


@pytest.mark.parametrize("stop", ["hidden", "half"])
def test_every_attempt_hides_the_same_vector(stop: str) -> None:
    part = made()
    if stop == "half":
        part.begin_hiding(((key("one"), 1),), key("tag one"))
        part.hide(0, BLOCK)
    else:
        hidden(part, "one")
    assert hidden(part, "two") == hidden(made(), "two")


def test_a_sum_of_one_vector_opens_to_it() -> None:
    part = made()
    data, tag = hidden(part, "one")
    part.begin_opening(((key("one"), -1), (key("one'"), 1)), key("tag one"))
    part.vector.buffer[:] = np.frombuffer(data, dtype=np.uint8)
    part.vector.buffer[20:32] = 7  # the relay's scribble in a gap
    for low in range(0, LAYOUT.nbytes, BLOCK):
        part.open(low, min(low + BLOCK, LAYOUT.nbytes))
    assert part.tag.to_bytes() == tag
    plain = vector()
    for piece in LAYOUT.pieces(0, LAYOUT.nbytes):
        codec = Codec(4, "aa", {})
        codec.encode(plain.buffer, piece)
    assert part.opened_digests() == [
        hashlib.sha256(plain.buffer[low : low + BLOCK].data).digest() for low in range(0, LAYOUT.nbytes, BLOCK)
    ]
    assert np.array_equal(part.vector.view("n"), vector().view("n"))
    assert np.abs(part.vector.view("b") - vector().view("b")).max() <= 2.0**-30
