"""`fedhpc site`: a site's side of enrolment. Private keys are made here and never leave."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.group("site")
def site() -> None:
    """Make a site's keys, ask for its certificate, approve a configuration: the site engineer's commands."""


@site.command("init")
@click.argument("directory", metavar="DIR", type=_PATH)
@click.option("--name", required=True, help="The name under which the coordinator invited this site.")
@click.option("--relay", default="", metavar="URL", help="The relay, as the coordinator told: https://host:port.")
@click.option("--relay-pin", default="", metavar="PIN", help="The relay's pin, as the coordinator told.")
@click.option("--data", default="data.h5", show_default=True, help="The site's store, seen from DIR.")
def init(directory: Path, name: str, relay: str, relay_pin: str, data: str) -> None:
    """Make this site's keys and site.toml in DIR. Nothing is overwritten, nothing is sent."""
    from fedhpc.ops.enrolment.site import SiteFolder

    folder = SiteFolder.new(directory, name, relay=relay, relay_pin=relay_pin, data=data)
    keys = folder.keys()
    click.echo(f"wrote {directory}/site.toml, and sign.key and tls.key (mode 0600): they stay on this machine")
    click.echo(f"sign {keys.sign}\ntls  {keys.tls}")
    click.echo(f"fingerprint of {name}, to be read out to the coordinator:\n  {keys.fingerprint}")


@site.command("request")
@click.argument("directory", metavar="DIR", type=_PATH)
@click.option("--token", help="The one-time token; - asks for it. It is kept in DIR for renewals.")
@click.option("--wait", is_flag=True, help="Wait for the certificate and keep it.")
@click.option("--mail", is_flag=True, help="Send nothing, although DIR has a token.")
@click.option("--for", "seconds", type=click.FloatRange(1), default=3600.0, show_default=True, help="Seconds to wait.")
def request(directory: Path, token: str | None, wait: bool, mail: bool, seconds: float) -> None:
    """Ask for a certificate: writes DIR/request.json, and with a token sends it to the relay. Without one, mail it.

    The request holds this site's name and public keys, signed with both. Run it again to renew the certificate.
    """
    from fedhpc.errors import ConfigError, PeersError
    from fedhpc.ops.enrolment.site import SiteFolder
    from fedhpc.secure.enrolment import split_token

    folder = SiteFolder.open(directory)
    typed = click.prompt("token", hide_input=True, err=True) if token == "-" else token or folder.token()  # noqa: S105
    halves = split_token(typed.strip()) if typed and not mail else None
    if wait and halves is None:
        raise ConfigError("--wait needs a token", "a mailed request is answered by mail: `fedhpc site certificate`")
    path, data = folder.request(halves)
    click.echo(f"wrote {path}\n  fingerprint {folder.keys().fingerprint}")
    if halves is None:
        click.echo("mail it to the coordinator and read the fingerprint out by telephone")
        return
    mailbox = folder.mailbox(halves)
    known = folder.certificate()
    mailbox.send(data)
    folder.keep_token(typed.strip())
    click.echo("sent to the relay; the coordinator runs `fedhpc federation admit`")
    if not wait:
        return
    pem = mailbox.certificate(known, seconds)
    if pem is None:
        raise PeersError(f"no new certificate within {seconds:.0f} s", "run the same command again to go on waiting")
    click.echo(f"wrote {folder.certificate_path}, good until {folder.take_certificate(pem):%Y-%m-%d}")


@site.command("certificate")
@click.argument("directory", metavar="DIR", type=_PATH)
@click.argument("file", metavar="CERTIFICATE.PEM", type=_PATH)
def certificate(directory: Path, file: Path) -> None:
    """Keep a certificate that came by mail, if it is for this site's own key."""
    from fedhpc.config import read_bytes
    from fedhpc.ops.enrolment.site import SiteFolder

    folder = SiteFolder.open(directory)
    end = folder.take_certificate(read_bytes(file))
    click.echo(f"wrote {folder.certificate_path}, good until {end:%Y-%m-%d}")


@site.command("approve")
@click.argument("file", metavar="FEDERATION.TOML", type=_PATH)
@click.option("--site", "site_file", type=_PATH, required=True, help="This site's site.toml, or its folder.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
def approve(file: Path, site_file: Path, yes: bool) -> None:
    """Read FEDERATION.TOML and sign it for this site. Nothing runs before all sites have signed the same file."""
    from fedhpc.errors import PolicyError
    from fedhpc.ops.enrolment.approve import review
    from fedhpc.ops.enrolment.site import SiteFolder

    folder = SiteFolder.open(site_file)
    found = review(file, folder)
    for line in found.lines():
        click.echo(line)
    if found.done:
        click.echo(f"{folder.name} has approved it already")
    elif not yes and not click.confirm(f"does {folder.name} sign this?"):
        raise PolicyError("not approved: nothing was signed")
    found.sign(folder)
    if not found.done:
        click.echo(f"approved by {folder.name}: {folder.approvals.folder}")


@site.command("rotate")
@click.argument("directory", metavar="DIR", type=_PATH)
def rotate(directory: Path) -> None:
    """Make new keys; the old ones are kept as *.old. Then request a certificate for them."""
    from fedhpc.ops.enrolment.site import SiteFolder

    folder = SiteFolder.open(directory)
    old = folder.rotate()
    click.echo(f"new keys in {directory}; the old ones are {' and '.join(path.name for path in old)}")
    click.echo(f"  fingerprint {folder.keys().fingerprint}")
    click.echo("next: `fedhpc site request` with a new token; all sites approve the roster that follows")
