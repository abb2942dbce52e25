"""A site's update on its way to the sum: base − local, the transforms, and one vector with a scale for each tensor.

Each rank makes the part of it that it holds (federation/ranges.py).

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
from fedhpc.federation.checkpoint import Source, Tensors, read_into
from fedhpc.federation.ranges import Forms, Held
from fedhpc.federation.scale_choice import choose_scales, stop
from fedhpc.federation.scales import Largest, Scales, largest_of_site, largest_values, refuse_beyond
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure.ring import Tensor, scale_for

MODEL = "model/"
"""Begins the names of the model's tensors in a vector."""


@dataclass(frozen=True)
class Base:
    """A state that local training started from."""

    tensors: Tensors  # what this rank holds of them
    state: bytes  # its hash [32]
    rounds: int


@dataclass(frozen=True)
class Update:
    """What one site would change in the model, before its share is multiplied in."""

    tensors: Tensors  # base − local by the model's names, as much as this rank holds: float32 or float64, float64
    # throughout with 64-bit lanes
    base: Base
    share: float  # w_u / W, discounted


class Transform(Protocol):
    """One change of a site's update. Every rank of the site applies it to what it holds.

    The same update must give the same bits: a round is repeated after a kill, and the ledger refuses another vector in
    its place. What is random is therefore drawn from a key of the site's and from `update.base.state`.
    """

    name: str

    def apply(self, update: Update) -> Update:
        """The changed update, with the same names and shapes. It may change the arrays of `update` in place."""
        ...


def held_in(session: Session, forms: Forms) -> Held:
    """What the ranks of this site hold of a model of `forms`: the elements whose lanes they carry in its sums."""
    if session.ranks == 1:
        return Held(session.party.site, forms)
    layout = session.layout(_tensors(session, forms))
    return Held.of_parts(session.party.site, forms, layout, session.parts(layout.nbytes))


def _tensors(session: Session, forms: Forms) -> list[Tensor]:
    """The tensors of an update's vector, without scales."""
    wide = session.agreement.secure.lane_bits == 64
    return [Tensor(MODEL + n, "float64" if wide else f.dtype.name, f.shape) for n, f in forms.items()]


def update_vector(
    session: Session, held: Held, base: Base, local: Source, share: float, transforms: Sequence[Transform] = ()
) -> tuple[Vector, Scales]:
    """base − local after all `transforms`, in one vector, and the scale of every tensor.

    `local`: the site's tensors after training, what this rank holds of them. Every rank of every site calls it: without
    a bound the sites choose the scales together. Raises DataError, on every rank, for other names than those of `base`,
    for NaN, infinity, and values beyond [secure] bound.
    """
    if not callable(local) and local.keys() != base.tensors.keys():
        raise DataError("the local model has other tensors than the global one")
    plain = _tensors(session, held.forms)
    layout = session.layout(plain)
    vector = Vector(layout, None if held.replicated else session.parts(layout.nbytes)[session.rank])
    if session.agreement.secure.lane_bits == 64:
        vector.sources = {MODEL + n: f.dtype.name for n, f in held.forms.items()}
    views = vector.held()
    updates = {name: views[MODEL + name] for name in base.tensors}
    read_into(updates, local)
    for name, update in updates.items():
        np.subtract(base.tensors[name], update, out=update, dtype=update.dtype)
    _transform(Update(updates, base, share), transforms)
    scales = _scales(session, held, views, share)
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


def largest_held(held: Held, pieces: Mapping[str, NDArray[Any]]) -> dict[str, Largest]:
    """The largest values of tensors of which each rank holds `pieces`; the same on all ranks."""
    return largest_values(pieces) if held.replicated else largest_of_site(held.site, pieces)


def _scales(session: Session, held: Held, updates: Mapping[str, NDArray[Any]], share: float) -> Scales:
    """The scale that the agreed bound gives each of `updates`, or the one that the sites choose by a masked count."""
    bound, sites = session.agreement.secure.bound, len(session.sites)
    if bound is None and sites == 1:
        return Scales(dict.fromkeys(updates, 0))
    largest = largest_held(held, updates)
    if bound is None:
        return choose_scales(session, largest, share, f"scale of round {session.round_ + 1}")
    refuse_beyond(largest, bound, session.site)
    return Scales({n: scale_for(bound, 8 * a.itemsize, sites) for n, a in updates.items()})


def refuse_lost(session: Session, held: Held, vector: Vector, scales: Scales) -> None:
    """Raise PolicyError, on every rank, if a chosen scale has rounded a tensor's whole sum to zero, and for good.

    `vector` is summed. A scale that a false mark made too coarse would let the model stand still in silence.
    """
    party = session.party
    if party.agreement.secure.bound is not None:
        return
    if held.replicated:
        zero = [name for name in scales.lost if not vector.view(name).any()]
    else:  # only the leader knows which are lost, and each rank of its part
        mine = bytes(int(values.any()) for values in vector.held().values())
        found = zip(vector.held(), zip(*party.site.gather_bytes(mine), strict=True), strict=True)
        zero = [name for name, anywhere in found if name in scales.lost and not any(anywhere)]
    stop(party, zero, "the chosen scale has rounded the sum of the updates to zero")
