"""federation.toml and site.toml: what all sites agree on, and what one site keeps to itself.

The SHA-256 of federation.toml's bytes is the agreement's hash; it is in every mask key, so two sites with different
files never share a mask. Sections of rows above this one ([task], [train]) are carried unread.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedhpc.agreement.roster import RosterEntry, check_name, read_roster
from fedhpc.agreement.start_settings import StartSettings
from fedhpc.agreement.strategy_settings import StrategySettings
from fedhpc.cohort.settings import CohortSettings
from fedhpc.config import parse_toml, read_bytes, read_section, refuse_other_file
from fedhpc.errors import ConfigError
from fedhpc.secure import labels
from fedhpc.secure.keys import public_identity
from fedhpc.secure.pairwise import Member
from fedhpc.secure.settings import SecureSettings

PROTOCOL_NAME = labels.PROTOCOL.decode("ascii")
AGREED_SECTIONS = ("federation", "start", "site", "relay", "cohort", "secure", "strategy", "task", "train")
SITE_SECTIONS = ("site", "data", "compute", "exchange", "ledger", "life", "slurm")

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FederationSection:
    """[federation]"""

    name: str
    protocol: str
    """What the sites speak with each other; a build speaks one."""
    rounds: int = 1
    """Training rounds."""
    seed: int = 0
    """Of the first model and of the order of the data."""
    epoch: int = 0
    """Counts agreed changes of this file."""
    previous: str = ""
    """SHA-256 of the file of the epoch before, in hex."""

    def __post_init__(self) -> None:
        check_name(self.name, "federation.name")
        if not 1 <= self.rounds <= 1_000_000:
            raise ConfigError(f"federation.rounds = {self.rounds}", "between 1 and 1000000")
        if not 0 <= self.seed < 1 << 53:
            raise ConfigError(f"federation.seed = {self.seed}", "between 0 and 2^53")


@dataclass(frozen=True)
class RelaySection:
    """[relay], for sites that share no MPI job."""

    tls: str = ""
    """Pin of the relay's TLS key: SHA-256 of its SubjectPublicKeyInfo, 64 hex digits."""

    def __post_init__(self) -> None:
        if self.tls and not _KEY.fullmatch(self.tls):
            raise ConfigError("relay.tls is not a pin", "64 lower-case hex digits; `fedhpc relay new` shows it")


@dataclass(frozen=True)
class Agreement:
    """All of federation.toml."""

    source: bytes = field(repr=False)
    federation: FederationSection
    roster: tuple[RosterEntry, ...]
    relay: RelaySection
    cohort: CohortSettings
    secure: SecureSettings
    strategy: StrategySettings
    task: Mapping[str, Any]  # read by train/
    train: Mapping[str, Any]  # read by train/
    start: StartSettings = field(default_factory=StartSettings)

    @property
    def hash(self) -> bytes:
        """SHA-256 of the file [32]."""
        return hashlib.sha256(self.source).digest()

    @property
    def names(self) -> list[str]:
        """The sites' names in roster order."""
        return [entry.name for entry in self.roster]

    def members(self) -> list[Member]:
        """The roster as the protocol uses it."""
        return [
            Member(number, entry.name, public_identity(bytes.fromhex(entry.sign)))
            for number, entry in enumerate(self.roster, start=1)
        ]

    def number_of(self, site: str) -> int:
        """The number of `site`. Raises ConfigError with the roster for an unknown one."""
        if site not in self.names:
            raise ConfigError(f"site '{site}' is not in the roster", f"federation.toml lists {', '.join(self.names)}")
        return self.names.index(site) + 1


@dataclass(frozen=True)
class SiteSection:
    """[site] of a site file."""

    name: str
    ranks: int = 1
    """Processes of this site in a rehearsal."""
    key: Path | None = None
    """The site's private Ed25519 key file, mode 0600; relative to the site file."""
    directory: Path | None = None
    """Where this site keeps checkpoints and metrics. Absent: RUN/NAME."""

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= 65536:
            raise ConfigError(f"site.ranks = {self.ranks}", "at least 1")


@dataclass(frozen=True)
class ExchangeSection:
    """[exchange] of a site file."""

    kind: Literal["mpi", "https", "spool"] = "mpi"
    """mpi: all sites in one MPI job. https: each site in its own job, through a relay. spool: as https, through a
    directory that a carrier empties and fills, for nodes without a route."""
    rails: int | Literal["auto"] = "auto"
    """Ranks that carry a part of the vector; auto: as many as the smallest site has (mpi), or all up to 8 (https)."""
    spool: Path | None = None
    """spool: the directory, relative to the site file; made once, by hand."""
    url: str = ""
    """https: the relay, https://host:port."""
    certificate: Path | None = None
    """https: the certificate that this site shows the relay."""
    key: Path | None = None
    """https: its private key, mode 0600."""
    proxy: str | None = field(default=None, repr=False)
    """https: http://[user:password@]host:port of a CONNECT proxy, "" for none. Absent: the environment (proxies.py)."""
    connections: int = 4
    """https: connections of each rank."""
    patience_s: float = 300.0
    """https: how long to try again while the relay cannot be reached."""
    chunk_bytes: int = 16 << 20
    overlap: Literal["auto", "on", "off"] = "auto"
    """Encode and mask the next chunk in a helper thread; auto: if this rank has two cores."""

    def __post_init__(self) -> None:
        if isinstance(self.rails, int) and not 1 <= self.rails <= 65536:
            raise ConfigError(f"exchange.rails = {self.rails}", "at least 1, or 'auto'")
        if self.chunk_bytes < 4096 or self.chunk_bytes % 16 or self.chunk_bytes > 1 << 29:
            raise ConfigError(f"exchange.chunk_bytes = {self.chunk_bytes}", "a multiple of 16, 4096 to 2^29")
        if self.kind == "https" and not (self.url and self.certificate and self.key):
            raise ConfigError(
                '[exchange] kind = "https" needs url, certificate and key', "`fedhpc site init` writes such a site file"
            )
        if self.kind == "spool" and self.spool is None:
            raise ConfigError(
                '[exchange] kind = "spool" needs spool, a directory', "docs/spool.md shows such a site file"
            )
        if not 1 <= self.connections <= 16:
            raise ConfigError(f"exchange.connections = {self.connections}", "1 to 16")
        if not 1 <= self.patience_s <= 7 * 86400:
            raise ConfigError(f"exchange.patience_s = {self.patience_s}", "1 second to 7 days")


@dataclass(frozen=True)
class LedgerSection:
    """[ledger] of a site file."""

    path: Path | None = None
    """The home of the institution's ledger, the same for all its federations; relative to the site file. Absent:
    fedhpc/ledger/NAME in the user's data directory."""


@dataclass(frozen=True)
class SiteFile:
    """All of one site file. Paths are relative to `base`."""

    base: Path
    site: SiteSection
    exchange: ExchangeSection
    data: Mapping[str, Any]  # read by train/
    compute: Mapping[str, Any]  # read by train/
    ledger: LedgerSection = LedgerSection()
    life: Mapping[str, Any] = field(default_factory=dict)  # read by ops/
    slurm: Mapping[str, Any] = field(default_factory=dict)  # read by ops/

    def path(self, path: Path) -> Path:
        """`path` as seen from the site file's directory."""
        return path if path.is_absolute() else self.base / path


def read_agreement(source: bytes, where: str) -> Agreement:
    """The agreement in the bytes of federation.toml. Raises ConfigError, or PolicyError for unsafe settings."""
    table = parse_toml(source, where)
    refuse_other_file(table, AGREED_SECTIONS, where, "a federation.toml")
    if "federation" not in table:
        raise ConfigError(f"{where} has no [federation] section", "`fedhpc new DIR` writes a working example")
    _refuse_other_protocol(table["federation"], where)
    roster = read_roster(table.get("site", []), where)
    agreement = Agreement(
        source=source,
        federation=read_section(FederationSection, table["federation"], "federation"),
        roster=roster,
        relay=read_section(RelaySection, _table(table, "relay"), "relay"),
        cohort=read_section(CohortSettings, _table(table, "cohort"), "cohort"),
        secure=read_section(SecureSettings, table.get("secure", {}), "secure"),
        strategy=read_section(StrategySettings, table.get("strategy", {}), "strategy"),
        task=_table(table, "task"),
        train=_table(table, "train"),
        start=read_section(StartSettings, _table(table, "start"), "start"),
    )
    agreement.start.check(agreement.federation.previous, [entry.identity.hex() for entry in roster])
    agreement.secure.thresholds(len(roster))  # refuses a roster that is too small, before anything starts
    if agreement.strategy.weights == "declared" and not all(r.samples > 0 for r in roster):
        raise ConfigError('strategy.weights = "declared" needs samples = … at every [[site]]')
    return agreement


def _refuse_other_protocol(section: object, where: str) -> None:
    """Older builds wrote no protocol. All sites sign the file, so none of them speaks another in a sum."""
    named = section.get("protocol") if isinstance(section, Mapping) else None
    if named != PROTOCOL_NAME:
        said = "names no protocol: it is of an older fedhpc" if named is None else f"asks for the protocol {named!r}"
        raise ConfigError(
            f"{where} {said}; this build speaks {PROTOCOL_NAME}",
            "all sites install one version of fedhpc, and the coordinator begins an epoch with "
            f'protocol = "{PROTOCOL_NAME}" under [federation]: `fedhpc federation next`',
        )


def read_site(source: bytes, path: Path) -> SiteFile:
    """The site file in `source`, read from `path`. Raises ConfigError."""
    table = parse_toml(source, str(path))
    refuse_other_file(table, SITE_SECTIONS, str(path), "a site file")
    if "site" not in table:
        raise ConfigError(f"{path} has no [site] section", "it needs at least name = …")
    return SiteFile(
        base=path.parent,
        site=read_section(SiteSection, table["site"], "site"),
        exchange=read_section(ExchangeSection, table.get("exchange", {}), "exchange"),
        data=_table(table, "data"),
        compute=_table(table, "compute"),
        ledger=read_section(LedgerSection, _table(table, "ledger"), "ledger"),
        life=_table(table, "life"),
        slurm=_table(table, "slurm"),
    )


def read_site_directory(directory: Path, agreement: Agreement) -> list[SiteFile]:
    """The site files of every site in the roster, in its order. Raises ConfigError that names what is missing."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory", "--sites takes the directory with one file per site")
    found: dict[str, SiteFile] = {}
    for path in sorted(directory.glob("*.toml")):
        site = read_site(read_bytes(path), path)
        if site.site.name in found:
            raise ConfigError(f"two files in {directory} are for site {site.site.name}")
        agreement.number_of(site.site.name)
        found[site.site.name] = site
    missing = [name for name in agreement.names if name not in found]
    if missing:
        raise ConfigError(f"{directory} has no file for site {', '.join(missing)}")
    return [found[name] for name in agreement.names]


def number_of_rank(rank: int, size: int, sites: Sequence[SiteFile]) -> int:
    """Which site `rank` of a rehearsal belongs to: ranks are dealt in roster order. ConfigError if they do not fit."""
    counts = [s.site.ranks for s in sites]
    if sum(counts) != size:
        asked = ", ".join(f"{s.site.name} {s.site.ranks}" for s in sites)
        raise ConfigError(
            f"the site files ask for {sum(counts)} ranks ({asked}), but the job has {size}",
            f"start it with mpirun -n {sum(counts)}, or change ranks in the site files",
        )
    for number, count in enumerate(counts, start=1):
        if rank < count:
            return number
        rank -= count
    raise AssertionError("unreachable")


def _table(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = table.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a table", f"write it as [{name}]")
    return value
