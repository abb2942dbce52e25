"""`fedhpc report` and `fedhpc export`: what a finished or running federation leaves behind."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write to; by default RUN/report.")
@click.option("--json", "as_json", is_flag=True, help="Several runs: one JSON document on standard output.")
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Draw the curves, times and traffic of the run directory RUN; of several, compare them.

    Of one run it writes report.html, one page that holds everything and loads nothing, and the figures as PNG files. It
    works while the run is still going. Of several it prints what came of each and which settings differ.
    """
    import json

    from fedhpc.errors import ConfigError
    from fedhpc.report.report import read_run, write_report

    if len(runs) == 1:
        if as_json:
            raise ConfigError("--json goes with several runs", "`fedhpc status RUN --json` tells of one")
        click.echo(write_report(runs[0], out))
        return
    from fedhpc.report.comparison import compare, comparison_lines

    if out is not None:
        raise ConfigError("--out goes with one run", "a comparison is printed")
    found = compare([read_run(run) for run in runs])
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(comparison_lines(found)))


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
