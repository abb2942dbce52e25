"""Jobs that end for good, `fedhpc doctor` where they are submitted and where they run, and a relay in the queue."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, Clusters
from federation import SlurmFederation, replace

pytestmark = pytest.mark.slurm

SLURM = 'profile = "generic"\nmpi = "pmix"\npartition = "cpu"\ntime = "00:10:00"\nsignal_s = 60\n'


@pytest.fixture(scope="module")
def made(clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmFederation]:
    """A federation with a relay, whose sites never meet. The last site uses a spool."""
    made = SlurmFederation(clusters, tmp_path_factory.mktemp("endings") / "heart")
    for site, kind in zip(made.sites, ("inline", "chained", "inline", "detached"), strict=True):
        made.settings(site, f'[life]\nkind = "{kind}"\n\n[slurm]\n{SLURM}')
    made.spool(made.sites[3])
    with made.relay():
        yield made


def doctor(made: SlurmFederation, cluster: Cluster, site: str, *launcher: str) -> dict[str, Any]:
    """What `fedhpc doctor --json` says at the login node, or with `launcher` in a job."""
    files = [made.enrolled.site_file(site), "--federation", made.enrolled.federation, "--out", made.run]
    words = [*launcher, "sh", "-c", '"$@" || true', "sh", "python", "-m", "fedhpc", "doctor", *files, "--json"]
    out = cluster.run(*words, timeout=120)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_doctor_sees_at_each_place_what_would_end_a_job(idle: Clusters, made: SlurmFederation) -> None:
    """Alpha has a route, from its nodes too. Beta has none, which is a failure with https and none with a spool."""
    srun = ("srun", "--ntasks=1", "--mpi=pmix", "--time=5")
    asked = [(idle.alpha, 0, ()), (idle.alpha, 0, srun), (idle.beta, 2, srun), (idle.beta, 3, srun)]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda a: doctor(made, a[0], made.sites[a[1]], *a[2]), asked))
    checks = [{c["name"]: c for c in one["checks"]} for one in said]
    failed = [[name for name, check in some.items() if check["state"] == "fail"] for some in checks]
    assert [one["place"] for one in said] == ["login", "step", "step", "step"]
    assert failed[:2] == [[], []], said[:2]
    assert checks[0]["relay-connect"]["state"] == checks[1]["relay-connect"]["state"] == "ok"
    assert (failed[2], said[2]["exit_code"]) == (["relay-connect"], 69)
    assert "spool" in checks[2]["relay-connect"]["fix"]
    assert (failed[3], checks[3]["relay-connect"]["state"]) == ([], "skipped")


def test_slurm_takes_the_script_of_a_dry_run(idle: Clusters, made: SlurmFederation) -> None:
    for site in made.sites:
        files = [made.enrolled.site_file(site), "--federation", made.enrolled.federation, "--out", made.run]
        script = idle.alpha.run("python", "-m", "fedhpc", "submit", *files, "--dry-run")
        path = made.folder / f"{site}.sbatch"
        path.write_text(script)
        assert "#SBATCH --signal=B:USR1@60" in script
        idle.alpha.run("sbatch", "--test-only", path)
    assert not idle.alpha.run("squeue", "-h")


def test_a_broken_site_file_ends_the_whole_chain(idle: Clusters, made: SlurmFederation) -> None:
    """It was whole when two links were submitted. The first job refuses it, and takes the second out of the queue."""
    site = made.sites[1]
    file = made.enrolled.site_file(site)
    replace(file, SLURM, SLURM + 'extra = ["--hold"]\n')
    last = made.submit(site, "--links", "2")
    first = made.job(site, 0)
    replace(file, "[data]", "[date]")
    idle.alpha.run("scontrol", "release", first)
    idle.alpha.run("scontrol", "release", str(last["job"]))
    ended = idle.alpha.wait(first)
    assert (ended.state, ended.code, ended.fields["Restarts"]) == ("FAILED", 64, "0"), made.logs(site)
    assert "date" in made.log(site, first)
    made.until(lambda: not made.alive(site), "an empty queue", 30)
    assert idle.alpha.state(str(last["job"])) == "CANCELLED"


def test_a_run_directory_belongs_to_one_job(idle: Clusters, made: SlurmFederation) -> None:
    """The ledger is locked: a second job of the site ends with 74. A second one of the same name has nothing to do."""
    site, alpha = made.sites[0], idle.alpha
    job = str(made.submit(site)["job"])
    runs = made.enrolled.site_file(site).parent / "ledger" / "runs"
    made.until(lambda: any(locked(path) for path in runs.glob("*.lock")), "a run", 60)

    script = next((made.run / site / "jobs").glob("*.sbatch"))
    same = alpha.run("sbatch", "--parsable", script).strip()
    other = alpha.sbatch(made.script(site), "-o", made.folder / "other.out", "--requeue")
    refused, twin = alpha.wait(other), alpha.wait(same)
    assert (refused.state, refused.code, refused.fields["Restarts"]) == ("FAILED", 74, "0")
    assert "another run is using" in (made.folder / "other.out").read_text()
    assert (twin.state, twin.code) == ("COMPLETED", 0)
    assert f"job {job} already has the name" in made.log(site, same)
    assert alpha.state(job) == "RUNNING"
    alpha.cancel(job)
    assert alpha.wait(job).state == "CANCELLED"


def locked(path: Path) -> bool:
    """Whether a process holds the file."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_relay_may_be_a_job_that_comes_back(idle: Clusters, tmp_path: Path) -> None:
    """On a node that sites reach; told of its walltime it is requeued, and cancelled it ends."""
    other = SlurmFederation(idle, tmp_path / "heart")
    site, alpha = other.sites[0], idle.alpha
    node = alpha.addresses["a1"]
    replace(other.enrolled.relay, other.url.removeprefix("https://"), f"{node}:{other.enrolled.port}")
    other.settings(site, f'[slurm]\n{SLURM}extra = ["--nodelist=a1"]\n')
    job = str(other.submit(site, "--shape", "relay", "--relay", str(other.enrolled.relay))["job"])

    def answers() -> bool:
        return idle.dial(alpha.login, node, other.enrolled.port) == "open"

    other.until(answers, "a relay that answers", 60)
    alpha.cancel("--batch", "--signal=USR1", job)
    alpha.until_state(job, "PENDING")
    assert not answers()
    alpha.start_now(job)
    other.until(answers, "the relay again", 60)
    assert alpha.show(job)["Restarts"] == "1"
    alpha.cancel(job)
    assert alpha.wait(job).state == "CANCELLED"
    assert "cancelled: the ranks are told to stop" in other.log(site, job)
