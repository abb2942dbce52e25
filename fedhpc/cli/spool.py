"""`fedhpc spool`: a directory in place of the relay, for nodes without a route to it."""

from __future__ import annotations

from pathlib import Path

import click

from fedhpc.cli.ordered import OrderedGroup


@click.group("spool", cls=OrderedGroup)
def spool() -> None:
    """Carry a site's messages between its spool directory and the relay.

    \b
    Where nodes have no route, [exchange] kind = "spool" makes the site write to a directory.
    On a machine that has a route and sees the directory (or a copy of it):
      fedhpc spool carry federation.toml --site site.toml --watch
    """


_FEDERATION = click.argument("federation", metavar="FEDERATION.TOML", type=click.Path(path_type=Path))
_SITE = click.option(
    "--site", type=click.Path(path_type=Path), required=True, help="The site: its site.toml, or its folder."
)
_SPOOL = click.option(
    "--spool", "directory", type=click.Path(path_type=Path), help="The spool directory; by default the site file's."
)


@spool.command("carry", short_help="Move what waits, both ways.")
@_FEDERATION
@_SITE
@_SPOOL
@click.option("--watch", is_flag=True, help="Go on until SIGTERM.")
def carry(federation: Path, site: Path, directory: Path | None, watch: bool) -> None:
    """Move what waits in the spool directory to the relay, and bring back what the site waits for.

    Without --watch it ends when there is nothing left to do: for cron, or between two runs of rsync. It needs the
    site's certificate and its key, no other key, and may be killed at any time.
    """
    import signal

    from fedhpc.app.carry import carrier_of

    carrier = carrier_of(federation, site, directory, lambda text: click.echo(f"spool: {text}", err=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: carrier.stop())
    if watch:
        click.echo("spool: carrying")
        carrier.watch()
    else:
        carrier.once()
    click.echo(f"spool: {carrier.carried} carried")


@spool.command("status", short_help="Show what waits to be carried.")
@_FEDERATION
@_SITE
@_SPOOL
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(federation: Path, site: Path, directory: Path | None, as_json: bool) -> None:
    """Show what waits to be carried, and the last sign of life of the carrier."""
    import json
    from dataclasses import asdict

    from fedhpc.app.carry import look

    found = look(federation, site, directory)
    if as_json:
        click.echo(json.dumps(asdict(found) | {"folder": str(found.folder)}))
        return
    click.echo(f"spool {found.folder}")
    for words, names in (
        ("to the relay", found.waiting),
        ("from the relay", found.wanted),
        ("watched", found.watched),
    ):
        click.echo(f"{words}: {', '.join(names) or 'nothing'}")
    life = found.carrier
    if life is None:
        click.echo("carrier: none was ever seen")
    else:
        state = "ended" if life.ended else "last sign of life"
        click.echo(f"carrier: {life.host}, process {life.pid}, {state} {life.at}")
        if life.trouble:
            click.echo(f"trouble: {life.trouble}")
    site_words = "never seen" if found.site is None else "left" if found.site.ended else "waits, or was killed"
    click.echo(f"site: {site_words}")
