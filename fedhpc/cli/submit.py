"""`fedhpc submit`: puts a site's job into its batch queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fedhpc.slurm.measured import Measured
    from fedhpc.slurm.plan import Plan
    from fedhpc.slurm.records import Record


@click.command()
@click.argument("site", metavar="SITE.TOML", type=click.Path(path_type=Path))
@click.argument("command", metavar="[-- BENCH WORDS]", nargs=-1)
@click.option("--profile", metavar="NAME", help="The cluster: a file of jobs/profiles; overrides [slurm] profile.")
@click.option(
    "--federation",
    "federations",
    type=click.Path(path_type=Path),
    multiple=True,
    help="By default beside SITE.TOML, or one folder up. Several for --shape array.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; by default `run` beside federation.toml.")
@click.option(
    "--container",
    metavar="IMAGE",
    type=click.Path(path_type=Path),
    help="The image that the jobs run in, such as a SIF file; overrides [slurm.container] image.",
)
@click.option("--dry-run", is_flag=True, help="Print the batch script of the first job, and do nothing.")
@click.option(
    "--links", type=click.IntRange(1, 1000), help="How many jobs of the chain to submit at once; by default 1."
)
@click.option(
    "--shape",
    type=click.Choice(["site", "rehearsal", "multiprog", "array", "hetjob", "relay", "bench"]),
    default="site",
    help="What the job holds; by default this site.",
)
@click.option("--sites", type=click.Path(path_type=Path), help="rehearsal, multiprog, array: folder of all site files.")
@click.option("--relay", type=click.Path(path_type=Path), help="relay: its relay.toml.")
@click.option("--suite", type=click.Path(path_type=Path), help="bench: the ReFrame suite; by default this tree's.")
@click.option(
    "--tag", "tags", multiple=True, help="bench: checks of the suite: smoke, own (by default), large, a name."
)
@click.option("--at-once", type=click.IntRange(1), help="array: most tasks at the same time.")
@click.option("--successor", metavar="NAME", help="For a running job: submit the links after NAME.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each job.")
def submit(
    site: Path,
    command: tuple[str, ...],
    profile: str | None,
    federations: tuple[Path, ...],
    out: Path | None,
    container: Path | None,
    dry_run: bool,
    links: int | None,
    shape: str,
    sites: Path | None,
    relay: Path | None,
    suite: Path | None,
    tags: tuple[str, ...],
    at_once: int | None,
    successor: str | None,
    as_json: bool,
) -> None:
    """Submit the site of SITE.TOML to the Slurm queue, as its [slurm] and [life] say.

    \b
    fedhpc submit --profile snellius site.toml --dry-run     # look at the script first
    fedhpc submit --profile snellius site.toml

    Shapes other than one site: rehearsal (all sites in one MPI job), multiprog (the same by srun --multi-prog), array
    (a rehearsal for each federation.toml), hetjob (this site, and a carrier for its spool in [slurm.exchange]'s
    partition), relay, bench (the ReFrame suite over the nodes of the job; or after --, one command of `fedhpc bench`).

    \b
    fedhpc submit site.toml --shape bench -- sum --sites 4 --params 100000000
    """
    import shlex
    from typing import cast

    from fedhpc.errors import ConfigError
    from fedhpc.slurm.image import image_of
    from fedhpc.slurm.job_chain import Chains
    from fedhpc.slurm.plan import check, make_plan
    from fedhpc.slurm.records import Records
    from fedhpc.slurm.scripts import Kind, Shape
    from fedhpc.slurm.submit import Submitter

    if len(federations) > 1 and shape != "array":
        raise ConfigError("several --federation", "only an array has more than one")
    plan = make_plan(site, profile=profile, federation=next(iter(federations), None), out=out, container=container)
    held = Shape(
        kind=cast(Kind, shape),
        sites=sites and sites.absolute(),
        federations=tuple(path.absolute() for path in federations),
        relay=relay and relay.absolute(),
        at_once=at_once or 0,
        measured=_measured(shape, command, suite, tags, {"--sites": sites, "--relay": relay, "--at-once": at_once}),
    )
    _refuse_other_lives(plan, shape, links)
    before = Records(plan.jobs).get(successor) if successor else None
    # A chain keeps the image that it began with, also none: the running job has just compared it.
    image = None if before and not before.container else image_of(plan, before.container if before else "")
    submitter = Submitter(plan, held, image=image)
    if dry_run:
        if cluster := submitter.cluster():
            click.echo(f"note: sbatch gets it with --clusters={cluster}", err=True)
        click.echo(submitter.script("00000000", 1, None), nl=False)
        return
    for note in () if successor else check(plan, one_site=shape in ("site", "hetjob")):
        click.echo(f"note: {note}", err=True)
    chains = Chains(submitter)
    made = chains.follow(successor, links or 1) if successor else chains.begin(links or 1)
    for record in made:
        _tell(record, as_json=as_json)
    if not as_json and not successor:
        given = [("--federation", path) for path in federations[:1]] + ([("--out", out)] if out else [])
        words = ["fedhpc", "jobs", "list", str(site), *(word for name, path in given for word in (name, str(path)))]
        click.echo(f"logs in {plan.jobs}; `{shlex.join(words)}` shows how they stand")


def _measured(
    shape: str, command: tuple[str, ...], suite: Path | None, tags: tuple[str, ...], of_others: dict[str, object]
) -> Measured | None:
    """What a benchmark's job measures; None for other shapes. `of_others`: options of those. Raises ConfigError."""
    from fedhpc.errors import ConfigError

    if shape != "bench":
        if command or suite or tags:
            raise ConfigError("--suite, --tag and words after -- belong to a benchmark", "--shape bench")
        return None
    _refuse_words_of_others(command, of_others)
    from fedhpc.cli.bench_words import measured_command, suite_folder
    from fedhpc.slurm.measured import Measured

    if command:
        if suite or tags:
            raise ConfigError("a benchmark's job runs the suite, or one command", "leave --suite and --tag out")
        return measured_command(command)
    return Measured(suite=suite_folder(suite), tags=tags or ("own",))


def _refuse_words_of_others(command: tuple[str, ...], options: dict[str, object]) -> None:
    """Raises ConfigError: without -- words of `fedhpc bench` are this command's, and something else is measured."""
    from fedhpc.errors import ConfigError

    given = [name for name, value in options.items() if value is not None]
    if given:
        said = f", such as -- {command[0]} {given[0]} …" if command else ""
        raise ConfigError(
            f"{', '.join(given)}: of other shapes than bench", f"words of `fedhpc bench` come after --{said}"
        )


def _refuse_other_lives(plan: Plan, shape: str, links: int | None) -> None:
    """Raises ConfigError where the site file does not fit what is asked for."""
    from fedhpc.errors import ConfigError

    if links and links > 1 and (plan.life.kind == "inline" or shape not in ("site", "hetjob")):
        raise ConfigError("--links needs a chain, which only a site has", '[life] kind = "chained" or "detached"')
    if shape == "hetjob" and plan.site_file.exchange.kind != "spool":
        raise ConfigError("a heterogeneous job carries a spool", '[exchange] kind = "spool"')


def _tell(record: Record, *, as_json: bool) -> None:
    import dataclasses
    import json

    if as_json:
        click.echo(json.dumps(dataclasses.asdict(record), sort_keys=True))
    else:
        where = f" on cluster {record.cluster}" if record.cluster else ""
        click.echo(f"submitted {record.name}, job {record.job}{where}")
