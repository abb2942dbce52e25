"""`fedhpc federation`: the coordinator's side of enrolment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedhpc.cli.ordered import OrderedGroup

if TYPE_CHECKING:
    from fedhpc.enrolment.coordinator import Candidate, Granted

_DIR = click.Path(path_type=Path)
_ACCEPT = click.option(
    "--accept-difference",
    "accept",
    multiple=True,
    metavar="CLASS",
    help="All sites accept by signing what sums of this class show by their difference to those over the old roster: "
    "train, weights, standardise, measured, or a statistic's name. May be repeated.",
)

_FROM_MODEL = click.option(
    "--from-model",
    "model",
    type=_DIR,
    metavar="FILE",
    help="Begin from this safetensors file, which every site is given; its SHA-256 is agreed on.",
)
_PUBLIC = click.option("--public", is_flag=True, help="The file of --from-model is public and no federation made it.")


@click.group("federation", cls=OrderedGroup)
def federation() -> None:
    """Begin a federation of sites that never met, admit and revoke them: the coordinator's commands.

    \b
      1. fedhpc federation new DIR --name heart --relay https://relay.example:8443 --sites leiden,lund,graz
      2. start the relay: fedhpc relay serve DIR/relay/relay.toml
      3. give each site its line; the sites send their requests: fedhpc site --help
      4. fedhpc federation admit DIR
      5. send DIR/federation.toml to all: sites sign it, the relay lets it in: fedhpc relay admit
    """


@federation.command("new", short_help="Begin: a draft of federation.toml, one token for each site.")
@click.argument("directory", metavar="DIR", type=_DIR)
@click.option("--name", required=True, help="The federation's name.")
@click.option(
    "--relay", "url", required=True, metavar="URL", help="Where sites will reach the relay: https://host:port."
)
@click.option(
    "--sites", required=True, metavar="A,B,C", help="Names of the invited sites; their order gives their numbers."
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Training rounds.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the model and of the data order."
)
@click.option(
    "--accept-two-sites",
    "two",
    is_flag=True,
    help="For two sites that trust each other: each learns the other's numbers.",
)
@_FROM_MODEL
@_PUBLIC
def new(
    directory: Path,
    name: str,
    url: str,
    sites: str,
    rounds: int,
    seed: int,
    two: bool,
    model: Path | None,
    public: bool,
) -> None:
    """Begin a federation in DIR: a draft of federation.toml, an enrolment authority and everything for a relay.

    Prints a one-time token for each site. Give each site its own over a channel that both trust, with the relay's
    URL and pin: by telephone, or in person.
    """
    from fedhpc.enrolment.coordinator import Coordinator
    from fedhpc.errors import ConfigError
    from fedhpc.train.start_file import agreed_sha256

    names = [part.strip() for part in sites.split(",")]
    if public and model is None:
        raise ConfigError("--public belongs to --from-model", _PUBLIC_HINT)
    # The task is agreed on later, so the file itself must give the order of its tensors.
    agreed = "" if model is None else agreed_sha256(model, {"name": "module"}, public=public)
    _, pin, tokens = Coordinator.new(
        directory, name, url, names, rounds=rounds, seed=seed, accept_two_sites=two, model=agreed
    )
    click.echo(f"wrote {directory}: federation.toml to be agreed on, authority.key to keep, relay/ for the relay")
    if model is not None:
        click.echo(f"it begins from {model}: give every site the file too, for `fedhpc run --from-model`")
    click.echo("give each site its line; tokens are shown once and work once:")
    for site, token in tokens.items():
        click.echo(f"{site}  token {token}  relay {url}  relay pin {pin}")
    click.echo(f"next: `fedhpc relay serve {directory}/relay/relay.toml`, then `fedhpc federation admit {directory}`")


@federation.command("invite", short_help="A token for one more site, or for new keys of a site.")
@click.argument("directory", metavar="DIR", type=_DIR)
@click.argument("site")
def invite(directory: Path, site: str) -> None:
    """Print a one-time token for SITE: a new site, or one whose keys changed. Its earlier token stops working."""
    from fedhpc.enrolment.coordinator import Coordinator

    coordinator = Coordinator(directory)
    known = coordinator.invited
    token = coordinator.invite(site)
    click.echo(f"{site}  token {token}  relay pin {coordinator.relay_pin}")
    if site in known:
        note = (
            f"{site} was invited before: its earlier token no longer works, its keys stay in the roster until `admit`"
        )
    else:
        note = f"{site} is new beside {', '.join(known)}; if that is a mistake: `fedhpc federation revoke`"
    click.echo(note, err=True)


@federation.command("admit", short_help="Put requests into the roster, issue and renew certificates.")
@click.argument("directory", metavar="DIR", type=_DIR)
@click.argument("requests", metavar="[REQUEST.JSON]...", type=_DIR, nargs=-1)
@click.option(
    "--days", type=click.FloatRange(0.01, 397), default=30.0, show_default=True, help="Lifetime of a certificate."
)
@click.option("--yes", is_flag=True, help="Admit without asking; fingerprints are not compared.")
@click.option("--renew", is_flag=True, help="Only renew certificates that end soon; asks nothing, for cron.")
@_ACCEPT
def admit(
    directory: Path, requests: tuple[Path, ...], days: float, yes: bool, renew: bool, accept: tuple[str, ...]
) -> None:
    """Admit sites: put their keys into the roster and issue their certificates.

    Takes the given requests, or all that came through the relay. A site whose keys are in the roster already just
    gets a new certificate, and federation.toml stays as it is. Compare fingerprints by telephone before you answer yes.
    """
    from fedhpc.enrolment.coordinator import Coordinator
    from fedhpc.errors import FedhpcError

    coordinator = Coordinator(directory)
    taken: list[Candidate] = []
    declined = False
    refused: list[FedhpcError] = []
    for path in requests or coordinator.mailbox():
        try:
            candidate = coordinator.candidate(path, mailed=bool(requests))
        except FedhpcError as error:
            refused.append(error)
            click.echo(f"refused {path}\n{error.lines()}", err=True)
            continue
        skipped = candidate.kind == "current" or (renew and candidate.kind != "renewal")
        if skipped:
            continue
        if _confirmed(candidate, yes=yes):
            taken.append(candidate)
        else:
            declined = True
    if taken:
        granted = coordinator.admit(taken, days, accept=accept)
        for candidate in taken:
            click.echo(f"admitted {candidate.asked.name}: {directory / 'certificates' / candidate.asked.name}.pem")
        _told(directory, granted)
    elif not refused:
        waiting = f"; waiting for {', '.join(coordinator.waiting)}" if coordinator.waiting else ""
        click.echo(f"nobody {'admitted' if declined else 'to admit'}{waiting}")
    if refused:
        raise SystemExit(refused[0].exit_code)


def _confirmed(candidate: Candidate, *, yes: bool) -> bool:
    """Show a candidate, and ask where keys are new."""
    asked, name = candidate.asked, candidate.asked.name
    if candidate.kind == "renewal":
        click.echo(f"site {name}: its keys are in the roster, a new certificate")
        return True
    what = "new keys in place of those in the roster" if candidate.kind == "changed" else "new"
    how = "made with its token" if candidate.proved else "made WITHOUT a token: compare the fingerprint by telephone"
    click.echo(f"site {name}: {what}, {how}\n  fingerprint {asked.fingerprint}")
    return yes or click.confirm("  is this what its engineer reads out?", default=False)


def _told(directory: Path, granted: Granted, *, enrolled: bool = True) -> None:
    """Show the state of the federation, and what comes next."""
    if granted.new_epoch:
        click.echo(f"federation.toml is now epoch {granted.epoch}; the one before is in {directory / 'epochs'}")
    for note in granted.notes:
        click.echo(f"  {note}")
    if granted.waiting:
        click.echo(f"waiting for {', '.join(granted.waiting)}")
    elif granted.problem:
        click.echo(f"federation.toml cannot be used yet: {granted.problem}")
    else:
        click.echo(f"federation.toml, epoch {granted.epoch}, sha256 {granted.hash}")
    if not granted.waiting and not granted.problem and enrolled:
        click.echo("send it to all sites; each runs `fedhpc site approve`, the relay `fedhpc relay admit`")


@federation.command("revoke", short_help="End a site's access at once.")
@click.argument("directory", metavar="DIR", type=_DIR)
@click.argument("site")
@click.option("--reinvite", is_flag=True, help="Only its keys are lost: it keeps its place and gets a new token.")
@_ACCEPT
def revoke(directory: Path, site: str, reinvite: bool, accept: tuple[str, ...]) -> None:
    """End SITE's access at once. Its keys never get a certificate again.

    The running relay refuses its key as soon as it has read the roster again. The site leaves the roster, which all
    others approve as the next epoch; it goes on from the newest model. With --reinvite the site is admitted again with
    new keys first.
    """
    from fedhpc.enrolment.rehearsal import Rehearsal, open_folder
    from fedhpc.errors import ConfigError

    folder = open_folder(directory)
    if isinstance(folder, Rehearsal):
        if reinvite:
            raise ConfigError(
                f"{directory} has no enrolment, so nobody is invited", "give the site another key by hand"
            )
        granted = folder.leave(site, accept)
        click.echo(f"{site} is out of the roster; its site file is sites/{site}.toml.left")
        _told(directory, granted, enrolled=False)
        return
    lost, changed, token = folder.revoke(site, reinvite=reinvite, accept=accept)
    click.echo(f"revoked {site}: its key is out of {len(lost)} federations in relay/roster.toml")
    if changed is None:
        click.echo(f"{site}  token {token}  for its new keys")
    else:
        _told(directory, changed)


@federation.command("next", short_help="Begin the next epoch: go on, or run again.")
@click.argument("directory", metavar="DIR", type=_DIR)
@click.option("--rounds", type=click.IntRange(1), help="Training rounds of the next epoch.  [default: as before]")
@_FROM_MODEL
@_PUBLIC
@click.option("--again", is_flag=True, help="Start over with another seed and the same sites; asks nothing.")
@click.option("--from-scratch", is_flag=True, help="Start over with another seed, although the sites have changed.")
@_ACCEPT
def next_(
    directory: Path,
    rounds: int | None,
    model: Path | None,
    public: bool,
    again: bool,
    from_scratch: bool,
    accept: tuple[str, ...],
) -> None:
    """Begin the next epoch of the federation in DIR. It goes on from the newest model, with a new seed.

    Run this before you change a federation.toml that sites have approved, or to train further or again. DIR is
    the coordinator's folder, or one that `fedhpc new` wrote.
    """
    from fedhpc.enrolment.next_epoch import Beginning
    from fedhpc.enrolment.rehearsal import Rehearsal, open_folder
    from fedhpc.errors import ConfigError

    if (model is not None) + again + from_scratch > 1:
        raise ConfigError("--from-model, --again and --from-scratch exclude each other", "give one of them, or none")
    if public and model is None:
        raise ConfigError("--public belongs to --from-model", _PUBLIC_HINT)
    folder = open_folder(directory)
    beginning = Beginning("again" if again else "scratch" if from_scratch else "previous", "", rounds, accept)
    if model is not None:
        beginning = Beginning("model", _agreed(folder.federation, model, public=public), rounds, accept)
    granted = folder.next_epoch(beginning)
    click.echo(f"federation.toml is now epoch {granted.epoch}, {_BEGINS[beginning.kind]}")
    for note in granted.notes:
        click.echo(f"  {note}")
    if isinstance(folder, Rehearsal):
        click.echo("change it if you like, then run it as before")
    else:
        click.echo("change it if you like, then all sites approve it")


_PUBLIC_HINT = "it says that no federation made that file"
_BEGINS = {
    "previous": "which goes on from the newest model",
    "model": "which begins from the model in the file",
    "again": "which begins anew",
    "scratch": "which begins anew",
}


def _agreed(federation: Path, model: Path, *, public: bool) -> str:
    """The SHA-256 of the model that the next epoch begins from."""
    from fedhpc.config import parse_toml, read_bytes
    from fedhpc.train.start_file import agreed_sha256

    return agreed_sha256(model, parse_toml(read_bytes(federation), str(federation)).get("task", {}), public=public)
