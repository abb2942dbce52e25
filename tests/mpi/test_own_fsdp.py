"""The example of `fed.sync` over a model that FSDP2 has dealt out: the sites end with one model."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROOT, Site, mpirun, write_federation

SCRIPT = ROOT / "docs" / "tutorials" / "own_fsdp.py"


@pytest.mark.mpi
def test_a_dealt_out_model_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    """Sites of two ranks and of one; 1.5 MB, so that two ranks have a part of the vector each."""
    assert len(SCRIPT.read_text().splitlines()) < 40
    sites = {"aa": Site(rows=40, ranks=2), "bb": Site(rows=24), "cc": Site(rows=32, ranks=2)}
    write_federation(tmp_path, sites, strategy={"name": "diloco"})
    done = mpirun(5, [SCRIPT], timeout=120, cwd=tmp_path, warm=True).ok()
    found = dict(line.split() for line in done.out.splitlines() if line[:3] in ("aa ", "bb ", "cc "))
    assert found.keys() == sites.keys(), done.text
    assert len(set(found.values())) == 1, "the sites hold different models"
