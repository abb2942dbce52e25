"""docs/tutorials/slurm.md does what it says, on a login node of a real cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pages
import pytest
from clusters import Cluster
from harness import PATIENCE, ROOT

pytestmark = pytest.mark.slurm


def test_the_page_does_what_it_says(alpha: Cluster, tmp_path: Path) -> None:
    steps = pages.blocks((ROOT / "docs" / "tutorials" / "slurm.md").read_text())
    done = subprocess.run(
        alpha.command("bash", "-c", pages.script(steps), cwd=tmp_path),
        env=alpha.env | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
    )
    found = pages.wrong(steps, done.returncode, done.stdout)
    assert not found, found
