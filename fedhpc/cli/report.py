"""`fedhpc report` and `fedhpc export`: what a finished or running federation leaves behind."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write to; by default RUN/report.")
def report(run: Path, out: Path | None) -> None:
    """Draw the curves, times and traffic of the run directory RUN.

    Writes report.html, one page that holds everything and loads nothing, and the figures as PNG files. It works
    while the run is still going.
    """
    from fedhpc.report.report import write_report

    click.echo(write_report(run, out))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@click.option("--best", is_flag=True, help="The best round's model, by [train] keep, instead of the newest.")
@click.option("--round", "round_", type=click.IntRange(min=0), help="The model after this round, if it is still kept.")
@click.option("--site", help="From this site's checkpoints, with its own tensors of [train] personal.")
@click.option("--card", type=click.Path(path_type=Path, dir_okay=False), help="Also a model card, in Markdown.")
def export(
    run: Path, file: Path, force: bool, best: bool, round_: int | None, site: str | None, card: Path | None
) -> None:
    """Write the newest model of the run directory RUN to FILE, in the safetensors format."""
    from fedhpc.errors import ConfigError
    from fedhpc.report.export import export_model

    if best and round_ is not None:
        raise ConfigError("--best and --round were both given", "give one of them")
    done = export_model(run, file, force=force, best=best, round_=round_, site=site, card=card)
    click.echo(
        f"{done['file']}: round {done['round']}, {done['tensors']} tensors, {done['parameters']} parameters, "
        f"{done['bytes']} bytes, from the checkpoint of {done['site']}\nmodel_sha256 {done['model_sha256']}"
    )
    if card is not None:
        click.echo(f"model card {card}")
