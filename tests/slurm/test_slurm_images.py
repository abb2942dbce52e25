"""Jobs in an image: a stand-in for Apptainer, whose root has only what was bound, in the order of the binds."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from clusters import Clusters
from federation import SlurmFederation
from rooted_apptainer import write_apptainer

from fedhpc.agreement.images import SHA256_VARIABLE
from fedhpc.demo.heart import federation as heart

pytestmark = pytest.mark.slurm

SLURM = """[slurm]
profile = "generic"
mpi = "pmix"
time = "00:30:00"
setup = ["export PATH={bin}:$PATH"]

[slurm.container]
image = "{image}"
python = "{python}"
"""


def test_two_lives_in_an_image_give_the_same_model(
    idle: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four sites run in the one image that federation.toml lists; the last one through a spool.

    The first is told of its walltime before the last one comes, without which no round has a sum: told later, it might
    be left out of one. Its links are submitted from outside the image.
    """
    folder = tmp_path / "heart"
    image = tmp_path / "cpu.sif"
    image.write_bytes(b"an image")
    sha256 = hashlib.sha256(b"an image").hexdigest()
    command = write_apptainer(tmp_path / "bin" / "apptainer", tmp_path / "heart.calls", shown=[idle.folder])
    listed = f'\n[container]\ncpu = "sha256:{sha256}"\n'
    made = SlurmFederation(idle, folder, rounds=4, train=heart.TRAIN + listed)
    chained = made.sites[0]
    for site in made.sites:
        kind = "chained" if site == chained else "inline"
        slurm = SLURM.format(bin=command.parent, image=image, python=sys.executable)
        made.settings(site, f'[life]\nkind = "{kind}"\nwait_s = 600\n\n{slurm}')
    made.spool(made.sites[-1])
    idle.open_beta()
    alpha = idle.alpha
    with ExitStack() as running:
        running.callback(idle.close_beta)
        running.enter_context(made.relay())
        running.enter_context(made.carrier(made.sites[-1]))
        jobs = {site: str(made.submit(site)["job"]) for site in made.sites[:-1]}
        last = f"waiting: site {made.sites[-1]}"
        made.until(lambda: last in made.log(chained, jobs[chained]), "ranks that wait for the last site")
        alpha.cancel("--batch", "--signal=USR1", jobs[chained])
        assert alpha.wait(jobs[chained], 60).code == 0, made.logs()
        made.submit(made.sites[-1])
        made.wait()

    first, second, *_ = made.listed(chained)
    assert (first["queue"], second["queue"]) == ("COMPLETED", "COMPLETED")
    assert (first["container"], second["container"]) == (sha256, sha256)
    for one in (first, second):
        assert f"container {image}, sha256 {sha256}" in made.log(chained, one["job"])
    assert "the next job goes on" in made.log(chained, first["job"])
    assert "cpu of federation.toml" in (made.run / chained / "log.jsonl").read_text()
    calls = (tmp_path / "heart.calls").read_text().splitlines()
    assert len(calls) == 2 * (len(made.sites) + 1), "checks and a rank of each job"

    # The same federation.toml in one job on this machine, which is believed to be in the image.
    monkeypatch.setenv(SHA256_VARIABLE, sha256)
    assert {made.finished(site) for site in made.sites} == {made.rehearsal()}


def test_an_image_that_changed_in_the_queue_is_not_run(idle: Clusters, tmp_path: Path) -> None:
    made = SlurmFederation(idle, tmp_path / "heart")
    site = made.sites[0]
    image = tmp_path / "cpu.sif"
    image.write_bytes(b"an image")
    made.settings(site, SLURM.format(bin=tmp_path, image=image, python=sys.executable))
    alpha = idle.alpha
    alpha.run("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    try:
        job = str(made.submit(site)["job"])
        image.write_bytes(b"another image")
    finally:
        alpha.run("scontrol", "update", "PartitionName=gpu", "State=UP")
    ended = alpha.wait(job, 60)
    assert ended.code == 77, made.logs()
    assert "is not the one that was submitted" in made.log(site, job)
    assert made.rounds_done(site) == 0
