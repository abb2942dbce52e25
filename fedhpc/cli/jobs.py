"""`fedhpc jobs`: a site's jobs in its batch queue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedhpc.cli.ordered import OrderedGroup

if TYPE_CHECKING:
    from fedhpc.slurm.job_chain import Chains

_WHERE = (
    click.option("--out", type=click.Path(path_type=Path), help="As for `fedhpc submit`."),
    click.option("--federation", type=click.Path(path_type=Path), help="As for `fedhpc submit`."),
    click.argument("site", metavar="SITE.TOML", type=click.Path(path_type=Path)),
)


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in _WHERE:
        command = option(command)
    return command


def _chains(site: Path, federation: Path | None, out: Path | None) -> Chains:
    from fedhpc.slurm.job_chain import Chains
    from fedhpc.slurm.plan import make_plan
    from fedhpc.slurm.submit import Submitter

    return Chains(Submitter(make_plan(site, profile=None, federation=federation, out=out)))


@click.group("jobs", cls=OrderedGroup)
def jobs() -> None:
    """List, cancel and read the jobs that `fedhpc submit` made for a site."""


@jobs.command("list", short_help="Show this site's jobs and their states.")
@_where
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(site: Path, federation: Path | None, out: Path | None, as_json: bool) -> None:
    """Show this site's jobs, oldest first, with the queue's word for each."""
    import dataclasses
    import json

    shown = _chains(site, federation, out).shown()
    if as_json:
        for one in shown:
            told = {"queue": one.found.state if one.found else None, "reason": one.found.reason if one.found else ""}
            click.echo(json.dumps(dataclasses.asdict(one.record) | told | {"alive": one.alive}, sort_keys=True))
        return
    if not shown:
        click.echo("no jobs were submitted")
        return
    rows = [("JOB", "STATE", "STAGE", "NAME", "WHY")]
    for one in shown:
        why = one.record.words if one.found is None else one.found.reason if one.state == "PENDING" else ""
        why = "" if why == "None" else why  # squeue's word until the scheduler has looked
        job = f"{one.record.job};{one.record.cluster}" if one.record.cluster else one.record.job  # as sbatch writes it
        rows.append((job if one.record.job else "-", one.state, one.record.stage, one.record.name, why))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[4]]).rstrip())


@jobs.command("cancel", short_help="Take jobs out of the queue, running ones too.")
@_where
@click.argument("name", required=False)
@click.option("--after", metavar="NAME", help="Only the links after NAME of its chain.")
def cancel(site: Path, federation: Path | None, out: Path | None, name: str | None, after: str | None) -> None:
    """Cancel the job NAME, or all jobs of this site that wait or run. A running one keeps a checkpoint first."""
    ended = _chains(site, federation, out).cancel(name=name, after=after)
    for record in ended:
        where = f" on cluster {record.cluster}" if record.cluster else ""
        click.echo(f"cancelled {record.name}, job {record.job}{where}")
    if not ended:
        click.echo("nothing to cancel")


@jobs.command("log", short_help="Print a job's log.")
@_where
@click.argument("name", required=False)
@click.option("--follow", "-f", is_flag=True, help="Keep printing until the job has ended.")
def log(site: Path, federation: Path | None, out: Path | None, name: str | None, follow: bool) -> None:
    """Print the log of the job NAME, or of the newest job that has one."""
    from fedhpc.slurm.joblog import follow_log, newest_log

    chains = _chains(site, federation, out)
    path, record = newest_log(chains.submitter.records, name)
    for text in follow_log(path, record, chains, follow=follow):
        click.echo(text, nl=False)
