"""base − local, the transforms, and the scales: what a site's vector holds before anything is rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting
from numpy.typing import NDArray

from fedhpc.errors import DataError, InternalError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import forms_of
from fedhpc.federation.scales import Scales
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.update import MODEL, Base, Transform, Update, held_in, update_vector

BASE = Base({"w": np.array([40.0, -8.0, 0.5], np.float32), "b": np.float32([1.0])}, b"s" * 32, 3)
LOCAL = {"w": np.array([10.0, 32.0, 0.5], np.float32), "b": np.float32([3.0])}
DIFFERENCE = {"w": [30.0, -40.0, 0.0], "b": [-2.0]}
BOUND: dict[str, Any] = {"secure": {"bound": 1.0}}


class Clip:
    """Every tensor to a largest absolute value of 1, in place."""

    name = "clip"

    def __init__(self) -> None:
        self.seen: list[Update] = []

    def apply(self, update: Update) -> Update:
        self.seen.append(dataclasses.replace(update, tensors={n: t.copy() for n, t in update.tensors.items()}))
        for tensor in update.tensors.values():
            np.clip(tensor, -1.0, 1.0, out=tensor)
        return update


class Halved:
    """In arrays of its own."""

    name = "halved"

    def apply(self, update: Update) -> Update:
        return dataclasses.replace(update, tensors={n: np.asarray(t * 0.5) for n, t in update.tensors.items()})


class Other:
    """What is none of the update's."""

    name = "other"

    def __init__(self, tensors: dict[str, NDArray[Any]]) -> None:
        self.tensors = tensors

    def apply(self, update: Update) -> Update:
        return dataclasses.replace(update, tensors=self.tensors)


def in_vector(session: Session, local: Tensors, transforms: Sequence[Transform]) -> tuple[Vector, Scales]:
    held = held_in(session, forms_of(BASE.tensors))
    return update_vector(session, held, BASE, local, 0.25, transforms)


def made(transforms: Sequence[Transform] = (), **sections: Any) -> tuple[Vector, Scales]:
    """Site 1's vector of three sites with the same update and the share 1/4."""

    def work(session: Session) -> tuple[Vector, Scales]:
        return in_vector(session, LOCAL, transforms)

    return Meeting(3, **sections).run(work)[1]


def held(vector: Vector) -> dict[str, list[float]]:
    return {name: vector.view(MODEL + name).tolist() for name in BASE.tensors}


def test_without_transforms_it_is_the_difference() -> None:
    vector, _ = made(secure={"bound": 64.0})
    assert held(vector) == DIFFERENCE
    assert vector.view("model/w").dtype == np.float32
    wide, _ = made(secure={"bound": 64.0, "lane_bits": 64})
    assert held(wide) == DIFFERENCE
    assert wide.view("model/w").dtype == np.float64
    assert wide.sources == {"model/w": "float32", "model/b": "float32"}


def test_transforms_come_one_after_another() -> None:
    both = [Clip(), Halved()]
    vector, _ = made(both, **BOUND)
    assert held(vector) == {"w": [0.5, -0.5, 0.0], "b": [-0.5]}
    vector, _ = made(both[::-1], **BOUND)
    assert held(vector) == {"w": [1.0, -1.0, 0.0], "b": [-1.0]}


def test_a_transform_is_told_what_it_changes() -> None:
    clip = Clip()
    made([clip], **BOUND)
    for update in clip.seen:
        assert {n: t.tolist() for n, t in update.tensors.items()} == DIFFERENCE
        assert (update.base, update.share) == (BASE, 0.25)


def test_the_bound_holds_for_what_is_left_after_the_transforms() -> None:
    with pytest.raises(DataError, match="beyond the bound 1"):
        made(**BOUND)
    made([Clip()], **BOUND)


def test_scales_are_chosen_after_the_transforms() -> None:
    """40 · 1/4 ≤ 2^4, and clipped 1 · 1/4 ≤ 2^-2 or, as it is counted, 2^-1: so many bits more are kept."""
    _, plain = made()
    _, clipped = made([Clip()])
    assert clipped.by_name["model/w"] - plain.by_name["model/w"] == 5
    assert clipped.by_name["model/b"] - plain.by_name["model/b"] == 1


def test_each_tensor_has_a_scale_of_its_own() -> None:
    vector, scales = made()
    found = {tensor.name: tensor.scale for tensor in vector.layout.named}
    assert found == scales.by_name
    assert len(set(found.values())) == 2, "40 and 2 take another number of bits"


def test_changes_in_place_are_made_in_the_vector_itself() -> None:
    """So that a transform costs no second vector."""
    kept: list[NDArray[Any]] = []

    class Keeps(Clip):
        def apply(self, update: Update) -> Update:
            kept.append(update.tensors["w"])
            return update

    vectors = Meeting(3, **BOUND | {"secure": {"bound": 64.0}}).run(
        lambda session: in_vector(session, LOCAL, [Keeps()])[0]
    )
    assert sum(np.shares_memory(tensor, vector.buffer) for tensor in kept for vector in vectors.values()) == 3


@pytest.mark.parametrize(
    "tensors", [{"w": BASE.tensors["w"]}, {"w": np.zeros(2), "b": np.zeros(1)}, BASE.tensors | {"c": np.zeros(1)}]
)
def test_a_transform_that_gives_another_model_is_named(tensors: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(InternalError, match="transform 'other' gave tensors of other names or shapes"):
        made([Other(tensors)], **BOUND)


def test_a_local_model_of_other_tensors_is_refused() -> None:
    with pytest.raises(DataError, match="other tensors than the global one"):
        Meeting(3, **BOUND).run(lambda session: in_vector(session, {"w": LOCAL["w"]}, ()))


@pytest.mark.parametrize("sites", [1, 3])
def test_a_model_takes_the_step_of_transformed_updates(sites: int) -> None:
    """One site alone too, which exchanges nothing otherwise."""

    def stepped(transforms: Sequence[Transform]) -> Callable[[Session], list[float]]:
        def work(session: Session) -> list[float]:
            model = GlobalModel(session, {"w": np.zeros(2, np.float32)}, transforms=transforms)
            assert model.exchange({"w": np.array([0.5, -8.0], np.float32)}, 3)
            return list(model.tensors["w"].tolist())

        return work

    sections: dict[str, Any] = {"secure": {"bound": 64.0}, "strategy": {"weights": "uniform"}}
    for transforms, expected in ((), [0.5, -8.0]), ([Clip()], [0.5, -1.0]):
        for found in Meeting(sites, **sections).run(stepped(transforms)).values():
            assert found == pytest.approx(expected, abs=2.0**-20)
