"""`fedhpc predict` and `fedhpc evaluate`: an exported model on a store of one's own, on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(path_type=Path)


def _model_and_rows(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--task-source", "source", type=_FILE, metavar="FILE", help="The file of a task of your own."),
        click.option("--federation", type=_FILE, metavar="FILE", help="Says [task] where MODEL does not."),
        click.option("--data", type=_FILE, required=True, metavar="STORE", help="The store with the rows."),
    ):
        command = option(command)
    return click.argument("model", type=_FILE)(command)


@click.command(short_help="Scores of a store's rows by an exported model.")
@_model_and_rows
@click.option("--out", type=_FILE, required=True, metavar="CSV", help="Where the scores go: row_id, score.")
@click.option("--force", is_flag=True, help="Overwrite CSV if it exists.")
def predict(model: Path, data: Path, federation: Path | None, source: Path | None, out: Path, force: bool) -> None:
    """Write a score for every row of STORE by MODEL, a file of `fedhpc export`.

    A score is the probability of class 1; with more classes there is a column for each. Rows have the identifiers of
    the store, keyed hashes of those in the source. Scores are data of single persons: they stay at the site.
    """
    from fedhpc.data.written_over import refuse_written_over
    from fedhpc.errors import ConfigError
    from fedhpc.report.row_scores import write_scores
    from fedhpc.train.exported import open_scorer, read_exported

    if out.exists() and not force:
        raise ConfigError(f"{out} exists", "choose another name, or overwrite it with --force")
    refuse_written_over(out, model, data)
    rows = write_scores(open_scorer(read_exported(model, federation), data, source), out)
    click.echo(f"wrote {out}: scores of {rows} rows")


@click.command(short_help="Metrics of an exported model on a store.")
@_model_and_rows
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def evaluate(model: Path, data: Path, federation: Path | None, source: Path | None, as_json: bool) -> None:
    """Measure MODEL, a file of `fedhpc export`, on all rows of STORE.

    Intervals are of 95 %: Wilson's for the accuracy, Hanley and McNeil's for the AUC; other metrics have none.
    """
    import json

    from fedhpc.train.evaluate import summarise
    from fedhpc.train.exported import open_scorer, read_exported
    from fedhpc.train.intervals import with_intervals

    sums = open_scorer(read_exported(model, federation), data, source).sums()
    found = with_intervals(summarise(sums), sums)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{int(sums['n'])} rows")
    for name, metric in found.items():
        click.echo(f"  {name} {_shown(metric)}")


def _shown(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "not defined"
    limits = "" if metric["low"] is None else f" ({metric['low']:.4f} to {metric['high']:.4f})"
    return f"{metric['value']:.4f}{limits}"
