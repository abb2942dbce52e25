"""A site's spool directory from its two files: for the carrier, and to see what waits in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.site_file import SiteFile
from fedhpc.sums.over_relay.access import relay_access, spool_of
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience
from fedhpc.transport.spool.carrier import Carrier
from fedhpc.transport.spool.carrier_notes import SiteNotes
from fedhpc.transport.spool.carrier_tasks import Tasks
from fedhpc.transport.spool.folder import ANSWERS, MOST_NOTE_BYTES, SpoolFolder, names_in, read_file
from fedhpc.transport.spool.notes import CarrierLife, SiteLife, read_note

_PATIENCE_S = 30.0  # of one try; with --watch there is another one after it


def carrier_of(federation: Path, site: Path, spool: Path | None, say: Callable[[str], None]) -> Carrier:
    """The carrier of the site in the file `site`, or in a folder. `spool`: instead of the site file's directory.

    Only the site's TLS key is read. Raises ConfigError, PolicyError (another key than the roster's), StorageError.
    """
    agreement, mine, number = _read(federation, site)
    folder = spool_of(agreement, mine, number, spool)
    folder.require()
    access = relay_access(agreement, mine, number)
    client = RelayClient(access, mine.exchange.connections, Patience(total_s=_PATIENCE_S))
    return Carrier(folder, client, say)


@dataclass(frozen=True)
class SpoolStatus:
    """What stands in a spool directory."""

    folder: Path
    waiting: tuple[str, ...]  # objects that the relay has not answered to yet
    wanted: tuple[str, ...]  # objects that the site asked for and has not got
    watched: tuple[str, ...]  # attempts that the site waits for
    carrier: CarrierLife | None
    site: SiteLife | None


def look(federation: Path, site: Path, spool: Path | None) -> SpoolStatus:
    """What waits in the spool directory. Raises ConfigError, StorageError."""
    agreement, mine, number = _read(federation, site)
    folder = spool_of(agreement, mine, number, spool)
    folder.require()
    return status_of(folder)


def status_of(folder: SpoolFolder) -> SpoolStatus:
    """What waits in one site's part of a spool directory. Raises StorageError."""
    notes = SiteNotes(folder)
    answered = set(names_in(folder.in_ / ANSWERS))
    return SpoolStatus(
        folder.root,
        tuple(_short(put.name) for put in notes.puts() if not Tasks.is_sent(folder, put.name, put.note)),
        tuple(_short(wish.name) for wish in notes.wishes() if wish.note not in answered),
        tuple(f"{w.round}/{w.attempt}" for w in notes.watched()),
        read_note(CarrierLife, read_file(folder.carrier, MOST_NOTE_BYTES)),
        read_note(SiteLife, read_file(folder.runs, MOST_NOTE_BYTES)),
    )


def _short(name: object) -> str:
    return str(name).split("/", 1)[1]


def _read(federation: Path, site: Path) -> tuple[Agreement, SiteFile, int]:
    agreement = Agreement.open(federation)
    mine = SiteFile.open(site)
    return agreement, mine, agreement.number_of(mine.site.name)
