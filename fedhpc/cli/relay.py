"""`fedhpc relay`: the meeting point of sites that share no MPI job."""

from __future__ import annotations

from pathlib import Path

import click

from fedhpc.cli.ordered import OrderedGroup
from fedhpc.errors import ConfigError


@click.group("relay", cls=OrderedGroup)
def relay() -> None:
    """Run the relay that sites dial out to, choose whom it serves, and see where the rounds stand.

    \b
    `fedhpc federation new DIR` wrote the relay's folder; it may be moved to another machine.
      1. fedhpc relay serve DIR/relay/relay.toml
      2. fedhpc relay admit federation.toml --relay DIR/relay/relay.toml
      3. fedhpc relay status
    """


@relay.command("serve", short_help="Serve until SIGTERM.")
@click.argument("file", metavar="RELAY.TOML", type=click.Path(path_type=Path))
@click.option("--verbose", "-v", is_flag=True, help="Log every refusal.")
def serve(file: Path, verbose: bool) -> None:
    """Serve the relay of RELAY.TOML until SIGTERM; SIGHUP reads the roster again."""
    import logging
    import os
    import signal

    try:
        import h11  # noqa: F401
    except ImportError:
        raise ConfigError("the relay needs the package h11", "pip install 'fedhpc[relay]'") from None
    from fedhpc import __version__
    from fedhpc.relay.http.server import RelayServer
    from fedhpc.relay.settings import read_settings
    from fedhpc.relay.status.admin import start_admin

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    os.umask(0o077)
    settings, limits = read_settings(file)
    server = RelayServer(settings, limits)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    signal.signal(signal.SIGHUP, lambda *_: server.reload())
    words = f"relay: listening on port {server.port}, {len(server.roster.federations)} federations"
    if settings.admin:
        words += f", admin port {start_admin(server, settings, limits, __version__)}"
    click.echo(words)
    server.serve()
    click.echo("relay: stopped")


_RELAY = click.option(
    "--relay",
    "file",
    metavar="RELAY.TOML",
    type=click.Path(path_type=Path),
    required=True,
    help="The relay's settings.",
)


@relay.command("admit", short_help="Let a federation in.")
@click.argument("federation", metavar="FEDERATION.TOML", type=click.Path(path_type=Path))
@_RELAY
@click.option("--bytes", "quota", type=click.IntRange(1), help="Disk for its objects; by default 64 GiB.")
@click.option("--objects", type=click.IntRange(1), help="How many objects it may keep; by default 100000.")
@click.option(
    "--durable",
    type=click.Choice(("disk", "memory")),
    default="disk",
    show_default=True,
    help="memory: its vectors are not synced; a reboot has sites send them again.",
)
def admit(federation: Path, file: Path, quota: int | None, objects: int | None, durable: str) -> None:
    """Let the federation of FEDERATION.TOML in. A running relay serves it a moment later."""
    from fedhpc.enrolment.relay import BYTES, OBJECTS
    from fedhpc.enrolment.relay import admit as admit_federation

    agreement, changed = admit_federation(
        federation, file, quota_bytes=quota or BYTES, objects=objects or OBJECTS, durable=durable
    )
    words = "admitted" if changed else "admitted already, nothing changed:"
    click.echo(f"{words} {agreement.federation.name}, {len(agreement.roster)} sites, {agreement.hash.hex()}")


@relay.command("status", short_help="Show where the rounds stand and who is late.")
@click.argument("federation", metavar="[FEDERATION.TOML]", type=click.Path(path_type=Path), required=False)
@click.option("--admin", default="127.0.0.1:9443", show_default=True, metavar="HOST:PORT", help="The admin port.")
@click.option("--site", type=click.Path(path_type=Path), help="Ask as a site instead: its site.toml, or its folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with all numbers.")
@click.option("--watch", is_flag=True, help="Repeat every 2 s until interrupted.")
def status(federation: Path | None, admin: str, site: Path | None, as_json: bool, watch: bool) -> None:
    """Show where the rounds stand and who is late.

    Also how long each phase of the last rounds took, and what needs attention. On the relay's machine it asks the
    admin port. With --site a site asks about its federation, FEDERATION.TOML.
    """
    if (site is None) != (federation is None):
        raise ConfigError(
            "a site's view needs both --site and FEDERATION.TOML", "without both, the admin port is asked"
        )
    from fedhpc.report.relay_status import SiteView, ask_admin
    from fedhpc.report.relay_table import show

    if site is not None and federation is not None:
        show(SiteView(site, federation).ask, as_json=as_json, watch=watch)
    else:
        show(lambda: ask_admin(admin), as_json=as_json, watch=watch)


@relay.command("drop", short_help="Stop serving a federation.")
@click.argument("config", metavar="HASH|FEDERATION.TOML")
@_RELAY
def drop(config: str, file: Path) -> None:
    """Stop serving a federation: the one of FEDERATION.TOML, or the one whose file has the SHA-256 HASH."""
    from hashlib import sha256

    from fedhpc.config import read_bytes
    from fedhpc.enrolment.relay import drop as drop_federation

    if Path(config).is_file():
        config = sha256(read_bytes(Path(config))).hexdigest()
    drop_federation(config, file)
    click.echo(f"dropped {config}")
