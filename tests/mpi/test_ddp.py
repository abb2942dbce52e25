"""A site of several ranks trains as one rank would, and has one state on all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedhpc.mpi.launch import launcher_command, launcher_environment

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [2, 3])
def test_ddp_equals_one_rank(ranks: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("ddp_ranks.py")
    environment, _ = launcher_environment()
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = ":".join(p for p in (root, environment.get("PYTHONPATH", "")) if p)
    command = [*launcher_command(ranks), sys.executable, "-m", "mpi4py", str(script), str(tmp_path / "done")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "done").read_text() == "all equal"
