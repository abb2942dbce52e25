"""Every benchmark runs, once and small, and no figure of any is lost; nobody judges the times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from harness import ROOT, call


@pytest.mark.mpi
@pytest.mark.timeout(600)
def test_every_benchmark_leaves_a_whole_record(tmp_path: Path) -> None:
    done = call([sys.executable, "-m", "benchmarks.smoke", tmp_path], timeout=540, cwd=ROOT).ok()
    assert "10 runs checked, 0 errors, 0 files without records" in done.out
    records = [json.loads(line) for line in (tmp_path / "smoke.jsonl").read_text().splitlines()]
    assert [record["repeats"] for record in records] == [1] * 10
    page = (tmp_path / "benchmarks.md").read_text()
    assert all(f"| {record['work']} | `{record['command'].removeprefix('fedhpc ')}` |" in page for record in records)


def test_a_benchmark_that_fails_ends_the_smoke_run(tmp_path: Path) -> None:
    words = "import pathlib, sys; from benchmarks import smoke; smoke.COMMANDS = ('sum --ranks 1',)"
    ran = call([sys.executable, "-c", f"{words}; sys.exit(smoke.main(pathlib.Path({str(tmp_path)!r})))"], cwd=ROOT)
    assert ran.code == 1
    assert "error: fedhpc bench sum --ranks 1: exit code 64" in ran.err
