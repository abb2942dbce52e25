"""A masked sum is the unmasked sum, bit for bit, and both are the sum by hand; whatever ranks, rails and chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import mpirun


@pytest.mark.mpi
def test_masked_unmasked_and_by_hand_are_equal() -> None:
    done = mpirun(8, [Path(__file__).with_name("masked_sum_ranks.py")], timeout=200).ok()
    assert "all equal" in done.out
