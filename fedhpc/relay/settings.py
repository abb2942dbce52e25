"""relay.toml and the roster file: where the relay listens, what it may use, and whom it knows.

[relay]                                   # relay.toml
listen = "0.0.0.0:8443"
store = "/var/lib/fedhpc-relay"
certificate = "relay.pem"
key = "relay.key"                         # mode 0600
client_authorities = ["enrolment.pem"]    # issuers whose certificates are read at all; the roster decides
roster = "roster.toml"

["<64 hex digits: SHA-256 of federation.toml>"]     # roster.toml, one table per federation
bytes = 100_000_000_000
objects = 100_000
sites = { 1 = "<64 hex digits: SPKI SHA-256 of site 1>", 2 = "…" }
threshold = 3                                       # τ; absent: that of a federation with the default settings
suite = "blake3"                                    # secure.suite of federation.toml; absent: sha256
durable = "disk"                                    # or "memory": vectors are not synced
["<the same 64 hex digits>".cohort]                 # [cohort] of federation.toml; absent: its defaults
policy = "sync"
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.cohort.settings import CohortSettings
from fedhpc.config import parse_toml, read_bytes, read_section, refuse_other_file
from fedhpc.errors import ConfigError
from fedhpc.relay.store.object_store import Quota
from fedhpc.secure.suite import SHA256, Suite, suite_named
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.wire.kinds import M3V
from fedhpc.wire.pins import require_private, same_pin

_HASH = re.compile(r"[0-9a-f]{64}")
MAX_SITES = 100
REVOKED = "revoked"  # instead of a pin
DISK, MEMORY = "disk", "memory"
DURABLE = (DISK, MEMORY)
"""Whether masked vectors are synced to the disk (a reboot in mid-round loses nothing), or only given to the kernel."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what peers can make the relay spend. Times in seconds."""

    connections: int = 512
    connections_per_site: int = 64
    connections_without_certificate: int = 48  # or still in their handshake; from addresses of which nothing is known
    connections_per_address: int = 32  # of those
    connections_reserved: int = 64  # the same, for addresses from which a known key came in the last day
    handshake_s: float = 10.0
    head_s: float = 10.0
    idle_s: float = 75.0
    stall_s: float = 30.0
    min_bytes_per_s: int = 2048
    wait_s: float = 60.0
    head_bytes: int = 16384
    buffers: int = 64  # of 1 MiB; bodies in transit at once, the others wait
    put_bytes: int = 1 << 30
    upload_idle_s: float = 7 * 86400.0
    drain_s: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"limits.{name} must be above zero")
        if self.of_sites < 1:
            raise ConfigError(
                f"limits.connections = {self.connections} leaves no connection for sites",
                "make it larger than connections_without_certificate + connections_reserved",
            )

    @property
    def of_sites(self) -> int:
        """Connections of known keys, all together."""
        return self.connections - self.connections_without_certificate - self.connections_reserved


@dataclass(frozen=True)
class RelaySettings:
    """The [relay] table."""

    listen: str
    store: Path
    certificate: Path
    key: Path
    client_authorities: tuple[Path, ...]
    roster: Path
    admin: str = ""  # host:port on loopback; empty: no admin port
    reserve_bytes: int = 64 << 20  # of the disk, never used
    tokens: Path | None = None  # who may ask for a certificate; with enrolment
    enrolment: Path | None = None  # folder of requests and certificates; absent: no enrolment here

    def __post_init__(self) -> None:
        split_address(self.listen, "relay.listen")
        if (self.tokens is None) != (self.enrolment is None):
            raise ConfigError("relay.tokens and relay.enrolment go together", "give both or neither")
        if not self.client_authorities:
            raise ConfigError("relay.client_authorities is empty", "name the certificate of the enrolment authority")
        if self.admin and split_address(self.admin, "relay.admin")[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError("relay.admin must be on loopback", "write it as 127.0.0.1:PORT")


@dataclass(frozen=True)
class HostedFederation:
    """What the relay knows of a federation: pins by site number, the quota, and how its rounds are run."""

    config: str
    pins: dict[int, bytes]
    quota: Quota
    threshold: int
    cohort: CohortSettings
    suite: Suite  # what Trees are made of
    revoked: tuple[int, ...] = ()  # numbers of sites whose key no longer opens anything
    durable: str = DISK

    @property
    def numbers(self) -> int:
        """N: the largest site number. A site whose key was revoked still counts."""
        return max(*self.pins, *self.revoked, 0)

    def syncs(self, kind: str) -> bool:
        """Whether objects of this kind are on the disk before their site is told so. All are, but for vectors."""
        return self.durable == DISK or kind != M3V.name

    def site_of(self, pin: bytes) -> int | None:
        """The site whose pin this is; every pin is compared, in constant time."""
        found = None
        for site, known in self.pins.items():
            if same_pin(known, pin):
                found = site
        return found


@dataclass(frozen=True)
class _FederationTable:
    sites: dict[str, str]
    bytes: int = 64 << 30
    objects: int = 100_000
    threshold: int | None = None
    suite: str = SHA256.name
    cohort: dict[str, Any] | None = None
    durable: str = DISK


@dataclass(frozen=True)
class Roster:
    """All federations by configuration hash."""

    federations: dict[str, HostedFederation] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        """How many keys all federations have together."""
        return len({pin for f in self.federations.values() for pin in f.pins.values()})

    def knows(self, pin: bytes) -> bool:
        """Whether any federation has this pin."""
        return any([f.site_of(pin) is not None for f in self.federations.values()])  # noqa: C419 - constant time


def read_settings(path: Path) -> tuple[RelaySettings, Limits]:
    """relay.toml; relative paths start at its folder. Raises ConfigError, also if others can read the key."""
    table = parse_toml(read_bytes(path), str(path))
    refuse_other_file(table, ("relay", "limits"), str(path), "a relay.toml")
    relay = table.get("relay", {})
    if isinstance(relay, dict) and "rounds" in relay:
        raise ConfigError("relay: 'rounds' is no longer a key", "remove the line: every relay runs rounds")
    given = read_section(RelaySettings, relay, "relay")
    base = path.absolute().parent
    settings = RelaySettings(
        listen=given.listen,
        store=base / given.store,
        certificate=base / given.certificate,
        key=base / given.key,
        client_authorities=tuple(base / p for p in given.client_authorities),
        roster=base / given.roster,
        admin=given.admin,
        reserve_bytes=given.reserve_bytes,
        tokens=base / given.tokens if given.tokens else None,
        enrolment=base / given.enrolment if given.enrolment else None,
    )
    require_private(settings.key)
    return settings, read_section(Limits, table.get("limits", {}), "limits")


def read_roster(path: Path) -> Roster:
    """The roster file. Raises ConfigError that names federation and site, or the package that a suite needs."""
    federations = {}
    for config, table in parse_toml(read_bytes(path), str(path)).items():
        where = f"{path}: {config[:16]}"
        if not _HASH.fullmatch(config):
            raise ConfigError(f"{where}: a federation is named by 64 lower-case hex digits")
        given = read_section(_FederationTable, table, where)
        pins, revoked = {}, []
        for site, pin in given.sites.items():
            good = pin == REVOKED or _HASH.fullmatch(pin)
            if not (site.isascii() and site.isdigit() and 1 <= int(site) <= MAX_SITES and good):
                raise ConfigError(f"{where}: site {site} needs a number of 1..{MAX_SITES} and 64 hex digits")
            if pin == REVOKED:
                revoked.append(int(site))
            else:
                pins[int(site)] = bytes.fromhex(pin)
        if len(set(pins.values())) + len(revoked) != len(given.sites) or not pins:
            raise ConfigError(f"{where}: every site needs a number and a key of its own")
        if given.bytes <= 0 or given.objects <= 0:
            raise ConfigError(f"{where}: bytes and objects must be above zero")
        numbers = max(*pins, *revoked, 0)
        threshold = default_threshold(numbers) if given.threshold is None else given.threshold
        if not 1 <= threshold <= numbers:
            raise ConfigError(f"{where}: threshold = {threshold} of {numbers} sites")
        if given.durable not in DURABLE:
            raise ConfigError(f"{where}: durable = {given.durable!r:.40}", f"one of {', '.join(DURABLE)}")
        cohort = read_section(CohortSettings, given.cohort or {}, f"{where}: cohort")
        suite = suite_named(given.suite)
        quota = Quota(given.bytes, given.objects, len(pins))
        federations[config] = HostedFederation(
            config, pins, quota, threshold, cohort, suite, tuple(revoked), given.durable
        )
    return Roster(federations)


def default_threshold(sites: int) -> int:
    """τ of a federation that sets none. The relay does not judge: sites refuse what is not safe."""
    return choose_thresholds(sites, accept_two_sites=True).threshold if sites > 1 else 1


def split_address(text: str, where: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{where} = {text!r} is not host:port", "such as 0.0.0.0:8443 or 127.0.0.1:9443")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - the operator's choice
