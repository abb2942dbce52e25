"""How long a job may go on: its end, what it was told, and what earlier rounds took. The clock is turned by hand."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from fedhpc.app.life.history import Finished, finished, keep_finished, round_seconds
from fedhpc.app.life.job_end import job_end, ledger_wait_s
from fedhpc.app.life.job_life import JobLife, percentile_95
from fedhpc.app.life.last_words import last_words
from fedhpc.app.life.settings import LifeSettings
from fedhpc.app.life.stop_signals import Told
from fedhpc.errors import ConfigError


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def life(clock: Clock, told: Told | None = None, left: float | None = None, **changes: Any) -> JobLife:
    options = {"earlier": changes.pop("earlier", ()), "stage": changes.pop("stage", "all")}
    end = None if left is None else clock() + left
    return JobLife(LifeSettings(**changes), told or Told(clock), end=end, clock=clock, **options)


# --- told by a signal


def test_usr2_stops_training_at_once_and_a_round_only_near_the_end(clock: Clock) -> None:
    told = Told(clock)
    job = life(clock, told, left=300.0, margin_s=60.0)
    assert (job.leaves(), job.must_leave()) == ("", "")
    told.hear(signal.SIGUSR2)
    assert job.leaves() == "told to by SIGUSR2"
    assert job.must_leave() == ""  # others wait for it, and the end is known
    clock.now += 239
    assert job.must_leave() == ""
    clock.now += 1
    assert job.must_leave() == "the job ends in 60 s"


def test_a_run_at_its_exit_is_not_killed_by_a_signal() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM)}
    try:
        told = Told()
        told.listen()
        told.ignore()
        for number in before:
            assert signal.getsignal(number) is signal.SIG_IGN  # a handler of Python's would be gone in its last moments
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        for number, handler in before.items():
            signal.signal(number, handler)


def test_usr2_without_a_known_end_leaves_a_minute(clock: Clock) -> None:
    told = Told(clock)
    job = life(clock, told)
    told.hear(signal.SIGUSR2)
    clock.now += 59.9
    assert job.must_leave() == ""
    clock.now += 0.1
    assert job.must_leave() == "told to by SIGUSR2, 60 s ago"


def test_term_leaves_ten_seconds_also_after_usr2(clock: Clock) -> None:
    told = Told(clock)
    job = life(clock, told, left=3600.0)
    told.hear(signal.SIGUSR2)
    clock.now += 100
    told.hear(signal.SIGTERM)
    assert job.leaves() == "told to by SIGTERM"
    assert job.must_leave() == ""
    clock.now += 9.9
    told.hear(signal.SIGUSR2)
    told.hear(signal.SIGTERM)  # the first one counts
    assert job.must_leave() == ""
    clock.now += 0.1
    assert job.must_leave() == "told to by SIGTERM, 10 s ago"


def test_a_signal_is_heard() -> None:
    told = Told()
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM)}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])  # as a launcher may have left it
        told.listen()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert told.by == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.by == "SIGTERM"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- ended by mpirun


def checkpoint(folder: Path, *rounds: int) -> Path:
    for round_ in rounds:
        path = folder / "checkpoints" / f"round-{round_:06d}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_last_words_say_where_the_run_goes_on(tmp_path: Path) -> None:
    stopped, hint = last_words("mpirun", checkpoint(tmp_path, 0, 5, 6, 12)).splitlines()
    assert stopped.startswith("stopped in the middle of round 13: mpirun leaves its ranks half a second")
    assert hint.startswith("hint: run it again: it goes on after round 12, to the same model")
    assert hint.endswith("SIGUSR2 to mpirun keeps the round's work")
    several = tmp_path / "checkpoints" / "round-000020"  # of a site of several ranks, and one that was not finished
    (several.with_name("round-000021")).mkdir()
    several.mkdir()
    (several / "index.h5").touch()
    assert "it goes on after round 20" in last_words("mpirun", tmp_path)
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "local.work").touch()
    assert "it goes on from the work that was kept last" in last_words("mpirun", tmp_path)


def test_last_words_before_there_is_a_model(tmp_path: Path) -> None:
    for folder in (None, tmp_path, tmp_path / "none"):
        words = last_words("mpiexec", folder)
        assert words.startswith("stopped before its first round was done: mpiexec leaves")
        assert "it goes on from the beginning" in words
    assert "in the middle of round 1" in last_words("mpirun", checkpoint(tmp_path, 0))


# --- the clock


@pytest.mark.parametrize("margin", [0.0, 60.0, 600.0])
def test_the_margin_before_the_end_is_kept_free(clock: Clock, margin: float) -> None:
    job = life(clock, left=1000.0, margin_s=margin)
    clock.now += 1000 - margin - 0.5
    assert (job.leaves(), job.must_leave()) == ("", "")
    clock.now += 0.5
    assert job.leaves() == job.must_leave() == f"the job ends in {margin:.0f} s"
    clock.now += 5000
    assert job.leaves() == "the job ends in 0 s"


def test_no_round_begins_that_would_not_end(clock: Clock) -> None:
    """Twice the 95th percentile of rounds so far, with earlier jobs' rounds, must fit before the margin."""
    job = life(clock, left=1000.0, margin_s=100.0, earlier=[10.0] * 18 + [300.0, 900.0])
    assert job.may_begin() == ""  # the first round of a job always begins
    job.round_took(10.0)
    assert job.may_begin() == ""  # 2 · 300 ≤ 900
    clock.now += 300
    assert job.may_begin() == ""
    clock.now += 1
    assert job.may_begin() == "599 s are left, and a round takes up to 300 s"


def test_a_job_that_is_too_short_still_does_one_round(clock: Clock) -> None:
    job = life(clock, left=100.0, earlier=[5000.0] * 50)
    assert job.may_begin() == ""
    job.round_took(30.0)
    assert job.may_begin() != ""


def test_without_an_end_or_without_rounds_it_may_begin(clock: Clock) -> None:
    job = life(clock)
    job.round_took(1e9)
    assert job.may_begin() == ""
    assert life(clock, left=1.0).may_begin() == ""


def test_old_rounds_are_forgotten(clock: Clock) -> None:
    job = life(clock, left=1000.0, margin_s=0.0, earlier=[900.0] * 1000)
    for _ in range(100):
        job.round_took(1.0)
    assert job.may_begin() == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [([7.0], 7.0), ([2.0, 1.0], 2.0), (range(1, 21), 19), (range(1, 101), 95), (range(100, 0, -1), 95)],
)
def test_percentile(values: Any, expected: float) -> None:
    assert percentile_95(values) == expected


def test_work_is_kept_now_and_then(clock: Clock) -> None:
    job = life(clock, checkpoint_s=1800.0)
    clock.now += 1799.5
    assert not job.keeps_now()
    clock.now += 0.5
    assert job.keeps_now()
    job.kept()
    assert not job.keeps_now()
    clock.now += 1800
    assert job.keeps_now()
    never = life(clock, checkpoint_s=0.0)
    clock.now += 1e9
    assert not never.keeps_now()


@pytest.mark.parametrize("kind", ["inline", "chained", "detached"])
def test_who_leaves_an_absent_relay_to_the_next_job(clock: Clock, kind: str) -> None:
    assert life(clock, kind=kind, stage="exchange").hands_on() == (kind != "inline")
    job = life(clock, kind=kind)
    assert not job.hands_on()
    job.trained()
    assert job.hands_on() == (kind != "inline")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"wait_s": 5.0}, 5.0),
        ({"kind": "chained"}, math.inf),
        ({"kind": "detached"}, math.inf),
        ({"kind": "detached", "wait_s": 0.0}, 0.0),
    ],
)
def test_how_long_a_job_waits(clock: Clock, changes: dict[str, Any], expected: float | None) -> None:
    """A link of a chain that has waited in vain is submitted again (75); an inline job has failed (69)."""
    assert life(clock, **changes).wait_s == expected


@pytest.mark.parametrize(
    "wrong", [{"wait_s": -1.0}, {"wait_s": 1e9}, {"checkpoint_s": -1.0}, {"margin_s": -0.1}, {"margin_s": 1e6}]
)
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LifeSettings(**wrong)


# --- what the batch system says


def squeue(folder: Path, answer: str, code: int = 0) -> dict[str, str]:
    """A squeue that says `answer` about job 77 and nothing else."""
    script = folder / "squeue"
    script.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --jobs 77 --format %e" ] || exit 9\n{answer}\nexit {code}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"SLURM_JOB_ID": "77"}


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_the_end_of_the_job_from_the_environment() -> None:
    assert job_end({}) is None
    assert job_end({"FEDHPC_JOB_END": "1800000000", "SLURM_JOB_END_TIME": "1700000000"}) == 1.8e9
    assert job_end({"SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9
    assert job_end({"FEDHPC_JOB_END": "NOT_SET", "SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9


@pytest.mark.parametrize("text", ["", "0", "-1800000000", "1e9", " 1800000000", "99999999999999", "nan", "Unknown"])
def test_an_end_that_is_no_time_is_none(text: str) -> None:
    assert job_end({"FEDHPC_JOB_END": text, "SLURM_JOB_END_TIME": text}) is None


def test_slurm_is_asked(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    environment = squeue(on_path, "echo 2033-05-18T03:33:20")
    assert job_end(environment) == 2_000_000_000
    assert job_end({"FEDHPC_JOB_END": "1800000000"} | environment) == 1.8e9


@pytest.mark.parametrize(
    ("answer", "code"), [("echo N/A", 0), ("echo", 0), ("echo 2033-05-18T03:33:20", 1), ("echo 2033-99-99T99", 0)]
)
def test_a_slurm_that_does_not_know_is_no_end(
    on_path: Path, caplog: pytest.LogCaptureFixture, answer: str, code: int
) -> None:
    assert job_end(squeue(on_path, answer, code)) is None
    assert "does not say when job 77 ends" in caplog.text


@pytest.mark.parametrize("job", ["77; rm -rf /", "--help", "77_1", "", "9" * 11])
def test_slurm_is_asked_about_numbers_only(on_path: Path, job: str) -> None:
    squeue(on_path, f"touch {on_path}/asked; echo 2033-05-18T03:33:20")
    assert job_end({"SLURM_JOB_ID": job}) is None
    assert not (on_path / "asked").exists()


def test_without_slurm_there_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_end({"SLURM_JOB_ID": "77"}) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0.0),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0", "SLURM_JOB_DEPENDENCY": ""}, 0.0),
        ({"SLURM_RESTART_COUNT": "1"}, 60.0),
        ({"SLURM_JOB_DEPENDENCY": "afterany:12"}, 60.0),
    ],
)
def test_a_job_that_follows_another_waits_for_its_end(environment: dict[str, str], expected: float) -> None:
    assert ledger_wait_s(environment) == expected


# --- what the run directory says


def metrics(folder: Path, *lines: str | dict[str, Any]) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def test_what_rounds_took_without_waiting_for_others(tmp_path: Path) -> None:
    assert round_seconds(tmp_path) == []
    metrics(
        tmp_path,
        {"round": 1, "seconds": {"total": 10.0, "agree": 4.0}},
        "",
        "not json",
        '{"round": 2, "seconds": {"tot',
        {"round": 2, "seconds": {"total": 3.0}},
        {"round": 3, "seconds": {"total": 3.0, "agree": 5.0}},
        {"round": 3, "final": True},
        "[1]",
        {"round": 4, "seconds": {"total": "soon"}},
        "[" * 100_000,
    )
    assert round_seconds(tmp_path) == [6.0, 3.0, 0.0]


def test_only_the_end_of_long_metrics_is_read(tmp_path: Path) -> None:
    line = {"round": 1, "seconds": {"total": 1.0}, "more": "x" * 1000}
    metrics(tmp_path, *[line] * 3000, {"round": 2, "seconds": {"total": 2.0}})
    found = round_seconds(tmp_path)
    assert 900 < len(found) < 1100
    assert found[-1] == 2.0


def test_a_finished_site_says_so(tmp_path: Path) -> None:
    config = b"c" * 32
    assert finished(tmp_path, config) is None
    done = Finished(config.hex(), "ab" * 32, 20, {"auc": 0.5, "none": None})
    keep_finished(tmp_path, done)
    assert finished(tmp_path, config) == done
    assert finished(tmp_path, b"d" * 32) is None  # another federation.toml


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"config": "ab"}', '{"config": 1, "metrics": 3}', "[" * 9999])
def test_a_damaged_note_is_no_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "finished.json").write_text(text)
    assert finished(tmp_path, bytes(32)) is None
