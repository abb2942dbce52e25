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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [p for p in TUTORIALS if p.stem not in ELSEWHERE], ids=lambda page: page.stem)
def test_the_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    found, left = play(page.read_text(), tmp_path, {}, timeout=400)
    assert not found, found
    assert left == [], "the page leaves processes running"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_no_block_is_left_out(page: Path) -> None:
    """Each fenced block is typed in, saved, or what one before it prints."""
    lines = page.read_text().splitlines()
    shown = sum(line.startswith("```text") for line in lines)
    taken = blocks(page.read_text())
    assert 2 * (len(taken) + shown) == sum(line.startswith("```") for line in lines)
    assert sum(block.expected is not None for block in taken) == shown
