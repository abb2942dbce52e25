"""`fedhpc site`: a site's side of enrolment. Private keys are made here and never leave."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from fedhpc.cli.ordered import OrderedGroup

_PATH = click.Path(path_type=Path)
_SEND_S = 60.0  # at most, for a relay that cannot be reached when the request is sent


@click.group("site", cls=OrderedGroup)
def site() -> None:
    """Make a site's keys, get its certificate, sign what is agreed: the site engineer's commands.

    \b
    With the line that the coordinator gave you, over a channel that you both trust:
      1. fedhpc site init DIR --name leiden --relay URL --relay-pin PIN
      2. read the fingerprint out to the coordinator
      3. fedhpc site request DIR --token - --wait
      4. fedhpc data ingest … --out DIR/data.h5
      5. fedhpc site approve federation.toml --site DIR, when the coordinator sends it
      6. fedhpc run federation.toml --site DIR
    """


@site.command("init", short_help="Make this site's folder: keys and site.toml.")
@click.argument("directory", metavar="DIR", type=_PATH)
@click.option("--name", required=True, help="The name under which the coordinator invited this site.")
@click.option("--relay", default="", metavar="URL", help="The relay, as the coordinator gave it: https://host:port.")
@click.option("--relay-pin", default="", metavar="PIN", help="The relay's pin, as the coordinator gave it.")
@click.option("--data", default="data.h5", show_default=True, help="The site's store, relative to DIR.")
def init(directory: Path, name: str, relay: str, relay_pin: str, data: str) -> None:
    """Make this site's keys and site.toml in DIR. Nothing is overwritten, nothing is sent."""
    from fedhpc.enrolment.site import SiteFolder

    folder = SiteFolder.new(directory, name, relay=relay, relay_pin=relay_pin, data=data)
    keys = folder.keys()
    click.echo(f"wrote {directory}/site.toml, and sign.key and tls.key (mode 0600): they stay on this machine")
    click.echo(f"sign {keys.sign}\ntls  {keys.tls}")
    click.echo(f"fingerprint of {name}, to be read out to the coordinator:\n  {keys.fingerprint}")
    through = f"`fedhpc site request {directory} --token - --wait`, with the token"
    click.echo(f"next: {through if relay_pin else f'`fedhpc site request {directory}`, and mail what it writes'}")


@site.command("request", short_help="Ask for a certificate, or for its renewal.")
@click.argument("directory", metavar="DIR", type=_PATH)
@click.option("--token", help="The one-time token; - asks for it, or reads it from a pipe. Kept in DIR for renewals.")
@click.option("--wait", is_flag=True, help="Wait for the certificate and keep it.")
@click.option("--mail", is_flag=True, help="Send nothing, although DIR has a token.")
@click.option("--for", "seconds", type=click.FloatRange(1), default=3600.0, show_default=True, help="Seconds to wait.")
def request(directory: Path, token: str | None, wait: bool, mail: bool, seconds: float) -> None:
    """Ask for a certificate: writes DIR/request.json, and with a token sends it to the relay. Without one, mail it.

    The request holds this site's name and public keys, signed with both. Run it again to renew the certificate.
    """
    from fedhpc.enrolment.site import SiteFolder
    from fedhpc.errors import ConfigError, PeersError
    from fedhpc.secure.join_request import split_token

    folder = SiteFolder.open(directory)
    typed = _read_token() if token == "-" else token or folder.token()  # noqa: S105
    halves = split_token(typed.strip()) if typed and not mail else None
    if wait and halves is None:
        raise ConfigError("--wait needs a token", "a mailed request is answered by mail: `fedhpc site certificate`")
    path, data = folder.request(halves)
    click.echo(f"wrote {path}\n  fingerprint {folder.keys().fingerprint}")
    if halves is None:
        click.echo("mail it to the coordinator and read the fingerprint out by telephone")
        return
    mailbox = folder.mailbox(halves, _say_down)
    known = folder.certificate()
    end = time.monotonic() + seconds
    mailbox.send(data, min(_SEND_S, seconds))
    folder.keep_token(typed.strip())
    if not wait:
        click.echo("sent to the relay; once the coordinator has run `fedhpc federation admit`, fetch the certificate:")
        click.echo(f"  fedhpc site request {directory} --wait")
        return
    until = f"at most {seconds:.0f} s; Ctrl-C ends it, and the same command goes on"
    click.echo(f"sent to {mailbox.url}; waiting for the certificate, which comes once the coordinator has run")
    click.echo(f"`fedhpc federation admit` and compared the fingerprint: {until}")
    pem = mailbox.certificate(known, max(end - time.monotonic(), 0.0))
    if pem is None:
        raise PeersError(
            f"no new certificate within {seconds:.0f} s from {mailbox.url}",
            "has the coordinator run `fedhpc federation admit`? the same command goes on waiting",
        )
    click.echo(f"wrote {folder.certificate_path}, good until {folder.take_certificate(pem):%Y-%m-%d}")


def _say_down(reason: str, left_s: float) -> None:
    click.echo(f"waiting for the relay ({reason}), giving up in {left_s:.0f} s", err=True)


def _read_token() -> str:
    """From the keyboard without an echo, or the first line of a pipe or file."""
    if sys.stdin.isatty():
        typed: str = click.prompt("token", hide_input=True, err=True)
        return typed
    return sys.stdin.readline()


@site.command("certificate", short_help="Keep a certificate that came by mail.")
@click.argument("directory", metavar="DIR", type=_PATH)
@click.argument("file", metavar="CERTIFICATE.PEM", type=_PATH)
def certificate(directory: Path, file: Path) -> None:
    """Keep a certificate that came by mail, if it is for this site's own key."""
    from fedhpc.config import read_bytes
    from fedhpc.enrolment.site import SiteFolder

    folder = SiteFolder.open(directory)
    end = folder.take_certificate(read_bytes(file))
    click.echo(f"wrote {folder.certificate_path}, good until {end:%Y-%m-%d}")


@site.command("approve", short_help="Read federation.toml and sign it.")
@click.argument("file", metavar="FEDERATION.TOML", type=_PATH)
@click.option("--site", "site_file", type=_PATH, required=True, help="This site's site.toml, or its folder.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@click.option(
    "--accept-difference",
    "accepted",
    metavar="CLASS",
    multiple=True,
    help="Accept what sums of this class reveal together with earlier ones over other sites.",
)
def approve(file: Path, site_file: Path, yes: bool, accepted: tuple[str, ...]) -> None:
    """Read FEDERATION.TOML and sign it for this site. Nothing runs before all sites have signed the same file.

    If this site's ledger has sums over other sites, it says whose numbers the new ones would reveal, and refuses
    unless the file and --accept-difference name their classes.
    """
    from fedhpc.enrolment.approve import review
    from fedhpc.enrolment.site import SiteFolder
    from fedhpc.errors import PolicyError

    folder = SiteFolder.open(site_file)
    found = review(file, folder)
    for line in found.lines():
        click.echo(line)
    found.refuse_differences(accepted)
    if found.done:
        click.echo(f"{folder.name} has approved it already")
    elif not yes and not click.confirm(f"does {folder.name} sign this?"):
        raise PolicyError("not approved: nothing was signed")
    found.sign(folder, accepted)
    if not found.done:
        click.echo(f"approved by {folder.name}: {folder.approvals.folder}")


@site.command("rotate", short_help="Make new keys, when the old ones were stolen or lost.")
@click.argument("directory", metavar="DIR", type=_PATH)
def rotate(directory: Path) -> None:
    """Make new keys; the old ones are kept as *.old. Then request a certificate for them."""
    from fedhpc.enrolment.site import SiteFolder

    folder = SiteFolder.open(directory)
    old = folder.rotate()
    kept = f"; the old ones are {' and '.join(path.name for path in old)}" if old else ""
    click.echo(f"new keys in {directory}{kept}")
    click.echo(f"  fingerprint {folder.keys().fingerprint}")
    click.echo("next: `fedhpc site request` with a new token; all sites approve the roster that follows")


@site.group("ledger", cls=OrderedGroup, short_help="What this institution has summed, over all its federations.")
def ledger() -> None:
    """What this institution has put into which sums, over all its federations. No numbers are in it."""


_SITE_FILE = click.option("--site", "site_file", type=_PATH, help="The site's site.toml, or its folder.")


@ledger.command("show", short_help="Rounds, classes of sums, and what was refused.")
@_SITE_FILE
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON: entries, classes, refused.")
def ledger_show(site_file: Path | None, as_json: bool) -> None:
    """Show the ledger of a site, or the only one of this user."""
    import json

    from fedhpc.ledger.show import find_home, ledger_json, ledger_lines

    found = ledger_json(find_home(site_file))
    for line in [json.dumps(found, sort_keys=True)] if as_json else ledger_lines(found):
        click.echo(line)


@ledger.command("adopt", short_help="Take over the ledger of a run of fedhpc 0.1.0.")
@click.argument("run", metavar="RUN", type=_PATH)
@_SITE_FILE
@click.option("--federation", type=_PATH, metavar="FEDERATION.TOML", help="What it ran with; else the copy in RUN.")
def ledger_adopt(run: Path, site_file: Path | None, federation: Path | None) -> None:
    """Take over RUN/SITE/ledger.jsonl of fedhpc 0.1.0 into the ledger of each SITE, or of the site given.

    What was summed then counts from now on. Running it again changes nothing.
    """
    from fedhpc.ledger.adopt import adopt, sites_of
    from fedhpc.ledger.show import home_for

    for folder in sites_of(run):
        home = home_for(folder.name, site_file)
        if home is None:
            continue
        done = adopt(home, folder, federation)
        click.echo(f"{done.site}: {done.entries} lines of {folder}, {done.new} new in {done.home}")
