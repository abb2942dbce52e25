"""A site whose ranks hold parts of the model begins and trains as one rank would, and repeats to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import mpirun

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [2, 3])
def test_fsdp_equals_one_rank(ranks: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("fsdp_ranks.py")
    mpirun(ranks, [script, tmp_path / "done"], timeout=240, warm=True).ok()
    assert (tmp_path / "done").read_text() == "all equal"
