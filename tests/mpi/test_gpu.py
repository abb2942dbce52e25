"""Every backend on GPUs takes the steps that one rank takes on the CPU. Only where there are GPUs: `make test-gpu`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import mpirun

pytestmark = [pytest.mark.mpi, pytest.mark.gpu]


def test_backends_on_gpus(tmp_path: Path) -> None:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    gpus = sum(line.startswith("GPU ") for line in listed.splitlines())
    mpirun(gpus, [Path(__file__).with_name("gpu_ranks.py"), tmp_path / "done"], timeout=300).ok()
    assert (tmp_path / "done").read_text() == "all close"
