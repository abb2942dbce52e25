"""The coordinator's folder: begins a federation, admits sites on their requests, revokes them.

DIR/federation.toml        what all sites will sign; below its line the roster grows
DIR/authority.{key,pem}    issues the sites' short-lived TLS certificates
DIR/invitations.toml       who is invited (mode 0600)
DIR/certificates/          a copy of each certificate issued
DIR/epochs/                federation.toml of earlier epochs
DIR/relay/                 everything that a relay needs; may lie on another machine
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedhpc.agreement.federation_file import read_agreement
from fedhpc.agreement.roster import check_name
from fedhpc.config import read_bytes
from fedhpc.enrolment.certificates import Issued, issue, issue_new, new_authority
from fedhpc.enrolment.draft import Draft, new_draft
from fedhpc.enrolment.fingerprints import Asked, read_asked
from fedhpc.enrolment.invitations import Invitations
from fedhpc.enrolment.next_epoch import Beginning, Epochs, following
from fedhpc.errors import ConfigError, FedhpcError, PolicyError, StorageError
from fedhpc.files import write_whole
from fedhpc.relay.roster_file import drop_pin
from fedhpc.secure.join_request import MAX_REQUEST_BYTES, UNPROVED
from fedhpc.transport.https.addresses import parse_url
from fedhpc.wire.pins import pin_of, read_certificate, require_private

AUTHORITY_DAYS = 3650.0  # also of the relay's certificate: what counts is its key, which the sites sign
_RENEW_BELOW = 1 / 3  # of a certificate's life: then `admit` without files renews it

_RELAY = """\
# The relay of {name}: `fedhpc relay serve relay.toml`. Paths are relative to this file.

[relay]
listen = "{address}:{port}"
# admin = "127.0.0.1:9443"   # for you, on this machine only: `fedhpc relay status`, a page for the browser, metrics
store = "store"
certificate = "relay.pem"
key = "relay.key"
client_authorities = ["authority.pem"]
roster = "roster.toml"
tokens = "tokens.toml"       # who may ask for a certificate
enrolment = "enrolment"      # the mailbox: their requests, and the certificates for them
"""

Kind = Literal["new", "changed", "renewal", "current"]


@dataclass(frozen=True)
class Candidate:
    """A request that passed every check, and what granting it would mean."""

    asked: Asked
    kind: Kind  # current: has a certificate with enough life left, nothing to do
    proved: bool  # made with the token of this site


@dataclass(frozen=True)
class Granted:
    """The state of the federation after a change of its roster."""

    waiting: tuple[str, ...]  # invited, not admitted yet
    epoch: int
    hash: str  # of federation.toml as it is now, hex
    new_epoch: bool
    problem: str  # why it cannot be used as it is; empty if it can
    notes: tuple[str, ...] = ()  # what a new epoch changed and what sites will be asked


class Coordinator:
    """The folder of one federation's coordinator."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if `folder` is not a coordinator's."""
        self.folder = folder
        self.federation = folder / "federation.toml"
        self.relay = folder / "relay"
        self._invitations = Invitations.read(folder / "invitations.toml", self.relay / "tokens.toml")
        self._epochs = Epochs(folder / "epochs")

    @classmethod
    def new(
        cls,
        folder: Path,
        name: str,
        relay_url: str,
        sites: Sequence[str],
        *,
        rounds: int,
        seed: int = 0,
        accept_two_sites: bool = False,
        model: str = "",
    ) -> tuple[Coordinator, str, dict[str, str]]:
        """Begin a federation in a new folder; also the relay's pin and each site's token, which are shown once.

        `model`: SHA-256 of the model that it begins from, hex. `accept_two_sites`: for two that trust each other, since
        each can compute the other's numbers. Raises ConfigError (names, URL, folder is not empty), PolicyError (two
        sites), StorageError.
        """
        check_name(name, "--name")
        host = parse_url(relay_url, "https", "--relay")
        for site in sites:
            check_name(site, "--sites")
        if len(set(sites)) < len(sites) or len(sites) < 2:
            raise ConfigError("--sites needs at least two different names", "write them as a,b,c")
        if len(sites) == 2 and not accept_two_sites:
            raise PolicyError(
                "two sites with masking on: from the sum each can compute the other's numbers",
                "invite a third site, or say --accept-two-sites for two that trust each other",
            )
        relay_folder = folder / "relay"
        try:
            if folder.exists() and any(folder.iterdir()):
                raise ConfigError(f"{folder} is not empty", "choose another directory; nothing was changed")
            for path in (folder, relay_folder, relay_folder / "enrolment", folder / "certificates"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {error.strerror}", "choose another directory") from None
        authority = new_authority(f"{name} enrolment", AUTHORITY_DAYS)
        relay = issue_new(authority, host.hostname or "relay", AUTHORITY_DAYS)
        authority.write(folder, "authority")
        relay.write(relay_folder, "relay")
        invitations = Invitations(folder / "invitations.toml", relay_folder / "tokens.toml")
        tokens = {site: invitations.invite(site) for site in sites}
        write_whole(relay_folder / "authority.pem", authority.certificate)
        address = "127.0.0.1" if host.hostname in ("127.0.0.1", "localhost") else "0.0.0.0"  # noqa: S104
        write_whole(relay_folder / "relay.toml", _RELAY.format(name=name, address=address, port=host.port).encode())
        write_whole(relay_folder / "roster.toml", b"")
        draft = Draft.read(new_draft(name, relay.pin().hex(), rounds, seed, sites))
        if len(sites) == 2:
            draft = draft.with_value("secure", "accept_two_sites", True, "   # each can compute the other's numbers")
        if model:
            draft = draft.with_roster(list(draft.roster.values()), {"model": model})
        write_whole(folder / "federation.toml", draft.source)
        invitations.save()
        return cls(folder), relay.pin().hex(), tokens

    @property
    def relay_pin(self) -> str:
        """Pin of the relay's key, hex."""
        return pin_of(read_certificate(self.relay / "relay.pem")).hex()

    @property
    def invited(self) -> tuple[str, ...]:
        """Names of the invited sites, in the order of the roster."""
        return tuple(self._invitations.invited)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Invited sites that were not admitted yet."""
        return self._waiting(Draft.read(read_bytes(self.federation)))

    def mailbox(self) -> list[Path]:
        """Requests that came through the relay."""
        return sorted((self.relay / "enrolment").glob("*.request"))

    def candidate(self, path: Path, *, mailed: bool) -> Candidate:
        """Check the request in a file. Raises PolicyError that says what is wrong with it."""
        try:
            with path.open("rb") as file:
                asked = read_asked(file.read(MAX_REQUEST_BYTES + 1))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        name, roster = asked.name, Draft.read(read_bytes(self.federation)).roster
        self._invitations.check_allowed(name, asked.sign, asked.tls)
        proved = asked.request.proved_by(self._invitations.invited[name])
        known = roster.get(name, {})
        kind: Kind = "changed" if "sign" in known else "new"
        if (known.get("sign"), known.get("tls")) == (asked.sign, asked.tls):
            kind = "renewal" if mailed or self._needs_renewal(asked) else "current"
        if kind in ("new", "changed") and not proved and not (mailed and asked.request.proof == UNPROVED):
            raise PolicyError(
                f"the request of site {name} was not made with its current token",
                f"give its engineer a new one: `fedhpc federation invite {self.folder} {name}`",
            )
        for other, entry in roster.items():
            if other != name and {asked.sign, asked.tls} & {entry.get("sign"), entry.get("tls")}:
                raise PolicyError(f"site {name} asks with a key of site {other}", "every site makes its own keys")
        return Candidate(asked, kind, proved)

    def admit(self, candidates: Sequence[Candidate], days: float, *, accept: Sequence[str] = ()) -> Granted:
        """Write the roster with the candidates in it, then their certificates; nothing if a check fails.

        `accept`: as in `Beginning`, where it is a new epoch. Raises ConfigError (the file that would come out is not
        usable), PolicyError, StorageError.
        """
        draft = Draft.read(read_bytes(self.federation))
        entries = draft.roster
        for candidate in candidates:
            asked = candidate.asked
            before = entries.get(asked.name, {})
            entries[asked.name] = before | {"name": asked.name, "sign": asked.sign, "tls": asked.tls}
            # Ledgers know a site by its first key, so new keys do not make it another site.
            first = before.get("first_sign") or before.get("sign", asked.sign)
            if first != asked.sign:
                entries[asked.name]["first_sign"] = first
        granted = self._write_roster(draft, entries, accept)
        authority = self._authority()
        for candidate in candidates:
            certificate = issue(authority, candidate.asked.csr, days)
            for path in self._certificates(candidate.asked.name):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, certificate)
        return granted

    def invite(self, name: str) -> str:
        """A token for a new site, or a new one for a site whose keys changed. Its mailbox is emptied."""
        token = self._invitations.invite(name)
        self._empty_mailbox(name)
        self._invitations.save()
        return token

    def revoke(self, name: str, *, reinvite: bool, accept: Sequence[str] = ()) -> tuple[list[str], Granted | None, str]:
        """End a site's access: its key leaves the relay's roster at once and never gets a certificate again.

        With `reinvite` the site keeps its place until it is admitted with new keys, and gets a token; else it leaves
        the roster, which is a new epoch (`accept`: as in `Beginning`). Gives (federations at the relay that had the
        key, the new roster, the token).
        """
        draft = Draft.read(read_bytes(self.federation))
        entries = draft.roster
        if name not in entries and name not in self._invitations.invited:
            raise ConfigError(f"no site '{name}' was invited", f"invited: {', '.join(self._invitations.invited)}")
        entry = entries.get(name, {})
        pin = str(entry.get("tls", ""))
        lost = drop_pin(self.relay / "roster.toml", pin) if pin and (self.relay / "roster.toml").exists() else []
        self._invitations.refused |= {str(entry[key]): name for key in ("sign", "tls") if entry.get(key)}
        for path in self._certificates(name):
            path.unlink(missing_ok=True)
        self._empty_mailbox(name)
        if reinvite:
            return lost, None, self.invite(name)
        self._invitations.forget(name)
        self._invitations.save()
        entries.pop(name, None)
        return lost, self._write_roster(draft, entries, accept, checked=False), ""

    def next_epoch(self, beginning: Beginning = Beginning()) -> Granted:  # noqa: B008 - frozen
        """Keep federation.toml as it is, and begin the next epoch, in which it may be changed.

        Raises ConfigError, PolicyError as `following`.
        """
        draft = Draft.read(read_bytes(self.federation))
        after = following(draft, self._epochs.sources(), draft.roster, beginning)
        self._epochs.keep(draft)
        write_whole(self.federation, after.draft.source)
        return self._granted(after.draft, new_epoch=True, notes=after.notes)

    # --- the roster

    def _write_roster(
        self, draft: Draft, entries: Mapping[str, Mapping[str, Any]], accept: Sequence[str], *, checked: bool = True
    ) -> Granted:
        invitations = self._invitations
        new_epoch = invitations.signed
        # Until the first roster is complete it names the sites that are missing, so nobody can sign it by mistake.
        invited = [name for name in invitations.invited if not new_epoch or "sign" in entries.get(name, {})]
        order = [entries.get(name, {"name": name}) for name in invited]
        changed = draft.with_roster(order)
        complete = all("sign" in entry for entry in order)
        notes: tuple[str, ...] = ()
        if changed.source == draft.source:
            new_epoch = False
        elif new_epoch:
            roster = {str(entry["name"]): entry for entry in order}
            after = following(draft, self._epochs.sources(), roster, Beginning(accept=tuple(accept)))
            changed, notes = after.draft, after.notes
            self._epochs.keep(draft)
        if complete and checked:
            read_agreement(changed.source, str(self.federation))
        write_whole(self.federation, changed.source)
        if complete and not invitations.signed:
            invitations.signed = True
            invitations.save()
        return self._granted(changed, new_epoch=new_epoch, notes=notes)

    def _granted(self, draft: Draft, *, new_epoch: bool, notes: tuple[str, ...] = ()) -> Granted:
        problem = ""
        try:
            read_agreement(draft.source, str(self.federation))
        except FedhpcError as error:
            problem = error.what
        return Granted(self._waiting(draft), draft.epoch, draft.hash, new_epoch, problem, notes)

    def _waiting(self, draft: Draft) -> tuple[str, ...]:
        return tuple(name for name in self._invitations.invited if "sign" not in draft.roster.get(name, {}))

    # --- certificates

    def _authority(self) -> Issued:
        require_private(self.folder / "authority.key")
        return Issued(read_bytes(self.folder / "authority.key"), read_bytes(self.folder / "authority.pem"))

    def _certificates(self, name: str) -> list[Path]:
        return [self.folder / "certificates" / f"{name}.pem", self.relay / "enrolment" / f"{name}.pem"]

    def _needs_renewal(self, asked: Asked) -> bool:
        """Whether the last certificate ends soon, or is not for this key."""
        path = self._certificates(asked.name)[0]
        if not path.exists():
            return True
        certificate = read_certificate(path)
        if pin_of(certificate).hex() != asked.tls:
            return True
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < life * _RENEW_BELOW

    def _empty_mailbox(self, name: str) -> None:
        for suffix in ("request", "pem"):
            (self.relay / "enrolment" / f"{name}.{suffix}").unlink(missing_ok=True)
