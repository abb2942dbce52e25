"""The life and the outbox of a joined site, from its files and the job it runs in."""

from __future__ import annotations

from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.run_folder import run_place
from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.life.history import Finished, finished, round_seconds
from fedhpc.app.life.job_end import job_end
from fedhpc.app.life.job_life import JobLife
from fedhpc.app.life.settings import LifeSettings
from fedhpc.app.life.stop_signals import Told
from fedhpc.config import read_section
from fedhpc.errors import ConfigError
from fedhpc.federation.life import Stage
from fedhpc.federation.party import Party
from fedhpc.mpi.world import Place
from fedhpc.rounds.outbox import FileOutbox, outbox_key
from fedhpc.secure.keys import KEY_BYTES

OUTBOX = "outbox"


def open_life(stage: Stage, told: Told, place: Place, site_file: SiteFile, site_directory: Path) -> JobLife:
    """How long this rank may go on. Only the leader asks for the job's end, and decides for the site's ranks."""
    settings = read_section(LifeSettings, site_file.life, "life")
    leads = place.site.rank == 0
    told.site_directory = site_directory
    return JobLife(settings, told, stage, job_end() if leads else None, round_seconds(site_directory) if leads else ())


def open_outbox(party: Party, site_directory: Path) -> FileOutbox:
    """Where this site keeps local work."""
    # Where nothing is masked there is no ledger key, and nothing to hide.
    secret = party.ledger_keys.whole if party.ledger_keys is not None else bytes(KEY_BYTES)
    config = party.agreement.hash
    return FileOutbox(site_directory / OUTBOX, config, outbox_key(secret, config), party.site)


def finished_before(federation: Path, site: Path, run: Path | None, stage: Stage) -> Finished | None:
    """What this site ended with, if this job, one of a chain, has nothing left to do. Reads files only.

    Raises ConfigError for files that cannot be used.
    """
    agreement = Agreement.open(federation)
    mine = SiteFile.open(site)
    agreement.number_of(mine.site.name)
    settings = read_section(LifeSettings, mine.life, "life")
    if stage != "all" and mine.exchange.kind == "mpi":
        raise ConfigError(
            "training and exchange are stages of their own only where sites meet at a relay",
            'run it without --stage, or set [exchange] kind = "https" in the site file',
        )
    if stage == "all" and settings.kind == "inline":
        return None
    return finished(mine.run_directory(run_place(federation, agreement, run)), agreement.hash)
