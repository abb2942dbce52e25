"""Four sites in batch jobs on two clusters that do not know each other give the model of one MPI job here."""

from __future__ import annotations

from pathlib import Path

import pytest
from clusters import Clusters
from federation import SlurmFederation

pytestmark = pytest.mark.slurm


def test_four_jobs_on_two_clusters_end_with_the_rehearsal_s_model(idle: Clusters, tmp_path: Path) -> None:
    """Beta's nodes may dial out here, since all four use https. The first site has a rank on each of two nodes."""
    made = SlurmFederation(idle, tmp_path / "heart")
    idle.open_beta()
    try:
        with made.relay():
            jobs = {}
            for number, site in enumerate(made.sites):
                size = ["--nodes=2", "--ntasks-per-node=1"] if number == 0 else ["--ntasks=1"]
                out = tmp_path / f"{site}.out"
                jobs[site] = made.where[site].sbatch(made.script(site), *size, "-o", out)
            for site, job in jobs.items():
                ended = made.where[site].wait(job, 200)
                assert (ended.state, ended.code) == ("COMPLETED", 0), (tmp_path / f"{site}.out").read_text()
    finally:
        idle.close_beta()
    assert {made.finished(site) for site in made.sites} == {made.rehearsal(**{made.sites[0]: 2})}
