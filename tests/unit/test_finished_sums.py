"""Sums kept for a site that was killed after them: given again to the same question only, and never when damaged."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from secure_fakes import key_of

from fedhpc.errors import StorageError
from fedhpc.federation.finished_sums import FinishedSums
from fedhpc.federation.layout import Vector
from fedhpc.federation.party import NO_BASE, Opened, SumPlan
from fedhpc.federation.pipeline import Stages
from fedhpc.secure.ring import Layout, Tensor

LAYOUT = Layout([Tensor("x", "float64", (3,), 20), Tensor("n", "int64", (2,))], salted=True)
PLAN = SumPlan(5, "mean age", NO_BASE, key_of("state"))


def full(layout: Layout = LAYOUT) -> Vector:
    vector = Vector(layout)
    vector.salt[:] = [1 << 57, 0, 3, 4, 5]
    vector.fill({"x": np.array([1.5, -2.0, 0.25]), "n": np.array([7, -9])})
    return vector


def keep(finished: FinishedSums, plan: SumPlan = PLAN, members: tuple[int, ...] = (1, 2, 4)) -> None:
    opened = Opened(plan, key_of("tree"), Stages(), 0, 0, members, full().salt.tobytes())
    finished.keep(plan, LAYOUT, opened, full())


@pytest.fixture
def finished(tmp_path: Path) -> FinishedSums:
    return FinishedSums(tmp_path / "sums")


def test_the_same_question_gets_the_same_answer_after_a_restart(tmp_path: Path, finished: FinishedSums) -> None:
    assert finished.find(PLAN, Vector(LAYOUT)) is None
    keep(finished)
    path = tmp_path / "sums" / "round-5.sum"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    vector = Vector(LAYOUT)
    vector.buffer[:] = 255
    assert FinishedSums(tmp_path / "sums").find(PLAN, vector) == (key_of("tree"), (1, 2, 4))
    assert vector.buffer.tobytes() == full().buffer.tobytes()
    assert vector.salt.tolist() == [1 << 57, 0, 3, 4, 5]  # what is made of S is made again


@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({"purpose": "mean weight"}, LAYOUT),
        ({"round_": 6}, LAYOUT),
        ({}, Layout([Tensor("x", "float64", (3,), 21), Tensor("n", "int64", (2,))], salted=True)),
        ({}, Layout([Tensor("y", "float64", (3,), 20), Tensor("n", "int64", (2,))], salted=True)),
        ({}, Layout([Tensor("x", "float64", (3, 1), 20), Tensor("n", "int64", (2,))], salted=True)),
    ],
)
def test_another_question_is_not_answered(finished: FinishedSums, changes: dict[str, object], layout: Layout) -> None:
    keep(finished)
    vector = Vector(layout)
    vector.buffer[:] = 3
    assert finished.find(dataclasses.replace(PLAN, **changes), vector) is None  # type: ignore[arg-type]
    assert (vector.buffer == 3).all()  # the site's own values are still there to be summed


def flip(back: int) -> Callable[[bytes], bytes]:
    """One bit of the byte that lies `back` bytes before the end."""
    return lambda data: data[:-back] + bytes([data[-back] ^ 1]) + data[len(data) - back + 1 :]


def change(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        assert data.count(old) == 1
        return data.replace(old, new)

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        flip(1),
        flip(40),
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"",
        lambda data: data[:30],
        lambda data: b"[]\n" + data.partition(b"\n")[2],
        lambda data: b"{}\n" + data.partition(b"\n")[2],
        change(b"[1,2,4]", b"[1,2,3]"),  # who is in the sum decides how a mean is rescaled
        change(b"[1,2,4]", b"[1,2]"),
        change(key_of("tree").hex().encode(), key_of("another tree").hex().encode()),
        change(b'"tree":', b'"trees":'),
        change(b'"sha256":"', b'"sha256":"0'),
    ],
)
def test_damage_is_refused(tmp_path: Path, finished: FinishedSums, damage: Callable[[bytes], bytes]) -> None:
    keep(finished)
    path = tmp_path / "sums" / "round-5.sum"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match=r"finished sum of round 5 in .* is damaged") as refused:
        finished.find(PLAN, Vector(LAYOUT))
    assert refused.value.hint


def test_sums_go_up_to_a_round_and_proofs_stay(finished: FinishedSums) -> None:
    for round_ in (1, 2, 10, 11):
        keep(finished, dataclasses.replace(PLAN, round_=round_))
    finished.keep_proof(2, (b"a", b"b"))
    assert finished.last_round() == 11
    finished.erase_until(10)
    left = [r for r in (1, 2, 10, 11) if finished.find(dataclasses.replace(PLAN, round_=r), Vector(LAYOUT))]
    assert left == [11]
    assert finished.proof(2) == (b"a", b"b")


def test_the_proofs_of_the_newest_models_are_kept(tmp_path: Path, finished: FinishedSums) -> None:
    proofs = {round_: (b'{"of":%d}' % round_, b"{}") for round_ in (8, 9, 10, 11, 100)}  # not in the order of text
    for round_, proof in proofs.items():
        finished.keep_proof(round_, proof)
    again = FinishedSums(tmp_path / "sums")
    assert [again.proof(r) for r in (8, 9)] == [(), ()]
    assert all(again.proof(r) == proofs[r] for r in (10, 11, 100))


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path, finished: FinishedSums) -> None:
    keep(finished)
    (tmp_path / "sums" / ".round-6.sum.0123456789abcdef").write_bytes(bytes(1000))
    again = FinishedSums(tmp_path / "sums")
    assert os.listdir(tmp_path / "sums") == ["round-5.sum"]
    assert again.last_round() == 5


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=str(tmp_path / "file")):
        FinishedSums(tmp_path / "file")
