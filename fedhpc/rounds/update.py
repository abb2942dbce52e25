"""A site's update on its way to the sum: base − local, the transforms, and one vector with a scale for each tensor.

Between the difference and the vector stands a list of transforms. It is the place of what changes a site's numbers
before anything is rounded and masked: clipping, noise, what earlier rounds have lost to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError, InternalError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.party import Party
from fedhpc.federation.scale_choice import choose_scales, stop
from fedhpc.federation.scales import Scales, refuse_beyond
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Tensor, scale_for

MODEL = "model/"
"""Begins the names of the model's tensors in a vector."""


@dataclass(frozen=True)
class Base:
    """A state that local training started from."""

    tensors: Tensors
    state: bytes  # its hash [32]
    rounds: int


@dataclass(frozen=True)
class Update:
    """What one site would change in the model, before its share is multiplied in."""

    tensors: Tensors  # base − local by the model's names: float32 or float64, float64 throughout with 64-bit lanes
    base: Base
    share: float  # w_u / W, discounted


class Transform(Protocol):
    """One change of a site's update. Every rank of the site applies it to equal numbers.

    The same update must give the same bits: a round is repeated after a kill, and the ledger refuses another vector in
    its place. What is random is therefore drawn from a key of the site's and from `update.base.state`.
    """

    name: str

    def apply(self, update: Update) -> Update:
        """The changed update, with the same names and shapes. It may change the arrays of `update` in place."""
        ...


def update_vector(
    session: Session, base: Base, local: Tensors, share: float, transforms: Sequence[Transform] = ()
) -> tuple[Vector, Scales]:
    """base − local after all `transforms`, in one vector, and the scale of every tensor.

    `local`: the site's tensors after training, equal on all its ranks. Every rank of every site calls it: without a
    bound the sites choose the scales together. Raises DataError for other names than those of `base`, for NaN,
    infinity, and values beyond [secure] bound.
    """
    if local.keys() != base.tensors.keys():
        raise DataError("the local model has other tensors than the global one")
    wide = session.agreement.secure.lane_bits == 64
    plain = [Tensor(MODEL + n, "float64" if wide else t.dtype.name, t.shape) for n, t in base.tensors.items()]
    vector = Vector(session.layout(plain))
    vector.sources = {MODEL + n: t.dtype.name for n, t in base.tensors.items() if wide}
    views = vector.views()
    for name, tensor in base.tensors.items():
        view = views[MODEL + name]
        np.subtract(tensor, local[name], out=view, dtype=view.dtype)
    _transform(Update({n: views[MODEL + n] for n in base.tensors}, base, share), transforms)
    scales = _scales(session, views, share)
    scaled = [Tensor(t.name, t.kind, t.shape, scales.by_name[t.name]) for t in plain]
    vector.layout = session.layout(scaled)
    return vector, scales


def _transform(update: Update, transforms: Sequence[Transform]) -> None:
    """Put what the transforms make of `update`, one after another, into its own arrays, which are the vector's."""
    found = update
    for transform in transforms:
        found = transform.apply(found)
        if {n: a.shape for n, a in found.tensors.items()} != {n: a.shape for n, a in update.tensors.items()}:
            raise InternalError(f"the transform '{transform.name}' gave tensors of other names or shapes")
    for name, view in update.tensors.items():
        if found.tensors[name] is not view:
            np.copyto(view, found.tensors[name], casting="same_kind")


def _scales(session: Session, updates: Mapping[str, NDArray[Any]], share: float) -> Scales:
    """The scale that the agreed bound gives each of `updates`, or the one that the sites choose by a masked count."""
    bound, sites = session.agreement.secure.bound, len(session.sites)
    if bound is None:
        return choose_scales(session, updates, share, f"scale of round {session.round_ + 1}")
    refuse_beyond(updates, bound, session.site)
    return Scales({n: scale_for(bound, 8 * a.itemsize, sites) for n, a in updates.items()})


def refuse_lost(party: Party, vector: Vector, scales: Scales) -> None:
    """Raise PolicyError, on every rank, if a chosen scale has rounded a tensor's whole sum to zero, and for good.

    `vector` is summed. A scale that a false mark made too coarse would let the model stand still in silence.
    """
    if party.agreement.secure.bound is None:
        zero = [name for name in scales.lost if not vector.view(name).any()]
        stop(party, zero, "the chosen scale has rounded the sum of the updates to zero")
