"""`fedhpc run`: every rank of every site executes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from fedhpc.errors import ConfigError, InterruptedRun

if TYPE_CHECKING:
    from fedhpc.app.life.history import Finished
    from fedhpc.app.run import Ran
    from fedhpc.federation.life import Stage


@click.command()
@click.argument("federation", metavar="FEDERATION.TOML", type=click.Path(path_type=Path))
@click.option(
    "--sites", type=click.Path(path_type=Path), help="All sites in this job: the directory with their site files."
)
@click.option("--site", type=click.Path(path_type=Path), help="One site in this job: its site file, or its folder.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; by default `run` beside FEDERATION.TOML.")
@click.option(
    "--stage",
    type=click.Choice(["all", "train", "exchange"]),
    default="all",
    show_default=True,
    help="train: the next round's local work, into the outbox; exchange: what is in the outbox.",
)
@click.option(
    "--from-model", type=click.Path(path_type=Path), metavar="FILE", help="The model that [start] model names."
)
@click.option(
    "--previous",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run directory of the epoch before, if it is not found.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--verbose", is_flag=True, help="Log more.")
def run(
    federation: Path,
    sites: Path | None,
    site: Path | None,
    out: Path | None,
    stage: Stage,
    from_model: Path | None,
    previous: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Train the federation of FEDERATION.TOML, or go on where its run directory stopped.

    \b
    All sites in one job, ranks dealt by the site files:
      mpirun -n 8 --map-by :OVERSUBSCRIBE python -m mpi4py -m fedhpc run federation.toml --sites sites/
    \b
    Each site in a job of its own, with as many ranks as it likes; they meet at the relay:
      srun --mpi=pmix python -m mpi4py -m fedhpc run federation.toml --site leiden/site.toml
    \b
    The same with one rank, which needs no launcher:
      fedhpc run federation.toml --site leiden/site.toml

    Told to stop by SIGUSR2 or SIGTERM, or shortly before the batch job's end, it keeps its work and exits with 75: the
    same command goes on from there, to the same model. After SIGTERM or Ctrl-C mpirun leaves no time for that: the
    round under way is lost then, and SIGUSR2 to mpirun keeps it.
    """
    from fedhpc.app.life.stop_signals import Told

    told = Told()
    told.listen()
    from fedhpc.app.life import last_words
    from fedhpc.app.life.open import finished_before
    from fedhpc.app.programs.training import Before
    from fedhpc.app.run import run_federation
    from fedhpc.mpi.world import is_first, launched, tell_failure

    if launched() and is_first():
        last_words.listen(told)
    if stage != "all" and site is None:
        raise ConfigError("--stage is for one site of a federation over a relay", "give its site file with --site")
    if site is not None and sites is None:
        done = finished_before(federation, site, out, stage)
        if done is not None:
            _tell_finished(done, as_json=as_json)
            return
    try:
        before = Before(from_model, previous)
        ran = run_federation(
            federation, sites=sites, site=site, out=out, stage=stage, before=before, told=told, verbose=verbose
        )
    except InterruptedRun as stopped:
        _leave(stopped)
    except KeyboardInterrupt:
        tell_failure(
            "interrupted: what was not kept is lost\n"
            "hint: run it again: it goes on from what was kept last, to the same model; SIGUSR2 keeps a round's work",
            "stopped",
        )
        raise
    finally:
        told.ignore()
    if ran.first:
        _tell_result(ran, as_json=as_json)


def _tell_finished(done: Finished, *, as_json: bool) -> None:
    """An earlier job has done all rounds."""
    from fedhpc.mpi.world import is_first

    if is_first():
        click.echo(f"all rounds were done before; round {done.round}, sha256 {done.model_sha256}")
        if as_json:
            click.echo(json.dumps(vars(done), sort_keys=True))


def _leave(stopped: InterruptedRun) -> NoReturn:
    """End this rank with 75 where all ranks were interrupted alike; raise `stopped` where only this one was."""
    from fedhpc.mpi.world import end_together, is_first
    from fedhpc.slurm.exit_file import leave_exit_code

    if not stopped.agreed:
        raise stopped
    if is_first():
        click.echo(f"stopped: {stopped.what}\nhint: {stopped.hint}", err=True)
    leave_exit_code(stopped.exit_code, untrained=stopped.untrained)
    end_together()
    sys.exit(stopped.exit_code)


def _tell_result(ran: Ran, *, as_json: bool) -> None:
    """The final model, as lines for people and one for programs."""
    from fedhpc.app.run import result_json
    from fedhpc.app.telemetry import metric_words, nothing_held_out

    outcome = ran.outcome
    measured = metric_words(outcome.metrics)
    words = ["no held-out rows"] if nothing_held_out(outcome.metrics) else measured.values()
    click.echo(", ".join([f"final model: round {outcome.model.rounds}", *words]))
    if outcome.tested:
        click.echo(", ".join(["on test rows", *(metric_words(outcome.tested).values() or ["none"])]))
    click.echo(f"sha256 {ran.model_sha256}")
    click.echo(f"run directory {ran.directory}")
    if as_json:
        click.echo(result_json(ran))
