"""The other shapes of a job on a real cluster: all sites in one job, an array of them, a site with its own carrier."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from clusters import Clusters
from federation import SlurmFederation
from harness import edit, write_toml

pytestmark = pytest.mark.slurm

SLURM = """
[slurm]
profile = "generic"
mpi = "pmix"
partition = "gpu"
time = "00:30:00"
nodes = {nodes}
tasks_per_node = {tasks}

[slurm.exchange]
partition = "cpu"
"""


def in_one_job(made: SlurmFederation, shape: str) -> Path:
    """A folder with a file of every site, all in one job: one rank each. The first one's says how to submit it.

    Each rehearsal has ledgers of its own: an institution's lets one run of a federation sum at a time.
    """
    folder = made.folder / f"sites-{shape}"
    folder.mkdir()
    for site in made.sites:
        section = {"name": site, "ranks": 1, "key": str(made.enrolled.site_file(site).with_name("sign.key"))}
        ledger = {"path": str(folder / "ledger" / site)}
        write_toml(
            folder / f"{site}.toml", {"site": section, "data": {"path": str(made.stores[site])}, "ledger": ledger}
        )
    with (folder / f"{made.sites[0]}.toml").open("a") as file:
        file.write(SLURM.format(nodes=2, tasks=2))
    return folder


def final(run: Path, site: str) -> str:
    """What a site ended with."""
    return str(json.loads((run / site / "finished.json").read_text())["model_sha256"])


def test_all_sites_in_one_job_and_several_federations_in_an_array(idle: Clusters, tmp_path: Path) -> None:
    """Two ranks on each of two nodes: by one program, by a program for each site, and for another rate."""
    made = SlurmFederation(idle, tmp_path / "heart")
    alpha = idle.alpha
    other = made.folder / "other.toml"
    other.write_text(made.enrolled.federation.read_text())
    edit(other, "\nlr = 0.5", "\nlr = 0.4")

    def submit(shape: str, out: Path, *federations: Path) -> str:
        folder = in_one_job(made, shape)
        first = folder / f"{made.sites[0]}.toml"
        options = [word for path in federations for word in ("--federation", path)]
        words = ["python", "-m", "fedhpc", "submit", first, "--shape", shape, "--sites", folder, "--out", out, *options]
        said = json.loads(alpha.run(*words, "--json", timeout=120).splitlines()[-1])
        return str(said["job"])

    agreed = made.enrolled.federation
    runs = {shape: made.folder / f"run-{shape}" for shape in ("rehearsal", "multiprog", "array")}
    jobs = {shape: submit(shape, runs[shape], agreed) for shape in ("rehearsal", "multiprog")}
    array = submit("array", runs["array"], agreed, other)
    model = made.rehearsal()

    def logs(shape: str) -> str:
        return "\n".join(path.read_text() for path in sorted((runs[shape] / made.sites[0] / "jobs").glob("*.out")))

    for shape, job in jobs.items():
        assert alpha.wait(job, 240).code == 0, logs(shape)
        assert {final(runs[shape], site) for site in made.sites} == {model}
    for task in ("0", "1"):
        assert alpha.wait(f"{array}_{task}", 240).code == 0, logs("array")
    found = [{final(runs["array"] / task, site) for site in made.sites} for task in ("0", "1")]
    assert found[0] == {model}
    assert len(found[1]) == 1
    assert found[1] != {model}


def test_a_heterogeneous_job_brings_its_carrier(idle: Clusters, tmp_path: Path) -> None:
    """The ranks see a spool; the other part of their job, on a node with a route, carries it."""
    made = SlurmFederation(idle, tmp_path / "heart")
    carried, *others = made.sites
    made.where = dict.fromkeys(made.sites, idle.alpha)
    made.spool(carried)
    with ExitStack() as running:
        running.enter_context(made.relay())
        for site in made.sites:
            made.settings(site, '[life]\nkind = "inline"\nwait_s = 600\n' + SLURM.format(nodes=1, tasks=1))
        job = str(made.submit(carried, "--shape", "hetjob")["job"])
        for site in others:
            made.submit(site)
        model = made.rehearsal()
        made.wait()
    assert {made.finished(site) for site in made.sites} == {model}
    shown = idle.alpha.run("scontrol", "show", "job", "-o", job).splitlines()
    assert [one.split("Partition=")[1].split()[0] for one in shown] == ["gpu", "cpu"]
    assert "carrying" in made.log(carried, job)
