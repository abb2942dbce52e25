"""docs/tutorials/slurm.md does what it says, on a login node of a real cluster."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest
from clusters import Cluster
from harness import ROOT, call

pytestmark = pytest.mark.slurm


@pytest.mark.timeout(900)
def test_the_page_does_what_it_says(alpha: Cluster, tmp_path: Path) -> None:
    steps = pages.blocks((ROOT / "docs" / "tutorials" / "slurm.md").read_text())
    command = alpha.command("bash", "-c", pages.script(steps), cwd=tmp_path)
    done = call(command, env=alpha.env | {"COLUMNS": "80"}, timeout=400)
    found = pages.wrong(steps, done.code, done.out)
    assert not found, found
