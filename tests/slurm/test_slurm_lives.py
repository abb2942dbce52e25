"""Sites that live in their queues in different ways, and what becomes of their jobs: the same last bit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from clusters import Clusters
from federation import SlurmFederation, replace

pytestmark = pytest.mark.slurm

SLURM = """[slurm]
profile = "generic"
mpi = "pmix"
partition = "gpu"
time = "00:30:00"
preflight = {preflight}
gpus_per_node = {gpus}
requeue_s = 3600

[slurm.exchange]
partition = "cpu"
"""


def lives(made: SlurmFederation, *kinds: str) -> None:
    """Give each site a life. `detached` asks for a GPU, which no check before the start would find here."""
    for site, kind in zip(made.sites, kinds, strict=True):
        detached = kind == "detached"
        slurm = SLURM.format(preflight=str(not detached).lower(), gpus=int(detached))
        made.settings(site, f'[life]\nkind = "{kind}"\nwait_s = 600\n\n{slurm}')


def test_three_lives_and_two_exchanges_give_one_model(idle: Clusters, tmp_path: Path) -> None:
    """Alpha: inline and chained over https. Beta, whose nodes reach nobody: inline and detached over a spool.

    The detached site comes first and waits in vain, without a GPU. It trains while its carrier is killed, on a node
    without a route to the relay. Meanwhile the chained site, whose job is told of its walltime, hands over.
    """
    made = SlurmFederation(idle, tmp_path / "heart")
    inline, chained, spooled, detached = made.sites
    lives(made, "inline", "chained", "inline", "detached")
    made.spool(spooled, detached)
    alpha, beta = idle
    with ExitStack() as running:
        running.enter_context(made.relay())
        running.enter_context(made.carrier(spooled))
        carrier = running.enter_context(made.carrier(detached))

        own = made.enrolled.site_file(detached)
        replace(own, "wait_s = 600", "wait_s = 1")
        exchange = str(made.submit(detached)["job"])
        made.until(lambda: beta.show(exchange)["Restarts"] == "1", "an exchange that waited in vain comes back")
        train = made.job(detached)
        assert train != exchange
        assert beta.state(train) == "PENDING"
        beta.run("scontrol", "hold", train)
        replace(own, "wait_s = 1", "wait_s = 600")

        jobs = {site: str(made.submit(site)["job"]) for site in (inline, chained, spooled)}
        beta.until_state(exchange, "PENDING")
        beta.start_now(exchange)
        assert beta.wait(exchange, 120).code == 0, made.logs()
        carrier.kill()
        carrier.wait()
        beta.run("scontrol", "release", train)
        assert beta.wait(train, 120).code == 0, made.logs()
        assert "round 1 is trained; its update is in the outbox" in made.log(detached, train)

        alpha.cancel("--batch", "--signal=USR1", jobs[chained])
        assert alpha.wait(jobs[chained], 60).code == 0, made.logs()
        assert "the next job goes on" in made.log(chained, jobs[chained])

        running.enter_context(made.carrier(detached))
        made.wait()
    assert {made.finished(site) for site in made.sites} == {made.rehearsal()}

    first, second, third = made.listed(chained)
    assert (first["queue"], second["queue"], third["queue"]) == ("COMPLETED", "COMPLETED", "CANCELLED")
    assert "all rounds were done before" not in made.log(chained, second["job"])
    shown = made.listed(detached)
    assert [one["stage"] for one in shown] == ["exchange", "train"] * 4
    assert [one["queue"] for one in shown] == ["COMPLETED"] * 7 + ["CANCELLED"]
    for one in shown:
        gpus = "gpu" in beta.show(one["job"]).get("TresPerNode", "")
        assert gpus == (one["stage"] == "train")
        assert not gpus or "waiting" not in made.log(detached, one["job"])


def test_jobs_that_are_warned_killed_moved_and_cancelled(idle: Clusters, tmp_path: Path) -> None:
    """One of everything that happens to jobs, in the middle of the rounds, and the carrier of the fourth is killed."""
    made = SlurmFederation(idle, tmp_path / "heart", rounds=6)
    warned, killed, moved, cancelled = made.sites
    lives(made, "inline", "chained", "inline", "inline")
    made.spool(moved, cancelled)
    alpha, beta = idle
    with ExitStack() as running:
        running.enter_context(made.relay())
        running.enter_context(made.carrier(moved))
        carrier = running.enter_context(made.carrier(cancelled))
        jobs = {site: str(made.submit(site)["job"]) for site in made.sites}
        made.until(lambda: made.rounds_done(warned) > 0, "the first round")
        carrier.kill()
        carrier.wait()

        # The walltime comes near for one, and without a warning for another; the third loses its node. The first may
        # be in an attempt, and stays in it until a minute before the end that it knows of.
        alpha.run("scontrol", "update", f"jobid={jobs[warned]}", "endtime=now+120")
        alpha.run("scontrol", "update", f"jobid={jobs[killed]}", "endtime=now+1")
        beta.cancel(jobs[cancelled])
        assert beta.wait(jobs[cancelled]).state == "CANCELLED", made.logs()
        beta.down(beta.show(jobs[moved])["BatchHost"])
        beta.until_state(jobs[moved], "PENDING")
        model = made.rehearsal()
        beta.start_now(jobs[moved])
        assert alpha.wait(jobs[killed], 100).state == "TIMEOUT", made.logs()
        alpha.until_state(jobs[warned], "PENDING", seconds=160)
        alpha.run("scontrol", "update", f"jobid={jobs[warned]}", "timelimit=30")
        alpha.start_now(jobs[warned])
        assert not any(made.finished(site) for site in made.sites)

        again = str(made.submit(cancelled)["job"])
        assert again != jobs[cancelled]
        running.enter_context(made.carrier(cancelled))
        made.wait()
    assert {made.finished(site) for site in made.sites} == {model}

    assert alpha.show(jobs[warned])["Restarts"] == "1"
    assert beta.show(jobs[moved])["Restarts"] == "1"
    assert [one["queue"] for one in made.listed(killed)] == ["TIMEOUT", "COMPLETED", "CANCELLED"]
    assert [one["queue"] for one in made.listed(cancelled)] == ["CANCELLED", "COMPLETED"]
