"""Takes over the ledger that fedhpc 0.1.0 kept in each run directory.

Its fingerprints were made with another key, so they are compared only within their own federation; its classes of sums
and the sets that they were opened over count like any other.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.agreement.roster import read_roster
from fedhpc.agreement.run_folder import FEDERATION_FILE
from fedhpc.config import parse_toml, read_bytes, read_section
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.ledger.file import LEDGER_FILE
from fedhpc.ledger.home import LedgerHome
from fedhpc.ledger.sum_class import class_of
from fedhpc.secure import labels
from fedhpc.secure.home_ledger import KnownFederation
from fedhpc.secure.ledger import GENESIS, LedgerEntry, chain, entry_from_json
from fedhpc.secure.settings import SecureSettings
from fedhpc.secure.transcript import parse_canon

_MEASURED = "metrics after round "
_SCALE = "scale of "
_UNNAMED = "sum "


@dataclass(frozen=True)
class Adopted:
    """What was taken over from one site's part of a run directory."""

    site: str
    home: Path
    entries: int  # in the old ledger
    new: int  # lines that were added now


def sites_of(run: Path) -> list[Path]:
    """The folders RUN/SITE that hold a ledger; `run` may be one itself. Raises ConfigError if there is none."""
    if (run / LEDGER_FILE).is_file():
        return [run]
    found = sorted(path.parent for path in run.glob(f"*/{LEDGER_FILE}"))
    if not found:
        raise ConfigError(f"there is no {LEDGER_FILE} in {run}", "name a run directory of fedhpc 0.1.0")
    return found


def adopt(home: LedgerHome, folder: Path, federation: Path | None = None) -> Adopted:
    """Take over RUN/SITE/ledger.jsonl into `home`; a second time changes nothing.

    `federation`: the file it ran with; absent: the copy in RUN, or the file beside it. Raises ConfigError, PolicyError
    if either ledger was altered or they contradict each other, StorageError.
    """
    known = _federation(folder, federation)
    entries = read_old(folder / LEDGER_FILE)
    file, _ = home.open()
    new = 0
    try:
        with file.locked():
            before = file.known.federations.get(known.config)
            if before is None:
                file.append({"federation": known.as_json()}, lambda: file.known.know(known))
                new += 1
            elif before != known:
                raise PolicyError(
                    f"{file.path} has this configuration for site {before.names[before.number - 1]}",
                    "give each site a ledger's home of its own: [ledger] path",
                )
            for old in entries:
                entry = dataclasses.replace(old, config=known.config, category=old_class(old.purpose))
                if file.known.of(known.config).check(entry):
                    file.append({"entry": entry.as_json()}, lambda entry=entry: file.known.add(entry))  # type: ignore[misc]
                    new += 1
    finally:
        file.close()
    return Adopted(known.names[known.number - 1], home.folder, len(entries), new)


def read_old(path: Path) -> list[LedgerEntry]:
    """The entries of a ledger of 0.1.0; a torn last line is left out. Raises PolicyError if it was altered."""
    data = _whole(path)
    entries: list[LedgerEntry] = []
    head = GENESIS
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = parse_canon(line)
            entry = entry_from_json(record["entry"])
            head = chain(head, entry)
            if record["head"] != head.hex():
                raise ValueError("the chain of hashes is broken")
        except (ValueError, KeyError, TypeError) as error:
            raise PolicyError(f"{path}, line {number}: {error}", "the ledger was altered; put it back") from None
        entries.append(entry)
    return entries


def _whole(path: Path) -> bytes:
    """A file of any length. Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def old_class(purpose: str) -> str:
    """The class of a sum by what 0.1.0 called it."""
    if purpose == labels.PURPOSE_TRAIN:
        return labels.CLASS_TRAIN
    if purpose.startswith(_SCALE):
        return labels.CLASS_SCALE
    if purpose.startswith(_MEASURED):
        return labels.CLASS_MEASURED
    number = purpose.removeprefix(_UNNAMED)
    return class_of(None if number != purpose and number.isdigit() else purpose)


def _federation(folder: Path, given: Path | None) -> KnownFederation:
    """The federation of RUN/SITE, from a federation.toml of that version."""
    places = [given] if given else [folder.parent / FEDERATION_FILE, folder.parent.parent / FEDERATION_FILE]
    path = next((place for place in places if place.is_file()), places[0])
    source = read_bytes(path)
    table = parse_toml(source, str(path))
    section: Any = table.get("federation", {})
    roster = read_roster(table.get("site", []), str(path))
    names = tuple(entry.name for entry in roster)
    if folder.name not in names:
        raise ConfigError(
            f"{folder.name} is not in the roster of {path}",
            "the folder RUN/SITE has the site's name; see --federation",
        )
    thresholds = read_section(SecureSettings, table.get("secure", {}), "secure").thresholds(len(roster))
    return KnownFederation(
        config=hashlib.sha256(source).digest(),
        name=str(section.get("name", "")),
        epoch=int(section.get("epoch", 0)),
        number=names.index(folder.name) + 1,
        colluders=0 if thresholds is None else thresholds.colluders,
        names=names,
        identities=tuple(entry.identity for entry in roster),
    )
