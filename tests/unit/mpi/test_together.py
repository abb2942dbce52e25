"""An error of one rank is an error of all."""

from __future__ import annotations

from typing import Any

import pytest
from thread_ranks import run_ranks

from fedhpc.errors import FedhpcError, PolicyError, StorageError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.mpi.together import together


class Narrower(PolicyError):
    """A kind that other rooms know."""


def test_what_is_made_is_each_ranks_own() -> None:
    assert run_ranks(3, lambda site: together(site, lambda: 10 * site.rank)) == [0, 10, 20]


@pytest.mark.parametrize("name_rank", [False, True])
def test_all_raise_the_error_of_the_lowest_rank_in_its_kind(name_rank: bool) -> None:
    def fails(site: Any) -> FedhpcError:
        def work() -> None:
            if site.rank == 1:
                raise Narrower("one fault", "a hint")
            if site.rank == 2:
                raise StorageError("another", "")

        with pytest.raises(FedhpcError) as caught:
            together(site, work, name_rank=name_rank)
        return caught.value

    found = run_ranks(3, fails)
    assert {(type(error), error.hint, error.exit_code) for error in found} == {(PolicyError, "a hint", 77)}
    (what,) = {error.what for error in found}
    assert what == ("site a, rank 1: one fault" if name_rank else "one fault")
    assert [type(error.__cause__) for error in found] == [type(None), Narrower, StorageError]


def test_a_rank_alone_is_not_named_and_what_is_no_error_of_a_user_goes_through() -> None:
    def fails() -> None:
        raise StorageError("full", "free space")

    with pytest.raises(StorageError, match=r"^full$"):
        together(SerialGroup(), fails, name_rank=True)
    with pytest.raises(ZeroDivisionError):
        together(SerialGroup(), lambda: 1 / 0)
