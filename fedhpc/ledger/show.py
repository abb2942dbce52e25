"""The institution's ledger for people and programs. No numbers are in it, only what was summed with whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedhpc.agreement.site_file import SiteFile
from fedhpc.errors import ConfigError
from fedhpc.ledger.home import LedgerHome, data_directory, home_of
from fedhpc.secure.home_ledger import HomeLedger, KnownFederation
from fedhpc.secure.ledger import NO_VECTOR, ZERO_VALUE, LedgerEntry


def find_home(site: Path | None) -> LedgerHome:
    """The home of a site file (or of the folder that it is in); without one the only home of this user.

    Raises ConfigError where there are several.
    """
    if site is not None:
        return home_of(SiteFile.open(site))
    place = data_directory() / "ledger"
    homes = sorted(path for path in place.glob("*") if LedgerHome(path).ledger.exists())
    if len(homes) > 1:
        raise ConfigError(f"there are {len(homes)} ledgers in {place}", "name a site file: --site SITE.TOML")
    return LedgerHome(homes[0] if homes else place)


def home_for(name: str, site: Path | None) -> LedgerHome | None:
    """The home of site `name`: by its site file, or the default one; None if the file is another site's."""
    if site is None:
        return LedgerHome(data_directory() / "ledger" / name)
    file = SiteFile.open(site)
    return home_of(file) if file.site.name == name else None


def ledger_json(home: LedgerHome) -> dict[str, Any]:
    """{"home", "entries", "classes", "refused", "runs"} of a home. Raises PolicyError if the ledger was altered."""
    known = home.look()
    return {
        "home": str(home.folder),
        "entries": [_entry(known, entry) for entry in known.entries()],
        "classes": {name: [_federation(f) for f in of] for name, of in known.classes().items()},
        "refused": [dict(refused) for refused in known.refused],
        "runs": home.running(),
    }


def ledger_lines(found: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    lines = [f"ledger {found['home']}: {len(found['entries'])} rounds"]
    for name, federations in found["classes"].items():
        rosters = sorted({", ".join(f["sites"]) for f in federations})
        lines += [f"  {name}: over {roster}" for roster in rosters]
    lines += [f"  refused: {r['purpose']}, round {r['round']}: {r['reason']}" for r in found["refused"][-5:]]
    return lines


def _federation(federation: KnownFederation) -> dict[str, Any]:
    return {
        "config": federation.config.hex(),
        "federation": federation.name,
        "epoch": federation.epoch,
        "sites": list(federation.names),
    }


def _entry(known: HomeLedger, entry: LedgerEntry) -> dict[str, Any]:
    federation = known.federations[entry.config]
    cohort = entry.cohort or (range(1, len(federation.names) + 1) if entry.everyone else ())
    members = [u for u in cohort if 1 <= u <= len(federation.names)]
    return {
        "config": entry.config.hex(),
        "federation": federation.name,
        "epoch": federation.epoch,
        "round": entry.round_,
        "purpose": entry.purpose,
        "category": entry.category,
        "everyone": entry.everyone,
        "sites": [federation.names[u - 1] for u in members],
        "set": sorted(federation.identities[u - 1].hex() for u in members),
        "state": entry.state.hex(),
        "released": entry.fingerprint == NO_VECTOR,
        "zero": entry.value == ZERO_VALUE,
    }
