"""Work is shared out over the cores of a rank in order, and nothing goes on once it has failed."""

from __future__ import annotations

import threading

import pytest

from fedhpc.federation.cores import MOST, Cores


@pytest.mark.parametrize(("cores", "things", "shares"), [(1, 5, 1), (2, 5, 2), (4, 3, 3), (3, 0, 1), (999, 999, MOST)])
def test_shares_cover_everything_once(cores: int, things: int, shares: int) -> None:
    found = Cores(cores).shares(things)
    assert len(found) == shares
    assert [i for start, stop in found for i in range(start, stop)] == list(range(things))


def test_one_core_has_no_thread() -> None:
    before = set(threading.enumerate())
    names = Cores(0).map(lambda _: threading.current_thread(), range(3))
    assert set(names) == {threading.current_thread()}
    assert set(threading.enumerate()) == before


def test_results_are_in_order_and_come_from_several_threads() -> None:
    meeting = threading.Barrier(3, timeout=30)

    def work(item: int) -> tuple[int, threading.Thread]:
        meeting.wait()  # all three are at work
        return item, threading.current_thread()

    items, threads = zip(*Cores(3).map(work, [7, 8, 9]), strict=True)
    assert items == (7, 8, 9)
    assert threads[0] is threading.current_thread()
    assert len(set(threads)) == 3


@pytest.mark.parametrize("failing", [0, 1])
def test_the_first_failure_is_told_after_all_have_ended(failing: int) -> None:
    failed, ended = threading.Event(), threading.Event()

    def work(item: int) -> None:
        if item == failing:
            failed.set()
            raise ValueError(f"of {item}")
        if item == 2:
            assert failed.wait(30)
            ended.set()
            raise ValueError("later")

    with pytest.raises(ValueError, match=f"of {failing}"):
        Cores(3).map(work, [0, 1, 2])
    assert ended.is_set()
