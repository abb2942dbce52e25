"""Submission against stand-ins: never two jobs of one name, whatever sbatch says or does not say."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from harness import start, until
from slurm_fakes import Fakes, submitter_of, write_site

from fedhpc.errors import ConfigError, DataError, PeersError, PolicyError, StorageError
from fedhpc.slurm.job_chain import Chains
from fedhpc.slurm.queue import Queue, clean
from fedhpc.slurm.records import Records, job_name


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes.make(tmp_path / "bin")


def chains(tmp_path: Path, fakes: Fakes, life: str = "inline", submit_s: float = 60.0, **slurm: object) -> Chains:
    site = write_site(tmp_path / "fed", life=life, slurm=slurm)
    (tmp_path / "fed" / "run" / "aa" / "jobs").mkdir(parents=True, exist_ok=True)
    return Chains(submitter_of(site, fakes, submit_s=submit_s))


def test_one_job(tmp_path: Path, fakes: Fakes) -> None:
    (record,) = chains(tmp_path, fakes).begin(1)
    assert record.job == "100"
    assert record.state == "submitted"
    assert Records(tmp_path / "fed" / "run" / "aa" / "jobs").all() == [record]
    ((flag, script),) = fakes.calls("sbatch")
    assert flag == "--parsable"
    assert Path(script).name == f"{record.name}.sbatch"
    assert f"--job-name={record.name}\n" in Path(script).read_text()


def test_the_record_is_there_before_sbatch_is_called(tmp_path: Path, fakes: Fakes) -> None:
    fakes.answers("sbatch", "refuse")
    with pytest.raises(ConfigError) as refused:
        chains(tmp_path, fakes).begin(1)
    assert "Invalid account" in refused.value.what
    assert "\x1b" not in refused.value.what
    (record,) = Records(tmp_path / "fed" / "run" / "aa" / "jobs").all()
    assert record.state == "refused"
    assert "Invalid account" in record.words


def test_after_a_refusal_another_name_is_used(tmp_path: Path, fakes: Fakes) -> None:
    fakes.answers("sbatch", "refuse", "ok")
    with pytest.raises(ConfigError):
        chains(tmp_path, fakes).begin(1)
    (record,) = chains(tmp_path, fakes).begin(1)
    names = {r.name for r in Records(tmp_path / "fed" / "run" / "aa" / "jobs").all()}
    assert len(names) == 2
    assert record.state == "submitted"


@pytest.mark.parametrize("mode", ["taken-slow", "taken-killed", "taken-lost"])
def test_a_job_that_was_taken_in_silence_is_found_and_not_submitted_again(
    tmp_path: Path, fakes: Fakes, mode: str
) -> None:
    fakes.answers("sbatch", mode, "ok")
    (record,) = chains(tmp_path, fakes, submit_s=3.0).begin(1)
    assert record.job == "100"
    assert len(fakes.jobs()) == 1
    assert len(fakes.calls("sbatch")) == 1


@pytest.mark.parametrize("mode", ["lost", "hang"])
def test_a_job_that_was_not_taken_is_submitted_again(tmp_path: Path, fakes: Fakes, mode: str) -> None:
    fakes.answers("sbatch", mode, "ok")
    (record,) = chains(tmp_path, fakes, submit_s=3.0).begin(1)
    assert record.job == "100"
    assert len(fakes.calls("sbatch")) == 2
    assert {words[-1] for words in fakes.calls("sbatch")} == {str(tmp_path / f"fed/run/aa/jobs/{record.name}.sbatch")}


def test_without_an_answer_of_the_queue_nothing_is_submitted_again(tmp_path: Path, fakes: Fakes) -> None:
    """It may be in the queue: sbatch is called again only when squeue has said that it is not."""
    fakes.answers("sbatch", "taken-lost", "ok")
    fakes.answers("squeue", "broken")
    one = chains(tmp_path, fakes)
    records = one.submitter.records
    with records.locked(), pytest.raises(PeersError, match="did not say"):
        one.submitter.submit("0badcafe", 1, None)
    assert len(fakes.calls("sbatch")) == 1
    fakes.answers("squeue", "broken", "ok")
    with records.locked():
        record = one.submitter.submit("0badcafe", 1, None)
    assert record.job == "100"
    assert len(fakes.jobs()) == 1


def test_a_submission_that_was_cut_short_is_gone_on_with(tmp_path: Path, fakes: Fakes) -> None:
    """The process died between sbatch and the second write of the record."""
    one = chains(tmp_path, fakes)
    (record,) = one.begin(1)
    one.submitter.records.put(dataclasses.replace(record, state="intended", job=""))
    fakes.set_state(100, "GONE")  # squeue has forgotten it, accounting has not
    (again,) = one.begin(1)
    assert (again.name, again.job) == (record.name, "100")
    assert len(fakes.calls("sbatch")) == 1


def test_without_accounting_a_forgotten_job_is_submitted_again_under_its_name(tmp_path: Path, fakes: Fakes) -> None:
    """The batch script itself then lets only one of them work (test_slurm_scripts.py)."""
    one = chains(tmp_path, fakes)
    (record,) = one.begin(1)
    one.submitter.records.put(dataclasses.replace(record, state="intended", job=""))
    fakes.set_state(100, "GONE")
    fakes.answers("sacct", "none")
    (again,) = one.begin(1)
    assert (again.name, again.job) == (record.name, "101")


def test_a_second_submission_is_refused_while_a_job_waits_or_runs(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes)
    (record,) = one.begin(1)
    for state in ("PENDING", "RUNNING", "COMPLETING"):
        fakes.set_state(100, state)
        with pytest.raises(ConfigError, match=f"already has the job {record.name}"):
            one.begin(1)
    fakes.set_state(100, "FAILED")
    assert one.begin(1)[0].name != record.name


def test_two_submissions_at_once_make_one_job(tmp_path: Path, fakes: Fakes) -> None:
    site = write_site(tmp_path / "fed")
    fakes.answers("sbatch", "gate")
    env = {"PATH": fakes.environment["PATH"], "FAKES": str(fakes.folder)}
    command = [sys.executable, "-m", "fedhpc", "submit", site]
    with start(command, env=env) as first:
        until(lambda: bool(fakes.calls("sbatch")), 30, "the first sbatch")
        with start(command, env=env) as second:
            jobs = tmp_path / "fed" / "run" / "aa" / "jobs"
            until(
                lambda: second.process.poll() is not None or opened(second.process.pid, jobs / "lock"), 30, "the lock"
            )
            (fakes.folder / "go").touch()
            first.finish(60).ok()
            second.finish(60).refused(64, "already has the job")
    assert len(fakes.calls("sbatch")) == 1


def opened(pid: int, path: Path) -> bool:
    """Whether the process has `path` open."""
    try:
        return any(os.path.realpath(link) == str(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_lock_that_is_held_is_waited_for_and_told(tmp_path: Path, fakes: Fakes) -> None:
    records = chains(tmp_path, fakes).submitter.records
    with records.locked(), pytest.raises(StorageError, match="another submission"), records.locked(patience_s=0.0):
        pass


# --- chains


def test_links_wait_for_one_another(tmp_path: Path, fakes: Fakes) -> None:
    made = chains(tmp_path, fakes, "chained").begin(3)
    assert [r.job for r in made] == ["100", "101", "102"]
    assert [r.after for r in made] == ["", made[0].name, made[1].name]
    texts = [Path(words[-1]).read_text() for words in fakes.calls("sbatch")]
    assert ["afterany:100" in t for t in texts] == [False, True, False]
    assert ["afterany:101" in t for t in texts] == [False, False, True]
    assert "dependency" not in texts[0]


def test_detached_trains_and_exchanges_in_turn(tmp_path: Path, fakes: Fakes) -> None:
    site = write_site(
        tmp_path / "fed",
        life="detached",
        slurm={"nodes": 2, "gpus_per_node": 4, "partition": "g", "exchange": {"partition": "c", "time": "00:30:00"}},
    )
    (tmp_path / "fed" / "run" / "aa" / "jobs").mkdir(parents=True)
    made = Chains(submitter_of(site, fakes)).begin(4)
    assert [r.name[-2:] for r in made] == ["1x", "2t", "3x", "4t"]
    assert [r.stage for r in made] == ["exchange", "train"] * 2
    for record, words in zip(made, fakes.calls("sbatch"), strict=True):
        text = Path(words[-1]).read_text()
        gpu = record.stage == "train"
        assert ("--gpus-per-node=4" in text) == gpu
        assert f"--partition={'g' if gpu else 'c'}\n" in text
        assert f"--nodes={2 if gpu else 1}\n" in text
        assert f"--stage {record.stage}\n" in text


def test_a_running_link_keeps_one_ahead_however_often_it_asks(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes, "chained")
    (first,) = one.begin(1)
    (second,) = one.follow(first.name, 1)
    assert second.after == first.name
    assert one.follow(first.name, 1) == [], "a requeued link asks again"
    assert len(fakes.jobs()) == 2
    (third,) = one.follow(second.name, 1)
    assert third.link == 3


def test_the_successor_of_an_ended_link(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes, "chained", max_links=2)
    (first,) = one.begin(1)
    one.follow(first.name, 1)
    with pytest.raises(PolicyError, match="max_links"):
        one.follow(first.name, 2)
    with pytest.raises(ConfigError, match="no job fedhpc-x"):
        one.follow("fedhpc-x", 1)


def test_cancel_and_what_it_means_for_the_running_link(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes, "chained")
    made = one.begin(3)
    fakes.set_state(100, "RUNNING")
    assert [r.name for r in one.cancel(after=made[0].name)] == [made[1].name, made[2].name]
    assert fakes.calls("scancel") == [["--quiet", "101", "102"]]
    with pytest.raises(PolicyError, match="was cancelled"):
        one.follow(made[0].name, 1)
    assert [r.job for r in one.cancel()] == ["100"]
    assert one.cancel() == []
    with pytest.raises(ConfigError, match="no job"):
        one.cancel(name="fedhpc-x")


def test_a_successor_that_somebody_cancelled_is_not_submitted_again(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes, "chained")
    made = one.begin(2)
    fakes.set_state(101, "CANCELLED")
    with pytest.raises(PolicyError, match="was cancelled"):
        one.follow(made[0].name, 1)


def test_one_job_by_name(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes, "chained")
    made = one.begin(2)
    assert [r.job for r in one.cancel(name=made[1].name)] == ["101"]


def test_states_are_the_queues_or_else_the_records(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes, "chained")
    one.begin(2)
    fakes.set_state(100, "GONE")
    assert [(s.state, s.alive) for s in one.shown()] == [("CANCELLED", False), ("PENDING", True)]
    fakes.answers("sacct", "none")
    assert [(s.state, s.alive) for s in one.shown()] == [("submitted", False), ("PENDING", True)]
    fakes.answers("squeue", "broken")
    with pytest.raises(PeersError, match="Unable to contact"):
        one.shown()


# --- parts


def test_names_tell_what_they_are() -> None:
    assert job_name("heart", "leiden", "0badcafe", 3, "train") == "fedhpc-heart-leiden-0badcafe-3t"
    assert job_name("heart", "leiden", "0badcafe", 4, "exchange") == "fedhpc-heart-leiden-0badcafe-4x"
    assert job_name("heart", "leiden", "0badcafe", 1, "all") == "fedhpc-heart-leiden-0badcafe-1"


def test_the_environment_of_another_job_stays_behind() -> None:
    given = {
        "SBATCH_ACCOUNT": "x",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_CPUS_PER_TASK": "3",
        "FEDHPC_JOB_END": "1",
        "SRUN_X": "1",
        "PMIX_RANK": "0",
    }
    kept = {"PATH": "/bin", "SLURM_CONF": "/etc/s", "FEDHPC_OTHER": "y", "SLURM_CLUSTERS": "a", "SLURM_JWT": "t"}
    kept |= {"SLURM_SACK_SOCKET": "/run/x"}
    assert clean(given | kept) == kept


def test_no_slurm_here(tmp_path: Path) -> None:
    queue = Queue(environment={"PATH": str(tmp_path)})
    with pytest.raises(ConfigError, match="no sbatch on this machine"):
        queue.submit(tmp_path / "x")


def test_a_refusal_without_a_message_tells_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(ConfigError, match=r"exit code 3 without a message"):
        Queue(environment={"PATH": str(tmp_path)}).submit(tmp_path / "x")


@pytest.mark.parametrize(
    "body", ["", "{}", "[1]", '{"version": 2}', "\xff", '{"version": 1, "name": 3}', "[" * 100_000, '{"version": 1}']
)
def test_damaged_records_are_told(tmp_path: Path, body: str) -> None:
    (tmp_path / "fedhpc-a.json").write_text(body)
    with pytest.raises(DataError, match="not the record of a job"):
        Records(tmp_path).all()
