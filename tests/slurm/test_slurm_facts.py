"""What the batch scripts in jobs/ rely on, asked of a real Slurm. README.md has the answers in a table.

The jobs of this file stay in the queue beside each other; none of them is waited for before it is needed.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Cluster, Clusters, until

pytestmark = pytest.mark.slurm

BATCH = f"""#!/bin/bash
#SBATCH --nodes=2 --ntasks=2 --requeue --open-mode=append
echo "start ${{SLURM_RESTART_COUNT-unset}}"
trap 'echo batch USR1; kill -USR2 $child' USR1
trap 'echo batch TERM' TERM
srun {sys.executable} -IS {Path(__file__).with_name("signalled.py")} SECONDS SIGNAL &
child=$!
while :; do wait $child; code=$?; kill -0 $child 2>/dev/null || break; done
echo "step $code"
AFTER
exit $code
"""


@pytest.fixture(scope="module")
def cluster(clusters: Clusters) -> Iterator[Cluster]:
    yield clusters.beta
    clusters.beta.clear()


class Job:
    """A batch script with one step of two ranks on two nodes, and what it has written."""

    def __init__(
        self, cluster: Cluster, out: Path, *args: str, seconds: int = 60, ends: str = "SIGUSR2", after: str = ""
    ) -> None:
        self.cluster, self._out = cluster, out
        script = BATCH.replace("SECONDS", str(seconds)).replace("SIGNAL", ends).replace("AFTER", after)
        self.id = cluster.sbatch(script, "-o", out, *args)

    def lines(self) -> list[str]:
        return self._out.read_text().splitlines() if self._out.exists() else []

    def until_said(self, *words: str) -> None:
        until(lambda: set(words) <= set(self.lines()), f"{words}", 60, lambda: f"{self.lines()}\n{self.cluster.logs()}")

    def until_ready(self) -> None:
        self.until_said("rank 0 ready", "rank 1 ready")


@pytest.fixture(scope="module", autouse=True)
def warned(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that Slurm is to warn; it takes half a minute to do so, in which the other tests run."""
    return Job(cluster, tmp_path_factory.mktemp("warned") / "out", "--signal=B:USR1@30", "--time=1")


def test_a_signal_to_srun_reaches_every_rank(cluster: Cluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path / "out")
    job.until_ready()
    cluster.cancel("--batch", "--signal=USR1", job.id)
    ended = cluster.wait(job.id)
    assert {"batch USR1", "rank 0 SIGUSR2", "rank 1 SIGUSR2", "step 75"} <= set(job.lines())
    assert (ended.state, ended.code) == ("FAILED", 75)


def test_scancel_with_a_signal_reaches_the_steps_and_not_the_script(cluster: Cluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path / "out")
    job.until_ready()
    cluster.cancel("--signal=TERM", job.id)
    job.until_said("rank 0 SIGTERM", "rank 1 SIGTERM")
    cluster.cancel("--signal=USR2", f"{job.id}.0")
    assert cluster.wait(job.id).code == 75
    assert not [line for line in job.lines() if line.startswith("batch")]


def test_scancel_sends_term_to_steps_and_script_and_waits_before_it_kills(cluster: Cluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path / "out")
    job.until_ready()
    cluster.cancel(job.id)
    ended = cluster.wait(job.id)
    assert {"batch TERM", "rank 0 SIGTERM", "rank 1 SIGTERM"} <= set(job.lines())
    assert (ended.state, ended.signal) == ("CANCELLED", 9), "the ranks did not end, so KillWait ended in SIGKILL"


def test_a_cancelled_job_that_requeues_itself_is_back(cluster: Cluster, tmp_path: Path) -> None:
    after = '[ -n "$SLURM_RESTART_COUNT" ] || { scontrol requeue $SLURM_JOB_ID; echo requeue $?; }'
    job = Job(cluster, tmp_path / "out", ends="SIGTERM", after=after)
    job.until_ready()
    cluster.cancel(job.id)
    job.until_said("batch TERM", "requeue 0")
    until(lambda: cluster.state(job.id) == "PENDING", "its second life", 60, lambda: str(cluster.show(job.id)))
    cluster.cancel(job.id)
    assert cluster.wait(job.id).state == "CANCELLED", "a pending job is cancelled for good"


def test_requeue_counts_and_kills_the_script_that_asked(cluster: Cluster, tmp_path: Path) -> None:
    begun = datetime.datetime.now()
    after = '[ -n "$SLURM_RESTART_COUNT" ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }'
    job = Job(cluster, tmp_path / "out", seconds=1, after=after)
    later = cluster.sbatch("#!/bin/bash\n", f"--dependency=afterany:{job.id}", "-o", "/dev/null")
    until(lambda: cluster.show(job.id)["Restarts"] == "1", "the requeue")
    fields = cluster.until_state(job.id, "PENDING")
    eligible = datetime.datetime.fromisoformat(fields["EligibleTime"])
    assert (eligible - begun).total_seconds() > 115, "Slurm keeps a requeued job back for two minutes"
    assert (eligible - datetime.datetime.now()).total_seconds() < 125
    assert "batch TERM" in job.lines(), "the script that asked gets SIGTERM itself"
    assert cluster.state(later) == "PENDING", "a requeued job has not ended: what depends on it goes on waiting"
    cluster.start_now(job.id)
    ended = cluster.wait(job.id)
    assert (ended.state, ended.code, ended.fields["Restarts"]) == ("COMPLETED", 0, "1"), cluster.logs()
    assert [line for line in job.lines() if line.startswith("start")] == ["start unset", "start 1"]
    assert cluster.wait(later).state == "COMPLETED"


@pytest.mark.parametrize("word", ["cancelled", "failed", "forgotten"])
def test_afterany_of_a_job_that_ended_badly(cluster: Cluster, tmp_path: Path, word: str) -> None:
    if word == "forgotten":
        first = "999999"
    else:
        first = cluster.sbatch(
            "#!/bin/bash\nexit 3\n", "--hold" if word == "cancelled" else "--time=1", "-o", "/dev/null"
        )
    if word == "cancelled":
        cluster.cancel(first)
    second = cluster.sbatch("#!/bin/bash\n", f"--dependency=afterany:{first}", "-o", "/dev/null")
    assert cluster.wait(second).state == "COMPLETED"


def test_when_a_job_ends_according_to_slurm(cluster: Cluster, tmp_path: Path) -> None:
    script = """#!/bin/bash
echo "${SLURM_JOB_END_TIME-unset}"
SLURM_TIME_FORMAT=%s squeue -h -j $SLURM_JOB_ID -o %e
TZ=Asia/Tokyo squeue -h -j $SLURM_JOB_ID -o %e
"""
    before = time.time()
    job = cluster.sbatch(script, "--time=7", "-o", tmp_path / "out")
    ended = cluster.wait(job)
    variable, seconds, local = (tmp_path / "out").read_text().split()
    assert variable == "unset", "Slurm 22.05 does not set SLURM_JOB_END_TIME"
    assert before + 410 < int(seconds) < time.time() + 430
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    assert datetime.datetime.fromisoformat(local).replace(tzinfo=tokyo).timestamp() == int(seconds), "a local time"
    assert ended.fields["TimeLimit"] == "00:07:00"


def test_a_name_finds_waiting_running_and_ended_jobs(cluster: Cluster) -> None:
    names = {"fedhpc-x-1": "--hold", "fedhpc-x-2": "--time=1"}
    jobs = {name: cluster.sbatch("#!/bin/bash\n", "-J", name, arg, "-o", "/dev/null") for name, arg in names.items()}
    cluster.wait(jobs["fedhpc-x-2"])
    for name, job in jobs.items():
        assert cluster.run("squeue", "-h", "-t", "all", "-n", name, "-o", "%i").split() == [job]
    assert cluster.run("squeue", "-h", "-n", "fedhpc-x-2", "-o", "%i") == "", "without -t all, only those that live"
    refused = subprocess.run(cluster.command("sacct"), env=cluster.env, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "accounting storage is disabled" in refused.stderr) == (1, True)


def test_the_warning_reaches_the_script_alone(cluster: Cluster, warned: Job) -> None:
    warned.until_ready()
    ended = cluster.wait(warned.id, 90)
    assert [line for line in warned.lines() if line.startswith("batch")] == ["batch USR1"]
    assert {"rank 0 SIGUSR2", "rank 1 SIGUSR2", "step 75"} <= set(warned.lines())
    assert not [line for line in warned.lines() if line.endswith("SIGUSR1")]
    assert (ended.state, ended.code) == ("FAILED", 75), "the script's own code, before the time limit"
