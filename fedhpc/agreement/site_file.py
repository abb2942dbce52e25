"""site.toml: what one site keeps to itself. The file is private and never hashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedhpc.agreement.federation_file import Agreement
from fedhpc.config import parse_toml, read_bytes, read_section, refuse_other_file, subtable
from fedhpc.errors import ConfigError

SITE_FILE = "site.toml"
SITE_SECTIONS = ("site", "data", "compute", "exchange", "ledger", "life", "slurm")


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
    """All of one site file. Paths in it are relative to its folder."""

    file: Path
    site: SiteSection
    exchange: ExchangeSection
    data: Mapping[str, Any]  # read by train/
    compute: Mapping[str, Any]  # read by train/
    ledger: LedgerSection = LedgerSection()
    life: Mapping[str, Any] = field(default_factory=dict)  # read by app/life
    slurm: Mapping[str, Any] = field(default_factory=dict)  # read by slurm/

    @classmethod
    def open(cls, path: Path) -> SiteFile:
        """Read the site file `path`; a folder stands for the `site.toml` in it. Raises ConfigError."""
        file = path / SITE_FILE if path.is_dir() else path
        return read_site(read_bytes(file), file)

    @property
    def base(self) -> Path:
        """The folder that the site file is in."""
        return self.file.parent

    def path(self, path: Path) -> Path:
        """`path` as seen from the site file's folder."""
        return self.base / path  # an absolute path stays as it is

    def run_directory(self, run: Path) -> Path:
        """Where this site keeps checkpoints and metrics: as the file says, or RUN/NAME."""
        return run / self.site.name if self.site.directory is None else self.path(self.site.directory)


def read_site(source: bytes, path: Path) -> SiteFile:
    """The site file in `source`, read from `path`. Raises ConfigError."""
    table = parse_toml(source, str(path))
    refuse_other_file(table, SITE_SECTIONS, str(path), "a site file")
    if "site" not in table:
        raise ConfigError(f"{path} has no [site] section", "it needs at least name = …")
    return SiteFile(
        file=path,
        site=read_section(SiteSection, table["site"], "site"),
        exchange=read_section(ExchangeSection, table.get("exchange", {}), "exchange"),
        data=subtable(table, "data"),
        compute=subtable(table, "compute"),
        ledger=read_section(LedgerSection, subtable(table, "ledger"), "ledger"),
        life=subtable(table, "life"),
        slurm=subtable(table, "slurm"),
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
