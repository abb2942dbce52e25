"""A site as jobs: in stages, stopped at any moment, killed, late. Each way ends with the hash of the rehearsal."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from harness import edit, until
from lives import SITES, STEPS, Lives, Run, final_hash

from fedhpc.enrolment.one_machine import running_relay
from fedhpc.errors import PolicyError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.rounds.interfaces import LocalResult, LocalWork
from fedhpc.rounds.outbox import FileOutbox, outbox_key
from fedhpc.secure.ledger import ledger_keys

STAGES = ("exchange", "train")


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    made = Lives.enrol(tmp_path_factory.mktemp("lives"))
    with (made.folder / "relay.log").open("a") as log, running_relay(made.base.relay, log):
        yield made


@pytest.fixture(scope="module")
def rehearsal(lives: Lives) -> str:
    return lives.rehearsal()


@pytest.fixture(scope="module")
def detached(lives: Lives) -> tuple[Run, dict[str, list[str]], dict[str, list[int]]]:
    """A federation that lived detached to its end: hash and codes of every site's jobs."""
    run = lives.federation(kind="detached")
    done = run.all_until_done(STAGES)
    return (
        run,
        {n: [final_hash(jobs[-1])] for n, jobs in done.items()},
        {n: [j.code for j in d] for n, d in done.items()},
    )


@pytest.mark.mpi
def test_detached_jobs_end_with_the_model_of_the_rehearsal(rehearsal: str, detached: tuple[Run, dict, dict]) -> None:
    """All train jobs had a relay that nobody is; all exchange jobs but the first neither data nor torch."""
    run, hashes, codes = detached
    assert hashes == {name: [rehearsal] for name in SITES}
    # The model; two rounds of training and its exchange; the final measurement and its exchange.
    assert codes == {name: [75] * 6 + [0] for name in SITES}
    for name in SITES:
        assert not list((run.site(name) / "outbox").iterdir())


def test_further_links_of_a_finished_site_end_at_once(detached: tuple[Run, dict, dict]) -> None:
    """Without dialling, whatever their stage."""
    run, hashes, _ = detached
    for stage in ("train", "exchange", "all"):
        done = run.job("aa", stage, run.without_torch(), site_file=run.unconnected("aa")).ok()
        assert final_hash(done) == hashes["aa"][0]
        assert "all rounds were done before" in done.out


@pytest.fixture(scope="module")
def modelled(lives: Lives) -> Run:
    """A federation with a model and no training."""
    run = lives.federation(kind="detached")
    for (job,) in run.at_once("exchange"):
        assert job.code == 75, job.text
        assert "round 1 is not trained yet" in job.err
        assert "fedhpc run --stage train" in job.err
    return run


def test_a_job_says_what_comes_next(modelled: Run, tmp_path: Path) -> None:
    fresh = Run(modelled.lives, tmp_path / "fresh", modelled.enrolled)
    nothing = fresh.stage_job("aa", "train")
    assert nothing.code == 75, nothing.text
    assert "there is no model to train yet" in nothing.err
    assert "--stage exchange" in nothing.err
    assert "Traceback" not in nothing.err
    run = modelled.copy(tmp_path / "run")
    exchange = run.stage_job("aa", "exchange")
    assert exchange.code == 75, exchange.text
    assert "the next round is not trained yet" in exchange.err
    for _ in range(2):
        trained = run.stage_job("aa", "train")
        assert trained.code == 75, trained.text
        assert "round 1 is trained; its update is in the outbox" in trained.err
    assert (run.site("aa") / "outbox" / "local.work").stat().st_mode & 0o777 == 0o600


@pytest.mark.mpi
def test_told_to_stop_at_any_moment(lives: Lives, rehearsal: str) -> None:
    """Signals come when they come: while Python starts, in training, in a round with the others, at the end."""
    run = lives.federation(kind="chained")
    codes: dict[str, list[int]] = {name: [] for name in SITES}

    def live(name: str) -> str:
        draw = random.Random(name)
        for number in itertools.count():
            assert number < 40
            told = number < 5
            env = {"STOP_AT": f"{draw.randrange(1, STEPS)} SIGUSR2"} if number % 2 else {}
            cold = number == 0
            with run.start(name, env=env, cold=cold) as job:
                after = draw.uniform(0.5, 6.0) if cold else draw.uniform(0.05, 2.0)
                timer = threading.Timer(after, job.process.send_signal, [signal.SIGUSR2])
                if told:
                    timer.start()
                done = job.finish(120)
                timer.cancel()
            codes[name].append(done.code)
            assert "Traceback" not in done.err, done.text
            if done.code == 0:
                return final_hash(done)
            assert done.code in (75, -signal.SIGUSR2), done.text  # the latter before handlers were there
        raise AssertionError

    with ThreadPoolExecutor(len(SITES)) as pool:
        assert set(pool.map(live, SITES)) == {rehearsal}
    for name in SITES:
        assert 75 in codes[name]


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_stopped_within_a_round_it_goes_on_from_that_step(lives: Lives, rehearsal: str, ranks: int) -> None:
    """Two ranks average other numbers than one, so their model is compared with that of an unbroken run."""
    stopped, unbroken = lives.federation(kind="chained"), lives.federation(kind="chained")
    stopped.at_once("exchange")
    steps = []
    for at in (2, 1, 2):
        done = stopped.job("aa", "all", {"STOP_AT": f"{at} SIGUSR2"}, ranks=ranks)
        assert done.code == 75, done.text
        steps.append(done.err.rpartition("stopped in round 1, after ")[2].split(" ")[0])
    assert steps == ["2", "3", "5"]
    found = finish(stopped, ranks)
    assert found == (rehearsal if ranks == 1 else finish(unbroken, ranks))


def finish(run: Run, ranks: int) -> str:
    """Let all sites run to their end, aa with so many ranks: the model they end with."""
    with ThreadPoolExecutor(len(SITES)) as pool:
        jobs = list(pool.map(lambda name: run.job(name, ranks=ranks if name == "aa" else 1).ok(), SITES))
    (found,) = {final_hash(job) for job in jobs}
    return found


@pytest.mark.mpi
def test_an_exchange_waits_only_so_long(lives: Lives, rehearsal: str) -> None:
    run = lives.federation(kind="detached", wait_s=2)
    alone = run.job("aa", "exchange")
    assert alone.code == 75, alone.text
    assert "site bb, cc has not started with this federation.toml yet" in alone.err
    run.enrolled.site_file("aa").write_text(
        run.enrolled.site_file("aa").read_text().replace("wait_s = 2", "wait_s = 90")
    )
    for name in ("bb", "cc"):
        path = run.enrolled.site_file(name)
        path.write_text(path.read_text().replace("wait_s = 2", "wait_s = 90"))
    run.at_once("exchange", "train")
    path = run.enrolled.site_file("aa")
    path.write_text(path.read_text().replace("wait_s = 90", "wait_s = 2"))
    for _ in range(2):  # READY with the same bytes is news again after LEAVE
        done = run.job("aa", "exchange", run.without_torch(), site_file=run.without_data("aa"))
        assert done.code == 75, done.text
        assert "did not begin within 2 s: the relay waits for site bb, cc" in done.err
        assert run.ready() == []
    with run.start("bb", "exchange") as bb:
        until(lambda: run.ready() == [2], 60, "bb is ready and aa is not")
        bb.process.send_signal(signal.SIGUSR2)
        told = bb.finish(20)
    assert told.code == 75, told.text
    assert "told to by SIGUSR2" in told.err
    assert run.ready() == []
    path.write_text(path.read_text().replace("wait_s = 2", "wait_s = 90"))
    done_ = run.all_until_done(STAGES)
    assert {final_hash(jobs[-1]) for jobs in done_.values()} == {rehearsal}


@pytest.mark.mpi
def test_kill_9_in_an_exchange_and_in_training(lives: Lives, rehearsal: str) -> None:
    run = lives.federation(kind="detached")
    run.at_once("exchange")
    killed = run.job("aa", "train", {"STOP_AT": "4 SIGKILL"}, site_file=run.unconnected("aa"))
    assert killed.code == -signal.SIGKILL
    assert not (run.site("aa") / "outbox").exists()
    run.at_once("train")
    kept = (run.site("aa") / "outbox" / "local.work").read_bytes()
    with run.start("aa", "exchange", run.without_torch(), site_file=run.without_data("aa")) as job:
        until(lambda: run.ready() == [1], 60, "aa is ready")
        job.kill()
    assert (run.site("aa") / "outbox" / "local.work").read_bytes() == kept
    with run.start("bb", "exchange") as bb, run.start("cc", "exchange") as cc:
        # aa is ready, as far as the relay knows: the attempt begins without it, and waits for its keys
        until(lambda: run.exchange("bb").standing(quiet=True)["sums"][0]["attempt"] == 1, 60, "an attempt")
        with run.start("aa", "exchange") as aa:
            assert [job.finish(120).code for job in (aa, bb, cc)] == [75, 75, 75]
    done = run.all_until_done(("train", "exchange"))
    assert {final_hash(jobs[-1]) for jobs in done.values()} == {rehearsal}


def test_a_site_leaves_for_itself_only(lives: Lives) -> None:
    run = lives.federation(kind="detached", wait_s=60)
    run.at_once("exchange", "train")
    with run.start("aa", "exchange") as aa:
        until(lambda: run.ready() == [1], 60, "aa is ready")
        round_ = run.exchange("aa").standing(quiet=True)["sums"][0]["sum"]
        bb = run.exchange("bb")
        with pytest.raises(PolicyError, match="forbidden"):
            bb.client.put(bb.name(round_, 0, "LEAVE/1"), b"{}")
        assert run.ready() == [1]
        with pytest.raises(PolicyError, match="forbidden"):
            bb.put(round_ + 1, 0, "LEAVE", b"{}")  # nobody is ready for that round
        aa.process.send_signal(signal.SIGTERM)
        assert aa.finish(20).code == 75
        assert run.ready() == []


# --- what lies in the way


def test_a_job_waits_for_the_end_of_the_one_before(modelled: Run, tmp_path: Path) -> None:
    """The lock of the ledger: 74 at once, or after the job before has gone where Slurm says that there was one."""
    run = modelled.copy(tmp_path / "run")
    config = hashlib.sha256(run.enrolled.federation.read_bytes()).hexdigest()
    lock = run.enrolled.site_file("aa").parent / "ledger" / "runs" / f"{config}.lock"
    lock.write_text(json.dumps({"run": str(run.site("aa")), "site": "aa"}))
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run.job("aa", "train").refused(74, "another run is using", str(run.site("aa")))
        for env in ({"SLURM_RESTART_COUNT": "1"}, {"SLURM_JOB_DEPENDENCY": "afterany:7"}):
            fcntl.flock(held, fcntl.LOCK_EX)
            with run.start("aa", "train", env, cold=True) as job:
                until(lambda pid=job.process.pid: has_open(pid, lock), 60, "the job is at the lock")
                fcntl.flock(held, fcntl.LOCK_UN)
                done = job.finish(60)
            assert done.code == 75, done.text
            assert "round 1 is trained" in done.err


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if os.path.samefile(entry, path):
                return True
        except OSError:
            continue
    return False


def test_a_relay_that_is_away(modelled: Run, tmp_path: Path) -> None:
    """A job that only exchanges keeps the work for the next one; others, and who never met the relay, fail."""
    run = modelled.copy(tmp_path / "run")
    path = run.unconnected("aa")
    edit(path, "[exchange]\n", "[exchange]\npatience_s = 1\n")
    assert run.job("aa", "train", site_file=path).code == 75
    size = (run.site("aa") / "outbox" / "local.work").stat().st_size
    done = run.job("aa", "exchange", site_file=path)
    assert done.code == 75, done.text
    assert "the relay cannot be reached" in done.err
    assert "Traceback" not in done.err
    assert (run.site("aa") / "outbox" / "local.work").stat().st_size == size  # sealed anew
    chained, inline = path.with_name("site-chained.toml"), path.with_name("site-inline.toml")
    for other in (chained, inline):
        other.write_text(path.read_text().replace('kind = "detached"', f'kind = "{other.stem[5:]}"'))
        assert other.read_text() != path.read_text()
    run.job("aa", site_file=chained).refused(69, "the relay", "cannot be reached")
    run.job("aa", "exchange", site_file=inline).refused(69, "the relay", "cannot be reached")
    (run.site("aa") / "signatures.json").unlink()
    run.job("aa", "exchange", site_file=path).refused(69, "the relay", "cannot be reached")


def test_the_outbox_of_another_federation_or_site(modelled: Run, tmp_path: Path) -> None:
    """Sealed with its key: by another site of this federation, and by this site in another one."""
    run = modelled.copy(tmp_path / "run")
    outbox = run.site("aa") / "outbox"
    config = hashlib.sha256(run.enrolled.federation.read_bytes()).digest()
    work = LocalWork(bytes(32), 1, LocalResult(1, 1, 0.5, 0.1), {}, {"w": np.zeros(3, np.float32)}, {})
    for of, number in ((config, 2), (b"another federation".ljust(32), 1)):
        key = outbox_key(ledger_keys(of, home_key(run, SITES[number - 1]), number).whole, of)
        FileOutbox(outbox, of, key, SerialGroup()).keep(work)
        for stage in STAGES:
            run.job("aa", stage).refused(65, "local.work is damaged, or of another site or federation", "remove it")
    key = outbox_key(ledger_keys(config, home_key(run, "aa"), 1).whole, config)
    FileOutbox(outbox, config, key, SerialGroup()).keep(work)  # its own, from a model that nobody has: trained anew
    assert run.stage_job("aa", "train").code == 75


def home_key(run: Run, site: str) -> bytes:
    """The key of a site's ledger."""
    return (run.enrolled.site_file(site).parent / "ledger" / "ledger.key").read_bytes()


def test_an_outbox_that_cannot_be_written(modelled: Run, tmp_path: Path) -> None:
    run = modelled.copy(tmp_path / "run")
    (run.site("aa") / "outbox").symlink_to("/sys/kernel")  # no file can be made there, not even by root
    run.job("aa", "train").refused(74, "cannot write", "local.work", "check space and permissions")
    (run.site("aa") / "outbox").unlink()
    (run.site("aa") / "outbox").write_text("a file")
    run.job("aa", "train").refused(74, "cannot read", "outbox")


def test_stages_are_for_a_relay(modelled: Run) -> None:
    run = modelled
    site = run.enrolled.site_file("aa")
    other = site.with_name("mpi.toml")
    other.write_text(site.read_text().partition("[exchange]")[0])
    run.job("aa", "train", site_file=other).refused(64, "stages of their own only where sites meet at a relay")
