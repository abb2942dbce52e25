"""`fedhpc run`: every rank of every site executes it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("federation", metavar="FEDERATION.TOML", type=click.Path(path_type=Path))
@click.option(
    "--sites", type=click.Path(path_type=Path), help="All sites in this job: the directory with their site files."
)
@click.option("--site", type=click.Path(path_type=Path), help="One site in this job: its site file, or its folder.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; by default `run` beside FEDERATION.TOML.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--verbose", is_flag=True, help="More about what is done.")
def run(
    federation: Path, sites: Path | None, site: Path | None, out: Path | None, as_json: bool, verbose: bool
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
    """
    from fedhpc.ops.run import result_json, run_federation

    if site is not None and site.is_dir():
        site = site / "site.toml"
    ran = run_federation(federation, sites=sites, site=site, out=out, verbose=verbose)
    if not ran.first:
        return
    outcome = ran.outcome
    shown = ", ".join(f"{n} {'-' if v is None else f'{v:.4f}'}" for n, v in outcome.metrics.items())
    click.echo(f"final model: {shown}")
    click.echo(f"sha256 {ran.model_sha256}")
    click.echo(f"run directory {ran.directory}")
    if as_json:
        click.echo(result_json(ran))
