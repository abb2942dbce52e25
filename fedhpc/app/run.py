"""One run from two files: joins the federation, opens its log, life and checkpoints, and runs its program."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedhpc.agreement.images import SHA256_VARIABLE
from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.join import Joined, join_with_files
from fedhpc.app.life.history import Finished, keep_finished
from fedhpc.app.life.job_end import ledger_wait_s
from fedhpc.app.life.open import open_life
from fedhpc.app.life.stop_signals import Told
from fedhpc.app.logs import printable, rank_logs
from fedhpc.app.previous import CHECKPOINTS
from fedhpc.app.programs.training import NOT_SAID, Before, open_training
from fedhpc.app.rundir import keep_agreement
from fedhpc.app.telemetry import Telemetry
from fedhpc.federation.life import Stage
from fedhpc.federation.session import Session
from fedhpc.kernel.choice import running
from fedhpc.ledger.home import home_of
from fedhpc.ledger.journal import FileJournal
from fedhpc.ledger.stores import remember_home, store_mark
from fedhpc.rounds.loop import Outcome
from fedhpc.secure.ledger import UNKNOWN
from fedhpc.train.checkpoint_files import Hdf5Checkpoints

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ran:
    """What a finished run tells its caller, on every rank."""

    outcome: Outcome
    directory: Path
    first: bool  # rank 0 of the job
    sites: list[str]
    model_sha256: str


def run_federation(
    federation: Path,
    *,
    sites: Path | None,
    site: Path | None,
    out: Path | None,
    stage: Stage = "all",
    before: Before = NOT_SAID,
    told: Told | None = None,
    verbose: bool = False,
) -> Ran:
    """Run or continue the federation in this job; every rank calls it. Raises every error a user can meet.

    `told`: listens for signals already. InterruptedRun: what is needed to go on is kept; submit the job again.
    """
    joined = join_with_files(
        federation,
        sites=sites,
        site=site,
        run=out,
        connect=stage != "train",
        live=partial(open_life, stage, told or Told()),
        ledger_wait_s=ledger_wait_s(),
    )
    with joined.session:
        return run_joined(joined, before=before, verbose=verbose)


def run_joined(joined: Joined, *, before: Before = NOT_SAID, verbose: bool = False) -> Ran:
    """Run a joined federation's program in its run directory: checkpoints, metrics and logs are kept there."""
    session, directory, life = joined.session, joined.site_directory, joined.life
    party, files = session.party, joined.site_file
    with rank_logs(directory, site=session.site, rank=session.rank, show=joined.first, verbose=verbose):
        if image := os.environ.get(SHA256_VARIABLE):
            listed = party.agreement.images.name_of(image)
            _log.info(
                "in an image with sha256 %s%s", printable(image), f", {listed} of federation.toml" if listed else ""
            )
        found = running()
        _log.info("vectors are hidden by the kernel %s%s", found.name, f" ({found.reason})" if found.reason else "")
        if party.leads:
            keep_agreement(directory.parent, party.agreement)
            session.data = mark_data(session, files)
        with (
            open_training(session, files, directory, life.stage, before) as program,
            Telemetry(
                directory,
                site=session.site,
                site_number=party.number,
                rank=session.rank,
                show=joined.first,
                rounds=party.agreement.federation.rounds,
            ) as reporter,
        ):
            outcome = program.run(session, life, Hdf5Checkpoints(directory / CHECKPOINTS), reporter)
        sha256 = outcome.model.sha256()
        if party.leads:
            config = party.agreement.hash.hex()
            keep_finished(directory, Finished(config, sha256, outcome.model.rounds, outcome.metrics))
    return Ran(outcome, directory.parent, joined.first, session.sites, sha256)


def mark_data(session: Session, files: SiteFile) -> bytes:
    """What the ledger knows this site's data by [64]; unknown where the site file names none. Leaders only.

    Sites of one job belong to one operator who tries things out; others keep to one ledger for a store.
    """
    path, journal = files.data.get("path"), session.party.journal
    if not isinstance(path, str) or not isinstance(journal, FileJournal):
        return UNKNOWN
    store = files.path(Path(path))
    if files.exchange.kind != "mpi":
        remember_home(home_of(files), store)
    return store_mark(journal.key, store)


def result_json(ran: Ran) -> str:
    """A finished run as one line of JSON."""
    outcome = ran.outcome
    tested = {"test_metrics": outcome.tested} if outcome.tested else {}
    return json.dumps(
        tested
        | {
            "run": str(ran.directory),
            "sites": ran.sites,
            "metrics": outcome.metrics,
            "round": outcome.model.rounds,
            "model_sha256": ran.model_sha256,
            "final_model_sha256": ran.model_sha256,  # its name in 0.1
            "resumed_after_round": outcome.started_at,
            "seconds_per_round": outcome.seconds_per_round,
            "bytes_per_site_per_round": outcome.bytes_per_round,
        },
        sort_keys=True,
    )
