"""What rows do not reach, and coupled rows, are told alike on any number of ranks, and nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import mpirun

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_reach_different_parameters(ranks: int, tmp_path: Path) -> None:
    mpirun(ranks, [Path(__file__).with_name("unused_ranks.py"), tmp_path / "done"], timeout=240).ok()
    assert (tmp_path / "done").read_text() == "all equal"
