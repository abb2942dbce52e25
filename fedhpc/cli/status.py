"""`fedhpc status`: how far a run is, read from its directory."""

from __future__ import annotations

from pathlib import Path

import click

from fedhpc.errors import ConfigError


@click.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--site", type=click.Path(path_type=Path), help="Only this site: its site file, or its folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(run: Path | None, site: Path | None, as_json: bool) -> None:
    """Show how far the sites of the run directory RUN are: training rounds done, and the hash of the model.

    Both are those that run, report, export and metrics.jsonl show, and model_sha256 is equal at all sites. It reads
    only files, also during a run. Where the rounds stand between the sites: `fedhpc relay status`.
    """
    import json

    from fedhpc.report.site_status import status_of_run, status_of_site, status_text

    if site is not None:
        found = status_of_site(site, run)
    elif run is not None:
        found = status_of_run(run)
    else:
        raise ConfigError("nothing to show", "give the run directory, or --site SITE.TOML")
    click.echo(json.dumps(found, sort_keys=True) if as_json else status_text(found))
