"""Checks of Slurm, against commands that answer as Slurm's do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from doctor_fakes import CONFIG, PARTITIONS, commands, complains, fails, passes, says, skips, slurm, subject, warns

from fedhpc.doctor.commands import call
from fedhpc.doctor.slurm_facts import mpi_types, seconds_of
from fedhpc.doctor.subject import open_subject

ASKED = 'partition = "gpu"\naccount = "abc"\ntime = "10:00:00"\nnodes = 2'
IN_JOB = {"SLURM_JOB_ID": "7"}


def test_all_is_well(tmp_path: Path) -> None:
    site = subject(tmp_path, slurm(), slurm=ASKED)
    assert site.place == "login"
    passes("slurm-tools", site, "slurm 23.11.4", "cluster alpha")
    passes("slurm-partition", site, "gpu is up, 8 nodes")
    passes("slurm-limits", site, "10:00:00 of 1-00:00:00, 2 of 4 nodes")
    passes("slurm-accepts", site, "Job 8 to start")
    passes("slurm-requeue", site)
    passes("slurm-signal", site, "told 300 s before the end", "KillWait 30 s")
    passes("profile", site, "generic")


def test_without_slurm_nothing_is_checked(tmp_path: Path) -> None:
    site = subject(tmp_path, {}, slurm=ASKED)
    assert site.place == "laptop"
    for name in ("slurm-tools", "slurm-partition", "slurm-limits", "slurm-accepts", "slurm-requeue"):
        skips(name, site, "no Slurm on this machine")


def test_nothing_asked_is_not_judged(tmp_path: Path) -> None:
    site = subject(tmp_path, slurm())
    skips("profile", site, "no [slurm]")
    skips("slurm-accepts", site, "no [slurm]")


def test_a_command_is_missing(tmp_path: Path) -> None:
    scripts = slurm()
    del scripts["squeue"]
    fails("slurm-tools", subject(tmp_path, scripts, slurm=ASKED), "squeue not found", code=64)


def test_the_controller_is_away(tmp_path: Path) -> None:
    scripts = slurm() | {"scontrol": complains("scontrol: error: Unable to contact slurm controller")}
    site = subject(tmp_path, scripts, slurm=ASKED, environment={"SLURM_CONF": "/x/slurm.conf"})
    fails("slurm-tools", site, "Unable to contact", "/x/slurm.conf", code=64)
    skips("slurm-partition", site, "gives no answer")


def test_a_controller_that_is_away_does_not_end_a_running_job(tmp_path: Path) -> None:
    scripts = slurm() | {"scontrol": complains("scontrol: error: Unable to contact slurm controller")}
    warns("slurm-tools", subject(tmp_path, scripts, slurm=ASKED, environment=IN_JOB), "gives no answer")


def test_commands_newer_than_the_controller(tmp_path: Path) -> None:
    warns("slurm-tools", subject(tmp_path, slurm(version="slurm 24.05.1"), slurm=ASKED), "newer than its controller")
    passes("slurm-tools", subject(tmp_path / "2", slurm(version="slurm 22.05.8"), slurm=ASKED))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ('partition = "gpus"', ("no partition 'gpus'", "gpu, cpu, old")),
        ('partition = "gpu,gpus"', ("no partition 'gpus'",)),
        ('partition = "old"', ("old is DOWN", "gpu, cpu")),
        ('partition = "gpu"\naccount = "xyz"', ("for accounts abc,def, not xyz", "[slurm] account")),
        ('partition = "cpu"\nqos = "long"', ("refuses qos long",)),
    ],
)
def test_a_partition_that_takes_no_such_job(tmp_path: Path, asked: str, words: tuple[str, ...]) -> None:
    fails("slurm-partition", subject(tmp_path, slurm(), slurm=asked), *words, code=64)


def test_one_of_several_partitions_is_enough(tmp_path: Path) -> None:
    passes("slurm-partition", subject(tmp_path, slurm(), slurm='partition = "old,cpu"'), "cpu is up")


def test_no_partition_asked_for_takes_the_default_one(tmp_path: Path) -> None:
    passes("slurm-partition", subject(tmp_path, slurm(), slurm='account = "abc"'), "gpu is up")
    none = slurm(partitions=PARTITIONS.replace("Default=YES", "Default=NO"))
    warns("slurm-partition", subject(tmp_path / "2", none, slurm='account = "abc"'), "no default one")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ('partition = "gpu"\ntime = "1-00:00:01"', "gpu allows 1-00:00:00"),
        ('partition = "old"\ntime = "00:31:00"', "old allows 30:00"),
        ('partition = "gpu"\nnodes = 5', "at most 4"),
        ('partition = "cpu"\nnodes = 3', "only 2"),
    ],
)
def test_more_than_the_partition_allows(tmp_path: Path, asked: str, words: str) -> None:
    fails("slurm-limits", subject(tmp_path, slurm(), slurm=asked), words, code=64)


def test_limits_of_a_partition_that_is_down_do_not_count(tmp_path: Path) -> None:
    asked = 'partition = "old,gpu"\ntime = "00:20:00"\nnodes = 2'
    passes("slurm-limits", subject(tmp_path, slurm(), slurm=asked), "2 of 4 nodes")
    roomy = PARTITIONS.replace("MaxTime=30:00 State=DOWN", "MaxTime=UNLIMITED State=DOWN")
    asked = 'partition = "old,gpu"\ntime = "2-00:00:00"'
    fails("slurm-limits", subject(tmp_path / "2", slurm(partitions=roomy), slurm=asked), "gpu allows", code=64)


def test_an_endless_partition_allows_a_month(tmp_path: Path) -> None:
    passes("slurm-limits", subject(tmp_path, slurm(), slurm='partition = "cpu"\ntime = "30-00:00:00"'))


def test_sbatch_refuses(tmp_path: Path) -> None:
    words = "Invalid account or account/partition combination specified"
    scripts = slurm(sbatch=complains(f"sbatch: error: Batch job submission failed: {words}"))
    fails("slurm-accepts", subject(tmp_path, scripts, slurm=ASKED), words, "--account=abc", code=64)


def test_sbatch_is_asked_with_the_options_of_the_job(tmp_path: Path) -> None:
    asked = ASKED + '\nextra = ["--exclusive"]\ngpus_per_node = 4'
    site = subject(tmp_path, slurm(sbatch='echo "$*"'), slurm=asked)
    options = "--account=abc --partition=gpu --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --time=10:00:00"
    passes("slurm-accepts", site, f"--test-only {options} --gpus-per-node=4 --exclusive --wrap true")


def test_a_job_that_may_not_be_requeued(tmp_path: Path) -> None:
    site = subject(tmp_path, slurm(job="JobId=7 JobName=x Requeue=0 Restarts=0\n"), slurm=ASKED, environment=IN_JOB)
    warns("slurm-requeue", site, "job 7 may not be requeued")
    passes("slurm-requeue", subject(tmp_path / "2", slurm(), slurm=ASKED, environment=IN_JOB))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("JobRequeue              = 1", "JobRequeue = 0", "JobRequeue = 0"),
        ("RequeueExit             = (null)", "RequeueExit = 99,75", "end with 75"),
    ],
)
def test_a_cluster_with_rules_for_requeueing(tmp_path: Path, old: str, new: str, words: str) -> None:
    warns("slurm-requeue", subject(tmp_path, slurm(config=CONFIG.replace(old, new)), slurm=ASKED), words)


@pytest.mark.parametrize(
    ("asked", "life", "words"),
    [
        ("signal_s = 59", "", "signal_s = 59"),
        ("signal_s = 100", "margin_s = 200.0", "should have left"),
    ],
)
def test_a_signal_that_comes_too_late(tmp_path: Path, asked: str, life: str, words: str) -> None:
    warns("slurm-signal", subject(tmp_path, slurm(), slurm=asked, life=life), words)


def test_a_signal_that_comes_at_once(tmp_path: Path) -> None:
    warns("slurm-signal", subject(tmp_path, {}, slurm='time = "00:05:30"\nsignal_s = 300'), "as it starts")
    passes("slurm-signal", subject(tmp_path / "2", {}, slurm='time = "00:06:30"\nsignal_s = 300'))


def test_preemption_without_a_signal(tmp_path: Path) -> None:
    preempts = CONFIG.replace("preempt/none", "preempt/qos")
    site = subject(tmp_path, slurm(config=preempts), slurm='partition = "cpu"')
    warns("slurm-signal", site, "preempted without --signal, with GraceTime 120 s")
    told = preempts.replace("SlurmctldParameters     = (null)", "SlurmctldParameters = preempt_send_user_signal")
    passes("slurm-signal", subject(tmp_path / "2", slurm(config=told), slurm='partition = "cpu"'))


def test_a_short_killwait(tmp_path: Path) -> None:
    warns("slurm-signal", subject(tmp_path, slurm(config=CONFIG.replace("30 sec", "2 sec"))), "killed at once")


def test_a_cluster_whose_nodes_reach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = tmp_path / "jobs" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "closed.toml").write_text(
        '[profile]\ntitle = "closed"\noutbound = "no"\n[partitions.gpu]\ntime = "01:00:00"\n'
    )
    monkeypatch.setattr("fedhpc.slurm.profile.jobs_folder", lambda: tmp_path / "jobs")
    relayed = ("[site]", '[exchange]\nkind = "https"\nurl = "https://r:1"\ncertificate = "c"\nkey = "k"\n\n[site]')
    asked = 'profile = "closed"\npartition = "gpu"'
    warns("profile", subject(tmp_path / "1", {}, slurm=asked, site=[relayed]), "not known to reach", "spool")
    passes("profile", subject(tmp_path / "2", {}, slurm=asked), "closed")
    asked = 'profile = "closed"\npartition = "gpus"'
    fails("profile", subject(tmp_path / "3", {}, slurm=asked), "'gpus' is not known on closed", code=64)


# --- reading


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:30:15", 9015),
        ("2-3", 2 * 86400 + 3 * 3600),
        ("2-3:04", 2 * 86400 + 3 * 3600 + 240),
        ("2-03:04:05", 2 * 86400 + 3 * 3600 + 245),
        ("UNLIMITED", float("inf")),
        ("soon", None),
    ],
)
def test_times_as_slurm_writes_them(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("MPI plugin types are...\n\tnone\n\tpmix\nspecific pmix plugin versions available: pmix_v4", None),
        ("srun: MPI types are...\nsrun: none\nsrun: pmix\nsrun: pmix_v4\n", None),
        ("srun: MPI types are...\nsrun: cray_shasta\nsrun: none\n", ["cray_shasta", "none"]),
    ],
)
def test_forms_of_the_list_of_mpi_types(text: str, types: list[str] | None) -> None:
    assert mpi_types(text) == (types or ["none", "pmix", "pmix_v4"])


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    environment = commands(tmp_path, {"slow": f"/bin/sleep 60 & echo $! > {tmp_path}/pid; wait"})
    assert call(["slow"], environment, 0.5).code is None
    child = Path("/proc") / (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 30
    while (child / "cwd").exists():  # the kernel takes its time on a busy machine
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    answer = call(["sbatch"], commands(tmp_path, {}), 1.0)
    assert (answer.code, answer.words) == (127, "sbatch: not found")


def test_where_this_runs(tmp_path: Path) -> None:
    environment = commands(tmp_path, slurm())
    assert open_subject(None, environment).place == "login"
    assert open_subject(None, environment | IN_JOB | {"SLURM_PROCID": "0"}).place == "job"
    assert open_subject(None, environment | IN_JOB | {"SLURM_STEP_ID": "0"}).place == "step"
    assert open_subject(None, commands(tmp_path / "2", {"echo": says("")})).place == "laptop"
