"""federation.toml: what all sites agree on, and sign.

The SHA-256 of the file's bytes is the agreement's hash. It is in every mask key, so two sites with different files
never share a mask. Sections of rows above this one ([task], [train]) are carried unread.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.agreement.images import AgreedImages, read_images
from fedhpc.agreement.roster import RosterEntry, check_name, read_roster
from fedhpc.agreement.start_settings import StartSettings
from fedhpc.agreement.strategy_settings import StrategySettings
from fedhpc.cohort.settings import CohortSettings
from fedhpc.config import parse_toml, read_bytes, read_section, refuse_other_file, subtable
from fedhpc.errors import ConfigError
from fedhpc.secure import labels
from fedhpc.secure.keys import public_identity
from fedhpc.secure.pairwise import Member
from fedhpc.secure.settings import SecureSettings

PROTOCOL_NAME = labels.PROTOCOL.decode("ascii")
AGREED_SECTIONS = ("federation", "start", "site", "relay", "cohort", "secure", "strategy", "task", "train", "container")

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FederationSection:
    """[federation]"""

    name: str
    protocol: str
    """What the sites speak with each other; each build speaks one."""
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
            raise ConfigError("relay.tls is not a pin", "64 lower-case hex digits; `fedhpc federation new` shows it")


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
    images: AgreedImages = field(default_factory=AgreedImages)
    """[container]"""

    @classmethod
    def open(cls, path: Path) -> Agreement:
        """Read federation.toml. Raises ConfigError, or PolicyError for unsafe settings."""
        return read_agreement(read_bytes(path), str(path))

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
        relay=read_section(RelaySection, subtable(table, "relay"), "relay"),
        cohort=read_section(CohortSettings, subtable(table, "cohort"), "cohort"),
        secure=read_section(SecureSettings, table.get("secure", {}), "secure"),
        strategy=read_section(StrategySettings, table.get("strategy", {}), "strategy"),
        task=subtable(table, "task"),
        train=subtable(table, "train"),
        start=read_section(StartSettings, subtable(table, "start"), "start"),
        images=read_images(table.get("container")),
    )
    agreement.start.check(agreement.federation.previous, [entry.identity.hex() for entry in roster])
    agreement.secure.thresholds(len(roster))  # refuses a roster that is too small, before anything starts
    if agreement.strategy.weights == "declared" and not all(r.samples > 0 for r in roster):
        raise ConfigError('strategy.weights = "declared" needs samples = … at every [[site]]')
    return agreement


def _refuse_other_protocol(section: object, where: str) -> None:
    """Older builds wrote no protocol. All sites sign the file, so all of them speak the same one in a sum."""
    named = section.get("protocol") if isinstance(section, Mapping) else None
    if named != PROTOCOL_NAME:
        said = (
            "names no protocol: it comes from an older fedhpc" if named is None else f"asks for the protocol {named!r}"
        )
        raise ConfigError(
            f"{where} {said}; this build speaks {PROTOCOL_NAME}",
            "all sites install one version of fedhpc, and the coordinator begins an epoch with "
            f'protocol = "{PROTOCOL_NAME}" under [federation]: `fedhpc federation next`',
        )
