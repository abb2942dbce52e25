"""Who carries the parts of a vector, in the serial world; test_masked_sum.py has sites of many ranks."""

from __future__ import annotations

import pytest

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.mpi.world import World, some_ranks, split

ALONE = World(SerialGroup("world"))


@pytest.mark.parametrize("wish", ["auto", 1])
def test_one_process_carries_everything(wish: int | str) -> None:
    rails = split(ALONE, 1, ["aa"], wish).rails
    assert rails is not None
    assert rails.counts == (1,)
    group = rails.group((0,))
    assert (group.label, group.rank, group.size) == ("rail 0", 0, 1)
    assert rails.group((0,)) is group


def test_more_rails_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="rails = 2, but site aa has 1 ranks"):
        split(ALONE, 1, ["aa"], 2)


def test_a_site_without_ranks_is_named() -> None:
    with pytest.raises(ConfigError, match="no rank of this job belongs to site bb"):
        split(ALONE, 1, ["aa", "bb"], "auto")


def test_some_of_one_rank() -> None:
    assert some_ranks(ALONE, joins=True) is ALONE
    assert some_ranks(ALONE, joins=False) is None
