"""`fedhpc relay`: the meeting point of sites that share no MPI job."""

from __future__ import annotations

from pathlib import Path

import click

from fedhpc.errors import ConfigError


@click.group("relay")
def relay() -> None:
    """Run the relay that sites dial out to."""


@relay.command("serve")
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
    from fedhpc.relay.admin import start_admin
    from fedhpc.relay.server import RelayServer
    from fedhpc.relay.settings import read_settings, split_address

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
        words += f", admin port {start_admin(server, *split_address(settings.admin, 'relay.admin'))}"
    click.echo(words)
    server.serve()
    click.echo("relay: stopped")
