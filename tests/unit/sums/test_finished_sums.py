"""Sums kept for a site that was killed after them: given again to the same question only, and never when damaged."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from secure_fakes import key_of

from fedhpc.errors import PolicyError, StorageError
from fedhpc.federation.party import Opened, SumKind, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.secure.ledger import LedgerEntry, OtherVectorError, RoundLedger
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.sums.over_relay.finished_sums import NONE_FINISHED, FinishedSums, Reached

LAYOUT = Layout([Tensor("x", "float64", (3,), 20), Tensor("n", "int64", (2,))], salted=True)
PLAN = SumPlan(5, "mean age", SumKind.STATISTIC, key_of("state"))
MARK = key_of("fingerprint")


def full(layout: Layout = LAYOUT) -> Vector:
    vector = Vector(layout)
    vector.salt[:] = [1 << 57, 0, 3, 4, 5]
    vector.fill({"x": np.array([1.5, -2.0, 0.25]), "n": np.array([7, -9])})
    return vector


SALT = full().salt.tobytes()


def keep(finished: FinishedSums, plan: SumPlan = PLAN, members: tuple[int, ...] = (1, 2, 4)) -> None:
    opened = Opened(plan, key_of("tree"), Stages(), 0, 0, members, full().salt.tobytes())
    finished.keep(plan, opened, full(), MARK)


@pytest.fixture
def finished(tmp_path: Path) -> FinishedSums:
    return FinishedSums(tmp_path / "sums")


def test_the_same_question_gets_the_same_answer_after_a_restart(tmp_path: Path, finished: FinishedSums) -> None:
    assert finished.find(PLAN, Vector(LAYOUT), MARK) is None
    keep(finished)
    path = tmp_path / "sums" / "round-5.sum"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    vector = Vector(LAYOUT)
    vector.buffer[:] = 255
    assert FinishedSums(tmp_path / "sums").find(PLAN, vector, MARK) == (key_of("tree"), (1, 2, 4))
    assert vector.buffer.tobytes() == full().buffer.tobytes()
    assert vector.salt.tolist() == [1 << 57, 0, 3, 4, 5]  # what is made of S is made again


@pytest.mark.parametrize("changes", [{"purpose": "mean weight"}, {"base": key_of("a state")}, {"round_": 6}])
def test_another_question_is_not_answered(finished: FinishedSums, changes: dict[str, object]) -> None:
    keep(finished)
    vector = Vector(LAYOUT)
    vector.buffer[:] = 3
    assert finished.find(dataclasses.replace(PLAN, **changes), vector, MARK) is None  # type: ignore[arg-type]
    assert (vector.buffer == 3).all()  # the site's own values are still there to be summed


@pytest.mark.parametrize(
    ("mark", "layout"),
    [
        (key_of("another fingerprint"), LAYOUT),
        (MARK, Layout([Tensor("x", "float64", (3,), 21), Tensor("n", "int64", (2,))], salted=True)),
        (MARK, Layout([Tensor("y", "float64", (3,), 20), Tensor("n", "int64", (2,))], salted=True)),
        (MARK, Layout([Tensor("x", "float64", (3, 1), 20), Tensor("n", "int64", (2,))], salted=True)),
    ],
)
def test_a_second_different_sum_under_an_old_name_is_refused(
    finished: FinishedSums, mark: bytes, layout: Layout
) -> None:
    keep(finished)
    vector = Vector(layout)
    vector.buffer[:] = 3
    with pytest.raises(PolicyError, match="'mean age' was summed in round 5 already, with other numbers") as refused:
        finished.find(PLAN, vector, mark)
    assert refused.value.exit_code == 77
    assert (vector.buffer == 3).all()  # the old total is not shown as the answer to another question


def test_a_sum_that_was_skipped_stays_skipped(tmp_path: Path, finished: FinishedSums) -> None:
    assert not finished.is_skipped(PLAN)
    finished.keep_skipped(PLAN)
    again = FinishedSums(tmp_path / "sums")
    assert again.is_skipped(PLAN)
    assert not again.is_skipped(dataclasses.replace(PLAN, purpose="mean weight"))
    assert again.last().round_ == 5
    assert again.find(PLAN, Vector(LAYOUT), MARK) is None
    again.erase_until(5)
    assert (again.last().round_, again.is_skipped(PLAN)) == (5, False)


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
        finished.find(PLAN, Vector(LAYOUT), MARK)
    assert refused.value.hint


def test_sums_go_up_to_a_round_and_proofs_stay(finished: FinishedSums) -> None:
    for round_ in (1, 2, 10, 11):
        keep(finished, dataclasses.replace(PLAN, round_=round_))
    finished.keep_proof(2, (b"a", b"b"))
    assert finished.last().round_ == 11
    finished.erase_until(10)
    left = [r for r in (1, 2, 10, 11) if finished.find(dataclasses.replace(PLAN, round_=r), Vector(LAYOUT), MARK)]
    assert left == [11]
    assert finished.proof(2) == (b"a", b"b")


def test_it_is_known_up_to_where_sums_are_gone(tmp_path: Path, finished: FinishedSums) -> None:
    """A program that starts again counts from there; what a kill left behind is below it, and goes the next time."""
    assert (finished.first(), finished.last()) == (NONE_FINISHED, NONE_FINISHED)
    for round_ in (1, 2, 3):
        keep(finished, dataclasses.replace(PLAN, round_=round_))
    finished.erase_until(2, b"salt of two")
    again = FinishedSums(tmp_path / "sums")
    assert (again.first(), again.last()) == (Reached(2, b"salt of two"), Reached(3, SALT))
    keep(again, dataclasses.replace(PLAN, round_=1))
    again.erase_until(3, SALT)
    assert again.first() == again.last() == Reached(3, SALT)
    again.erase_until(2)  # an older checkpoint was resumed from: nothing comes back
    assert again.first() == Reached(3, SALT)
    assert os.listdir(tmp_path / "sums") == ["until"]
    (tmp_path / "sums" / "until").write_text("soon")
    with pytest.raises(StorageError, match="until is damaged"):
        again.first()


def test_a_process_that_forgets_before_it_sums_keeps_the_salt_of_the_one_before(finished: FinishedSums) -> None:
    """Without it the next first model would have a blind of zeros."""
    keep(finished, dataclasses.replace(PLAN, round_=1))
    keep(finished, dataclasses.replace(PLAN, round_=2, skip=True))
    finished.erase_until(2)
    assert finished.first() == Reached(2, SALT)
    keep(finished, dataclasses.replace(PLAN, round_=3, skip=True))
    finished.erase_until(3)
    assert finished.first() == Reached(3, SALT)


def test_a_ledger_that_lost_what_was_finished_is_refused(finished: FinishedSums) -> None:
    """A script has no checkpoint that would tell."""

    def ledger(*rounds: int) -> RoundLedger:
        return RoundLedger([LedgerEntry(r, f"sum {r}", key_of(r), key_of("print"), (1, 2, 4)) for r in rounds])

    finished.refuse_lost_ledger(ledger(), "bern")
    finished.keep_skipped(dataclasses.replace(PLAN, round_=1))  # it was away, and put nothing into that sum
    finished.refuse_lost_ledger(ledger(), "bern")
    for round_ in (2, 3):
        keep(finished, dataclasses.replace(PLAN, round_=round_))
    finished.refuse_lost_ledger(ledger(2, 3, 4), "bern")
    for less, lost in ((ledger(), 2), (ledger(2), 3)):
        with pytest.raises(PolicyError, match=f"ledger of site bern does not have round {lost}") as refused:
            finished.refuse_lost_ledger(less, "bern")
        assert refused.value.exit_code == 77
    finished.erase_until(3, SALT)
    finished.refuse_lost_ledger(ledger(2, 3), "bern")
    with pytest.raises(PolicyError, match="does not have round 3"):
        finished.refuse_lost_ledger(ledger(), "bern")


def test_a_training_sum_is_given_to_the_update_from_the_same_state(finished: FinishedSums) -> None:
    plan = SumPlan(5, "train", SumKind.TRAINING, key_of("state"), key_of("base"))
    keep(finished, plan)
    vector = Vector(LAYOUT)
    assert finished.find(dataclasses.replace(plan, base=key_of("another base")), vector, MARK) is None
    for mark in (MARK, key_of("trained anew, to other numbers")):
        vector.buffer[:] = 3
        assert finished.find(plan, vector, mark) == (key_of("tree"), (1, 2, 4))
        assert vector.buffer.tobytes() == full().buffer.tobytes()


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
    assert again.last().round_ == 5


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=str(tmp_path / "file")):
        FinishedSums(tmp_path / "file")


def test_a_sum_that_others_may_have_skipped_gives_no_salt(finished: FinishedSums) -> None:
    """What is made of S must be the same at all sites, and some of them do not hold such a sum."""
    keep(finished, dataclasses.replace(PLAN, round_=5))
    other = Opened(dataclasses.replace(PLAN, round_=6, skip=True), key_of("tree"), Stages(), 0, 0, (1, 2), bytes(40))
    finished.keep(other.plan, other, full(), MARK)
    assert finished.last() == Reached(6, SALT)


# --- the copy beside the ledger


@pytest.fixture
def both(tmp_path: Path) -> FinishedSums:
    return FinishedSums(tmp_path / "sums", tmp_path / "beside")


def again(tmp_path: Path) -> FinishedSums:
    return FinishedSums(tmp_path / "sums", tmp_path / "beside")


def test_a_lost_folder_is_made_good_by_the_copy(tmp_path: Path, both: FinishedSums) -> None:
    keep(both)
    both.keep_skipped(dataclasses.replace(PLAN, round_=6, purpose="measured"))
    last = both.last()
    shutil.rmtree(tmp_path / "sums")
    found = again(tmp_path)
    vector = Vector(LAYOUT)
    assert found.find(PLAN, vector, MARK) == (key_of("tree"), (1, 2, 4))
    assert vector.buffer.tobytes() == full().buffer.tobytes()
    assert found.is_skipped(dataclasses.replace(PLAN, round_=6, purpose="measured"))
    assert found.last() == last
    assert found.holds(PLAN)
    assert not found.holds(dataclasses.replace(PLAN, purpose="another"))
    with pytest.raises(OtherVectorError, match="with other numbers of this site"):
        found.find(PLAN, Vector(LAYOUT), key_of("another fingerprint"))


def test_a_damaged_file_is_made_good_too(tmp_path: Path, both: FinishedSums) -> None:
    keep(both)
    both.erase_until(3, SALT)
    for name in ("round-5.sum", "until"):
        path = tmp_path / "sums" / name
        path.write_bytes(path.read_bytes()[:-7])
    found = again(tmp_path)
    assert found.find(PLAN, Vector(LAYOUT), MARK) is not None
    assert found.first() == Reached(3, SALT)
    for path in (tmp_path / "beside").iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StorageError, match="until is damaged") as told:
        again(tmp_path).first()
    assert "remove it and start again" in told.value.hint


def test_what_no_other_site_can_give_stays_beside_the_ledger(tmp_path: Path, both: FinishedSums) -> None:
    """A first checkpoint covers the sums in the run directory; others cannot give it before a training round."""
    keep(both)
    both.erase_until(5, SALT, beside=False)
    assert [p.name for p in (tmp_path / "sums").iterdir()] == ["until"]
    assert [p.name for p in (tmp_path / "beside").iterdir()] == ["round-5.sum"]
    shutil.rmtree(tmp_path / "sums")
    assert again(tmp_path).first() == NONE_FINISHED
    assert again(tmp_path).find(PLAN, Vector(LAYOUT), MARK) is not None
    both = again(tmp_path)
    both.erase_until(5, SALT)
    assert sorted(p.name for p in (tmp_path / "beside").iterdir()) == ["until"]
    shutil.rmtree(tmp_path / "sums")
    assert again(tmp_path).first() == Reached(5, SALT)


def test_the_copies_keep_within_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(FinishedSums(tmp_path / "size"))
    size = (tmp_path / "size" / "round-5.sum").stat().st_size
    monkeypatch.setattr("fedhpc.sums.over_relay.finished_sums.BESIDE_BYTES", 2 * size - 1)
    finished = again(tmp_path)
    for number in range(1, 4):
        keep(finished, dataclasses.replace(PLAN, round_=number))
    assert [p.name for p in (tmp_path / "beside").iterdir()] == ["round-1.sum"]
    finished = again(tmp_path)
    finished.erase_until(1, SALT)
    (tmp_path / "beside" / "until").unlink()
    finished = again(tmp_path)
    keep(finished, dataclasses.replace(PLAN, round_=4))
    assert [p.name for p in (tmp_path / "beside").iterdir()] == ["round-4.sum"]
