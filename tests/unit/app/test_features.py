"""Sites compare what their columns mean, also where a list of them is too long to send."""

from types import SimpleNamespace

import pytest

from fedhpc.app.features import LARGEST_TOLD_BYTES, compare_stores, describe
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.errors import DataError


def table(columns, unit="beta"):
    return FeatureSet(tuple(Feature(f"cg{i:08d}", unit) for i in range(columns)), Label("y"), (columns,))


def compare(mine, theirs):
    told = {1: describe(mine), 2: describe(theirs)}
    peers = SimpleNamespace(announce=lambda topic, message: told)
    compare_stores(SimpleNamespace(leads=True, sites=["a", "b"], site="a", peers=peers), mine)


WIDE, NARROW = table(50_000), table(3)


def test_long_lists_are_told_by_their_hash():
    assert len(WIDE.canonical()) > LARGEST_TOLD_BYTES > 100 > len(describe(WIDE))
    assert describe(NARROW) == NARROW.canonical()
    compare(WIDE, table(50_000))


@pytest.mark.parametrize("theirs", [table(50_001), table(50_000, "m"), NARROW])
def test_different_long_lists_are_refused(theirs):
    for one, other in ((WIDE, theirs), (theirs, WIDE)):
        with pytest.raises(DataError, match="too many to send; compare what `fedhpc data check`"):
            compare(one, other)


def test_short_lists_are_compared_by_name():
    compare(NARROW, table(3))
    with pytest.raises(DataError, match="'cg00000003' is only in the second"):
        compare(NARROW, table(4))
