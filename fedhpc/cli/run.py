"""`fedhpc run`: every rank of every site executes it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("federation", type=click.Path(path_type=Path))
@click.option("--sites", type=click.Path(path_type=Path), help="Rehearsal: a directory with one file per site.")
@click.option("--site", type=click.Path(path_type=Path), help="This rank's own site file.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; by default `run` beside FEDERATION.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--verbose", is_flag=True, help="More about what is done.")
def run(
    federation: Path, sites: Path | None, site: Path | None, out: Path | None, as_json: bool, verbose: bool
) -> None:
    """Train the federation of FEDERATION (federation.toml), or continue where its run directory stopped.

    \b
    All sites in one job, ranks dealt by the site files:
      mpirun -n 8 --map-by :OVERSUBSCRIBE python -m mpi4py -m fedhpc run federation.toml --sites sites/
    """
    from fedhpc.ops.run import result_json, run_federation

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
