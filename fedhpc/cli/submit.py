"""`fedhpc submit`: a site into its batch queue."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("site", metavar="SITE.TOML", type=click.Path(path_type=Path))
@click.option("--profile", metavar="NAME", help="The cluster: a file of jobs/profiles; overrides [slurm] profile.")
@click.option("--federation", type=click.Path(path_type=Path), help="By default beside SITE.TOML, or one folder up.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; by default `run` beside federation.toml.")
@click.option("--dry-run", is_flag=True, help="Print the batch script of the first job, and do nothing.")
@click.option("--links", type=click.IntRange(1, 1000), help="So many jobs of the chain at once; by default 1.")
@click.option("--successor", metavar="NAME", help="Used by a running job: the links after NAME.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each job.")
def submit(
    site: Path,
    profile: str | None,
    federation: Path | None,
    out: Path | None,
    dry_run: bool,
    links: int | None,
    successor: str | None,
    as_json: bool,
) -> None:
    """Submit the site of SITE.TOML to the Slurm queue, as its [slurm] and [life] say.

    \b
    fedhpc submit --profile snellius site.toml --dry-run     # look at the script first
    fedhpc submit --profile snellius site.toml
    """
    import dataclasses
    import json

    from fedhpc.errors import ConfigError
    from fedhpc.ops.slurm.chain import Chains
    from fedhpc.ops.slurm.plan import check, make_plan
    from fedhpc.ops.slurm.records import new_chain
    from fedhpc.ops.slurm.submit import Submitter

    plan = make_plan(site, profile=profile, federation=federation, out=out)
    submitter = Submitter(plan)
    if links and links > 1 and plan.life.kind == "inline":
        raise ConfigError(
            "--links needs a chain, and this site's [life] kind is inline", 'kind = "chained" or "detached"'
        )
    if dry_run:
        click.echo(submitter.script(new_chain(plan.run, plan.site, 0), 1, None), nl=False)
        return
    for note in () if successor else check(plan):
        click.echo(f"note: {note}", err=True)
    chains = Chains(submitter)
    made = chains.follow(successor, links or 1) if successor else chains.begin(links or 1)
    for record in made:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(record), sort_keys=True))
        else:
            click.echo(f"submitted {record.name}, job {record.job}")
    if not as_json and not successor:
        click.echo(f"logs in {plan.jobs}; `fedhpc jobs list {site}` shows how they stand")
