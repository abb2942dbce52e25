"""What a relay could do with a masked vector if it knew keys: takes masks off, with the keys in an attempt file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.federation.vector import Vector
from fedhpc.secure import labels
from fedhpc.secure.attempt_file import unsealed
from fedhpc.secure.keys import AttemptKey, derive
from fedhpc.secure.masks import Masks
from fedhpc.secure.opening import edge_key
from fedhpc.secure.ring import Codec, Layout, Tensor, lanes_of, scale_for
from fedhpc.secure.transcript import parse_canon

SECRETS = ("chan", "mask", "self", "group", "own_a", "own_b")


def attempt_file(path: Path) -> dict[str, Any]:
    """What a site's attempt file holds, opened with its key from beside it."""
    return dict(parse_canon(unsealed(path.with_suffix(".key").read_bytes(), path.read_bytes())))


def layout_of(values: Mapping[str, NDArray[Any]], bound: float, sites: int) -> Layout:
    tensors = [Tensor(n, a.dtype.name, a.shape, scale_for(bound, 8 * a.itemsize, sites)) for n, a in values.items()]
    return Layout(tensors, salted=True)


def encoded(values: Mapping[str, NDArray[Any]], layout: Layout, sites: int) -> bytes:
    """The lanes of a site's values before masks, without salt."""
    vector = Vector(layout)
    vector.fill(values)
    codec = Codec(sites, "")
    for piece in layout.pieces(0, layout.nbytes):
        codec.encode(piece.values_in(vector.buffer), piece.lanes_in(vector.buffer), piece)
    return vector.buffer.tobytes()


def without_edges(data: bytes, layout: Layout, me: int, keys: Mapping[str, Any], publics: Mapping[int, bytes]) -> bytes:
    """A masked vector of site `me` without the masks it shares with others, whose public mask keys are `publics`."""
    t2, mine = bytes.fromhex(keys["t2"]), AttemptKey(bytes.fromhex(keys["mask"]))
    streams = [
        (edge_key(t2, mine.shared(p, str(v)), me, v), -1 if v > me else 1) for v, p in publics.items() if v != me
    ]
    return _without(data, layout, streams)


def without_self(data: bytes, layout: Layout, me: int, keys: Mapping[str, Any]) -> bytes:
    """The same without the self mask."""
    key = derive(bytes.fromhex(keys["t2"]), bytes.fromhex(keys["self"]), labels.KEY_SELF, me)
    return _without(data, layout, [(key, -1)])


def _without(data: bytes, layout: Layout, streams: Iterable[tuple[bytes, int]]) -> bytes:
    buffer = np.frombuffer(data, dtype=np.uint8).copy()
    masks = Masks(list(streams))
    for piece in layout.pieces(0, layout.nbytes):
        masks.add(lanes_of(buffer, piece.start, piece.stop, piece.tensor.bits), piece.start)
    return buffer.tobytes()
