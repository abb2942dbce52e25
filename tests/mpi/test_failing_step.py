"""A step of training that fails on one rank, or on all, ends the job at once, with the words of a rank that failed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import mpirun

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(("backend", "who"), [("ddp", "1"), ("ddp", "all"), ("fsdp", "0"), ("fsdp", "all")])
def test_the_rank_that_failed_is_heard(backend: str, who: str) -> None:
    done = mpirun(2, [Path(__file__).with_name("failing_step_ranks.py"), backend, who], timeout=30, warm=True)
    assert done.code == 65, done.text
    told = re.findall(r"error: site a: loss\(\) of task fake failed: ValueError: the fault of rank (\d)", done.err)
    assert len(told) == 1, done.text
    assert who in ("all", told[0]), done.text
    assert "Connection closed by peer" not in done.text
