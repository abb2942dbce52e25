"""The tutorials do what they say: every block is typed in, word for word, in an empty directory.

docs/quickstart-relay.md is tested in tests/relay, docs/tutorials/slurm.md on a real cluster in tests/slurm.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROOT
from pages import play

TUTORIALS = ROOT / "docs" / "tutorials"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["own-data", "own-script"])
def test_the_page_does_what_it_says(name: str, tmp_path: Path) -> None:
    found, left = play((TUTORIALS / f"{name}.md").read_text(), tmp_path, {}, timeout=240)
    assert not found, found
    assert left == [], "the page leaves processes running"
