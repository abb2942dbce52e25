"""`fedhpc bench` starts its own ranks and checks what it measured."""

from __future__ import annotations

import json

import pytest
from harness import FEDHPC, call


@pytest.mark.mpi
def test_a_sum_over_sites_of_different_sizes() -> None:
    words = ["bench", "sum", "--ranks", "1,2", "--params", "600000", "--repeat", "1", "--json"]
    result = json.loads(call([*FEDHPC, *words], timeout=60).ok().out)
    assert result["verified"] is True
    assert (result["ranks"], result["rails"]) == ([1, 2], [1, 2])
    assert result["sum_uneven_over_even"] == pytest.approx(result["masked_s"] / result["even_masked_s"])
