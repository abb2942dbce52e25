"""The sum `start`: an epoch goes on from the model of an epoch before it (docs/protocol.md section 6, "An epoch that
goes on").

One site puts the model in, the others put in zeros. So every site of the roster learns it, sites that are new too, and
its salt S makes the first blind, which a site that left cannot know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError, PolicyError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.party import SumKind, SumPlan
from fedhpc.federation.ranges import Form, Forms, forms_of
from fedhpc.federation.session import Session
from fedhpc.federation.state_tensors import model_sha256
from fedhpc.federation.vector import Vector
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.secure import labels
from fedhpc.secure.ring import Tensor

_MODEL, _WEIGHT = "model/", "total_weight"
_LANE_BYTES = 7  # of the raw bytes in one int64 lane: the sum over 100 sites, of which 99 add zeros, stays in the ring


@dataclass(frozen=True)
class Taken:
    """What an epoch takes over."""

    tensors: Tensors
    total_weight: float | None  # W of the roster, if it is for the same sites; None: it was not summed, or for others


def take_over(session: Session, model: GlobalModel, own: Taken | None) -> None:
    """Give `model` the tensors and W that the giver of this epoch puts in. Every rank calls it, in the first round.

    `own`: at the leader of a site that has them. Raises PolicyError, on every rank of a site whose own copy differs;
    DataError if the model is another one than this task builds; RoundOverError if the others went on without this site.
    """
    party, forms = session.party, model.held.forms
    lanes = _lanes(forms)
    layout = session.layout([Tensor(name, "int64", (count,)) for name, count in lanes.items()])
    vector = Vector(layout)
    mine: dict[str, NDArray[np.int64]] = {}
    if party.leads and own is not None:
        _refuse_shapes(forms, forms_of(own.tensors), party.name)
        mine = _packed(own)
        roster = [entry.identity.hex() for entry in party.agreement.roster]
        if party.agreement.start.giver(roster) == party.number:
            vector.fill(mine)
    state = session.state
    plan = SumPlan(
        round_=session.round_ + 1,
        purpose=labels.PURPOSE_START,
        kind=SumKind.TRAINING,
        state=state,
        base=state,
        everyone=True,
        checkpointed=True,
        category=labels.CLASS_START,
    )
    opened = session.open(vector, plan)
    given = vector.views()
    _refuse_other(session, bool(mine) and any(np.any(mine[name] != given[name]) for name in mine))
    tensors = {n: _unpacked(given[_MODEL + n], form) for n, form in forms.items()}
    if not model.held.replicated:
        tensors = model.held.pieces(tensors)
    weight = float(_unpacked(given[_WEIGHT], Form(np.dtype("<f8"), (1,)))[0])
    session.settle(opened, model.go_on_from(tensors, weight or None, opened.salt))
    model.reached = session.round_


def refuse_other_model(session: Session, model: GlobalModel, own: Taken | None) -> None:
    """As `take_over`, for a `model` that this site was given with τ signatures after the sum. Every rank calls it."""
    given = model.sha256()
    _refuse_other(session, session.leads and own is not None and model_sha256(own.tensors) != given)


def _refuse_other(session: Session, other: bool) -> None:
    """Raise on every rank of the site if its leader has found a difference."""
    party = session.party
    if party.site.broadcast_bytes((b"\1" if other else b"\0") if party.leads else None) == b"\1":
        roster = [entry.identity.hex() for entry in party.agreement.roster]
        giver = party.agreement.names[party.agreement.start.giver(roster) - 1]
        raise PolicyError(
            f"the epoch goes on from another model than site {party.name} has of the epoch before: that of site "
            f"{giver}",
            "run the old epoch to its end at this site first, then this one; if it was at its end, ask the other "
            f"sites: where site {giver} differs from all of them, they go on without it by `fedhpc federation revoke`",
        )


def _refuse_shapes(built: Forms, old: Forms, site: str) -> None:
    """The task may have changed with the epoch; its model may not."""
    for name in [*built, *(n for n in old if n not in built)]:
        kinds = [f"{t[name].dtype} {list(t[name].shape)}" if name in t else "absent" for t in (old, built)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"site {site}: the model of the epoch before is not the one that this task builds: {name} was "
                f"{kinds[0]}, now it is {kinds[1]}",
                "a task with another model begins from scratch, or from a file: `fedhpc federation next --help`",
            )


def _lanes(forms: Forms) -> dict[str, int]:
    """Lanes by name."""
    return {_MODEL + name: -(-f.nbytes // _LANE_BYTES) for name, f in forms.items()} | {_WEIGHT: -(-8 // _LANE_BYTES)}


def _packed(own: Taken) -> dict[str, NDArray[np.int64]]:
    """Raw bytes, seven to a lane, little-endian, by the names of the lanes."""
    arrays: Tensors = {_MODEL + name: tensor for name, tensor in own.tensors.items()}
    arrays[_WEIGHT] = np.array([own.total_weight or 0.0], dtype="<f8")
    packed = {}
    for name, tensor in arrays.items():
        raw: NDArray[np.uint8] = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        padded = np.zeros(-(-raw.size // _LANE_BYTES) * _LANE_BYTES, dtype=np.uint8)
        padded[: raw.size] = raw
        words = np.zeros((padded.size // _LANE_BYTES, 8), dtype=np.uint8)
        words[:, :_LANE_BYTES] = padded.reshape(-1, _LANE_BYTES)
        packed[name] = words.reshape(-1).view("<i8")
    return packed


def _unpacked(lanes: NDArray[np.int64], like: Form) -> NDArray[Any]:
    """The array of the form `like` whose raw bytes are in `lanes`."""
    if lanes.size and not 0 <= int(lanes.min()) <= int(lanes.max()) < 1 << 8 * _LANE_BYTES:
        raise DataError("the sum `start` holds no model", "two sites have put one in: their software differs")
    raw = np.ascontiguousarray(lanes, dtype="<i8").view(np.uint8).reshape(-1, 8)[:, :_LANE_BYTES].reshape(-1)
    return raw[: like.nbytes].copy().view(like.dtype).reshape(like.shape)
