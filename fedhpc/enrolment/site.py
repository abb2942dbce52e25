"""A site's folder: its keys are made here and stay here; only a request and a signature leave.

DIR/site.toml              the site file for `fedhpc run`
DIR/sign.key, DIR/tls.key  private keys (mode 0600): messages are signed with one, TLS is spoken with the other
DIR/tls.pem                the certificate for the second, short-lived
DIR/relay.pin              the relay's key as the coordinator gave it
DIR/request.json           the last request
DIR/token                  the one-time token that it was made with (mode 0600), for renewals over the same keys
DIR/approvals/             what was approved (agreement/approvals.py)
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fedhpc.agreement.approvals import Approvals
from fedhpc.agreement.identity import lost_keys_hint, read_identity
from fedhpc.agreement.roster import check_name
from fedhpc.agreement.site_file import SiteFile
from fedhpc.config import read_bytes
from fedhpc.enrolment.certificates import new_key, new_request, write_private
from fedhpc.enrolment.fingerprints import fingerprint
from fedhpc.enrolment.mailbox import RelayMailbox
from fedhpc.errors import ConfigError, PolicyError, StorageError
from fedhpc.files import write_whole
from fedhpc.secure.join_request import Token, sign_request
from fedhpc.secure.keys import new_identity
from fedhpc.transport.https.addresses import parse_url
from fedhpc.transport.https.proxies import proxy_for
from fedhpc.wire.certificate_times import COMPARE_CLOCKS, utc
from fedhpc.wire.pins import pin_of, pin_of_key, read_pem, require_private

_PIN = re.compile(r"[0-9a-f]{64}")
_SITE = """\
# Site {name}: private, never part of what the sites agree on. Paths are relative to this file.

[site]
name = "{name}"
key = "sign.key"

[data]
path = "{data}"             # the site's store, from `fedhpc data ingest`

[compute]
backend = "auto"             # serial for one rank, ddp for more
device = "auto"
threads = 1                  # per rank

[exchange]
kind = "https"
url = "{url}"
certificate = "tls.pem"
key = "tls.key"
"""


@dataclass(frozen=True)
class SiteKeys:
    """A site's two keys. Private halves are not shown."""

    name: str
    identity: Ed25519PrivateKey
    tls_key: bytes  # PEM

    def __repr__(self) -> str:
        return f"SiteKeys({self.name!r}, <private>)"

    @property
    def sign(self) -> str:
        """Public Ed25519 key, hex."""
        return self.identity.public_key().public_bytes_raw().hex()

    @property
    def tls(self) -> str:
        """Pin of the TLS key, hex."""
        key = load_pem_private_key(self.tls_key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError("the TLS key is not a P-256 key", "`fedhpc site rotate` makes new keys")
        return pin_of_key(key.public_key()).hex()

    @property
    def fingerprint(self) -> str:
        """Of name and both keys, to be read out."""
        return fingerprint(self.name, self.sign, self.tls)


@dataclass(frozen=True)
class SiteFolder:
    """The folder of one site."""

    path: Path
    file: SiteFile

    @classmethod
    def open(cls, path: Path) -> SiteFolder:
        """The folder with the site file `path`, or the folder `path` itself. Raises ConfigError."""
        site = SiteFile.open(path)
        exchange = site.exchange
        if site.site.key is None or exchange.kind == "mpi" or not (exchange.certificate and exchange.key):
            needs = '[site] needs key, [exchange] kind = "https" or "spool", certificate and key'
            raise ConfigError(f"{site.file} is not for a relay", needs)
        return cls(site.base, site)

    @classmethod
    def new(cls, path: Path, name: str, *, relay: str, relay_pin: str, data: str, ledger: str = "") -> SiteFolder:
        """Make the folder with fresh keys. `ledger`: the home of its ledger, for a rehearsal.

        Raises ConfigError if it holds a site already; nothing is overwritten.
        """
        check_name(name, "--name")
        if relay:
            parse_url(relay, "https", "--relay")
        if relay_pin and not _PIN.fullmatch(relay_pin):
            raise ConfigError("--relay-pin is not a pin", "64 lower-case hex digits, from the coordinator")
        if set(data) & {'"', "\\"} or not data.isprintable():
            raise ConfigError("--data cannot stand in a site file", "use a path without quotes and backslashes")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {path}: {error.strerror}", "choose another directory") from None
        if (path / "invitations.toml").exists():
            raise ConfigError(f"{path} is the coordinator's folder", "make the site's folder elsewhere")
        there = [n for n in ("site.toml", "sign.key", "tls.key") if (path / n).exists()]
        if there:
            raise ConfigError(
                f"{path} has {' and '.join(there)} already; nothing was changed",
                "`fedhpc site rotate` makes new keys for a site that has some",
            )
        _write_keys(path / "sign.key", path / "tls.key")
        if relay_pin:
            write_whole(path / "relay.pin", relay_pin.encode() + b"\n")
        text = _SITE.format(name=name, url=relay or "https://relay.example:8443", data=data)
        if ledger:
            text = text.replace("[exchange]\n", f'[ledger]\npath = "{ledger}"\n\n[exchange]\n', 1)
        write_whole(path / "site.toml", text.encode(), mode=0o600)
        return cls.open(path)

    @property
    def name(self) -> str:
        """The site's name."""
        return self.file.site.name

    @property
    def sign_path(self) -> Path:
        """File of the Ed25519 key."""
        assert self.file.site.key is not None
        return self.file.path(self.file.site.key)

    @property
    def tls_path(self) -> Path:
        """File of the TLS key."""
        assert self.file.exchange.key is not None
        return self.file.path(self.file.exchange.key)

    @property
    def certificate_path(self) -> Path:
        """File of the certificate."""
        assert self.file.exchange.certificate is not None
        return self.file.path(self.file.exchange.certificate)

    @property
    def approvals(self) -> Approvals:
        """What this site approved."""
        return Approvals(self.path / "approvals")

    def relay_pin(self) -> str:
        """The relay's pin as the coordinator gave it, hex; "" if it was not given."""
        path = self.path / "relay.pin"
        pin = read_bytes(path).decode("ascii", "replace").strip() if path.exists() else ""
        if pin and not _PIN.fullmatch(pin):
            raise ConfigError(f"{path} is not a pin", "64 lower-case hex digits, from the coordinator")
        return pin

    def keys(self) -> SiteKeys:
        """Read both keys. Raises ConfigError or StorageError if one is missing or others can read it."""
        hint = lost_keys_hint(self.path)
        identity = Ed25519PrivateKey.from_private_bytes(read_identity(self.sign_path, hint))
        require_private(self.tls_path, hint)
        return SiteKeys(self.name, identity, read_bytes(self.tls_path))

    def token(self) -> str:
        """The token of the last request that went to the relay, or "" if there is none for the current keys."""
        path = self.path / "token"
        if not path.exists():
            return ""
        require_private(path)
        return read_bytes(path).decode("ascii", "replace").strip()

    def keep_token(self, token: str) -> None:
        """Keep the token for renewals."""
        write_whole(self.path / "token", token.encode("ascii") + b"\n", mode=0o600)

    def request(self, token: Token | None) -> tuple[Path, bytes]:
        """Write request.json; with the same keys and token the same bytes, since the relay takes one per token."""
        keys, path = self.keys(), self.path / "request.json"
        if path.exists():
            from fedhpc.enrolment.fingerprints import read_asked

            try:
                old = read_asked(read_bytes(path))
                same = (old.name, old.sign, old.tls) == (keys.name, keys.sign, keys.tls)
                if same and (old.request.proof == bytes(32) if token is None else old.request.proved_by(token.proof)):
                    return path, old.request.source
            except PolicyError:
                pass  # not a request of this version: make a new one
        csr = x509.load_pem_x509_csr(new_request(keys.tls_key, keys.name)).public_bytes(Encoding.DER)
        data = sign_request(keys.identity, keys.name, csr, token)
        write_whole(path, data)
        return path, data

    def mailbox(
        self, token: Token, on_down: Callable[[str, float], None] = lambda reason, left_s: None
    ) -> RelayMailbox:
        """This site's mailbox at the relay. Raises ConfigError if the relay's pin is not known."""
        pin, exchange = self.relay_pin(), self.file.exchange
        if not pin:
            raise ConfigError(
                "the relay's pin is not known here, so it could be anybody",
                f"put the pin from the coordinator into {self.path / 'relay.pin'}, 64 hex digits",
            )
        proxy = proxy_for(exchange.url, exchange.proxy)
        return RelayMailbox(exchange.url, bytes.fromhex(pin), self.name, token.access, proxy, on_down)

    def certificate(self) -> bytes:
        """The certificate if it belongs to the current key, PEM; empty if it does not or is damaged."""
        if not self.certificate_path.exists():
            return b""
        pem = read_bytes(self.certificate_path)
        try:
            pin = pin_of(read_pem(pem)).hex()
        except ValueError:
            return b""
        return pem if pin == self.keys().tls else b""

    def take_certificate(self, pem: bytes) -> datetime.datetime:
        """Keep a certificate, if it is for this site's own key and is valid now; returns the end of its validity.

        Raises PolicyError.
        """
        try:
            certificate = read_pem(pem)
            pin = pin_of(certificate).hex()
        except ValueError as error:
            hint = "the coordinator has it as certificates/NAME.pem, from `fedhpc federation admit`"
            raise PolicyError(f"this is not a certificate: {str(error).partition('. ')[0]}", hint) from None
        own = self.keys().tls
        if pin != own:
            raise PolicyError(
                f"the certificate is for the key {pin[:16]}…, not for this site's {own[:16]}…; it was not kept",
                "it was swapped with another site's, or made before the keys were rotated",
            )
        now = datetime.datetime.now(datetime.UTC)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begins <= now <= ends:
            where, ask = ("has ended", "ask for a new one; or ") if now > ends else ("has not begun", "")
            raise PolicyError(
                f"the certificate is valid from {utc(begins)} to {utc(ends)}: it {where} by the clock here, {utc(now)}",
                f"{ask}{COMPARE_CLOCKS}",
            )
        write_whole(self.certificate_path, pem)
        return ends

    def rotate(self) -> list[Path]:
        """Replace the keys by fresh ones; the old ones are kept as *.old and returned. Raises ConfigError.

        A lost key is no obstacle.
        """
        pairs = [(path, path.with_name(path.name + ".old")) for path in (self.sign_path, self.tls_path)]
        old = [kept for path, kept in pairs if path.exists()]
        for path in old:
            if path.exists():
                raise ConfigError(f"{path} exists", "delete it or move it away when it is no longer needed")
        fresh = [path.with_name(path.name + ".new") for path in (self.sign_path, self.tls_path)]
        try:
            for path in fresh:
                path.unlink(missing_ok=True)
            _write_keys(*fresh)
            for new, (path, kept) in zip(fresh, pairs, strict=True):
                if kept in old:
                    os.link(path, kept)
                new.replace(path)
            (self.path / "token").unlink(missing_ok=True)  # the relay has bound it to the old keys
            if self.certificate_path.exists():
                self.certificate_path.replace(self.certificate_path.with_name(self.certificate_path.name + ".old"))
        except OSError as error:
            raise StorageError(f"cannot change the keys in {self.path}: {error.strerror}") from None
        return old


def _write_keys(sign: Path, tls: Path) -> None:
    private = new_identity()
    write_private(sign, private.hex().encode() + b"\n")
    write_private(tls, new_key())
