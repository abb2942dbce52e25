"""The tutorials do what they say: every block is typed in, word for word, in an empty directory.

docs/quickstart-relay.md is tested in tests/relay, docs/tutorials/slurm.md on a real cluster in tests/slurm.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROOT
from pages import blocks, play

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
ELSEWHERE = ("slurm",)
RUN_ELSEWHERE = ("own_fsdp.py",)  # in tests/mpi/test_own_fsdp.py


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [p for p in TUTORIALS if p.stem not in ELSEWHERE], ids=lambda page: page.stem)
def test_the_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    found, left = play(page.read_text(), tmp_path, {}, timeout=400)
    assert not found, found
    assert left == [], "the page leaves processes running"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_no_block_is_left_out(page: Path) -> None:
    """Each fenced block is typed in, saved, what one before it prints, or a file that a test of its own runs."""
    lines = page.read_text().splitlines()
    included = [line.partition("} ")[2] for line in lines if line.startswith("```{literalinclude}")]
    assert set(included) <= set(RUN_ELSEWHERE)
    shown = sum(line.startswith("```text") for line in lines)
    taken = blocks(page.read_text())
    assert 2 * (len(taken) + shown + len(included)) == sum(line.startswith("```") for line in lines)
    assert sum(block.expected is not None for block in taken) == shown
