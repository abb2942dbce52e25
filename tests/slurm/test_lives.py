"""Four sites that live in their queues in different ways: what `fedhpc submit` makes of them, to the same last bit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from clusters import Clusters
from federation import SlurmFederation

pytestmark = pytest.mark.slurm

SLURM = """[slurm]
profile = "generic"
mpi = "pmix"
partition = "gpu"
time = "00:30:00"
preflight = {preflight}
gpus_per_node = {gpus}

[slurm.exchange]
partition = "cpu"
"""


def lives(made: SlurmFederation, *kinds: str) -> None:
    """Give each site a life. `detached` asks for a GPU, which no check before the start would find here."""
    for site, kind in zip(made.sites, kinds, strict=True):
        detached = kind == "detached"
        slurm = SLURM.format(preflight=str(not detached).lower(), gpus=int(detached))
        made.settings(site, f'[life]\nkind = "{kind}"\n\n{slurm}')


def test_three_lives_two_exchanges_one_model(idle: Clusters, tmp_path: Path) -> None:
    """Alpha: inline and chained over https. Beta, whose nodes reach nobody: inline and detached over a spool."""
    made = SlurmFederation(idle, tmp_path / "heart")
    lives(made, "inline", "chained", "inline", "detached")
    made.spool(*made.sites[2:])
    with ExitStack() as running:
        running.enter_context(made.relay())
        for site in made.sites[2:]:
            running.enter_context(made.carrier(site))
        jobs = {site: str(made.submit(site)["job"]) for site in made.sites}
        made.wait()
    print(jobs, made.logs())
    assert {made.finished(site) for site in made.sites} == {made.rehearsal()}
