"""One run from two files: joins the federation and hands trainer, checkpoints and reporter to the main loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.features import compare_stores
from fedhpc.app.federation import Federation
from fedhpc.app.join import Joined, join_with_files
from fedhpc.app.life.history import Finished, keep_finished
from fedhpc.app.life.job_end import ledger_wait_s
from fedhpc.app.life.open import open_life, open_outbox
from fedhpc.app.life.stop_signals import Told
from fedhpc.app.logs import rank_logs
from fedhpc.app.previous import CHECKPOINTS, find_previous
from fedhpc.app.rundir import keep_agreement
from fedhpc.app.telemetry import Telemetry
from fedhpc.config import read_section
from fedhpc.errors import ConfigError, InterruptedRun
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.life import Life, Stage
from fedhpc.federation.session import Session
from fedhpc.ledger.home import home_of
from fedhpc.ledger.journal import FileJournal
from fedhpc.ledger.stores import remember_home, store_mark
from fedhpc.mpi.arrays import from_leader
from fedhpc.rounds.interfaces import Outbox, Reporter
from fedhpc.rounds.loop import Outcome, run_rounds
from fedhpc.rounds.outbox import FileOutbox
from fedhpc.rounds.start import Taken
from fedhpc.secure.ledger import UNKNOWN
from fedhpc.train.checkpoint import Hdf5Checkpoints
from fedhpc.train.recorded import RecordedTrainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.start_file import read_start_file

if TYPE_CHECKING:
    from fedhpc.train.trainer import TorchTrainer

# Torch is imported where it is first needed: from a parallel file system that takes many ranks a minute, and most
# mistakes in the files are found before.


_NEXT_MODEL = "the coordinator agrees on it: `fedhpc federation next DIR --from-model FILE`"


@dataclass(frozen=True)
class DataSection:
    """[data] of a site file."""

    path: Path
    """The site's store, relative to the site file."""
    task_source: Path | None = None
    """The file of a task of the federation's own, for [task] name = "module"."""
    start_model: Path | None = None
    """The model that the federation begins from, for [start] model; a safetensors file."""


@dataclass(frozen=True)
class Before:
    """Where people say that the model lies from which an epoch begins."""

    model: Path | None = None  # the file of [start] model
    run: Path | None = None  # the run directory of an epoch before this one


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
    before: Before = Before(),
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


def run_joined(joined: Joined, *, before: Before = Before(), verbose: bool = False) -> Ran:
    """Train a joined federation in its run directory: checkpoints, metrics and logs are kept there."""
    session, directory, life = joined.session, joined.site_directory, joined.life
    with rank_logs(directory, site=session.site, rank=session.rank, show=joined.first, verbose=verbose):
        if session.party.leads:
            keep_agreement(directory.parent, session.party.agreement)
            session.data = mark_data(session, joined.site_file)
        outbox = open_outbox(session.party, directory)
        with (
            _open_trainer(session, joined.site_file, directory, outbox, life.stage) as trainer,
            Telemetry(
                directory,
                site=session.site,
                site_number=session.party.number,
                rank=session.rank,
                show=joined.first,
                rounds=session.party.agreement.federation.rounds,
            ) as reporter,
        ):
            store = Hdf5Checkpoints(directory / CHECKPOINTS)
            if isinstance(trainer, RecordedTrainer):
                outcome = run_rounds(session, trainer, store, reporter, outbox=outbox, life=life)
            else:
                prepare = preparation(session, trainer, joined.site_file, before)
                previous = partial(_previous, session, joined.site_file, directory, before.run)
                outcome = train(
                    session, trainer, store, reporter, outbox=outbox, life=life, prepare=prepare, previous=previous
                )
        sha256 = outcome.model.sha256()
        if session.party.leads:
            config = session.party.agreement.hash.hex()
            keep_finished(directory, Finished(config, sha256, outcome.model.rounds, outcome.metrics))
    return Ran(outcome, directory.parent, joined.first, session.sites, sha256)


def train(
    session: Session,
    trainer: TorchTrainer,
    store: CheckpointStore,
    reporter: Reporter,
    *,
    outbox: Outbox | None = None,
    life: Life | None = None,
    prepare: Callable[[], None] | None = None,
    previous: Callable[[], Taken | None] = lambda: None,
) -> Outcome:
    """Compare the sites' features, prepare the first model (absent: standardise where agreed), and run all rounds."""
    if life is None or life.stage != "train":
        compare_stores(session, getattr(getattr(trainer.dataset.opened, "store", None), "feature_set", None))
    prepare = prepare or _standardisation(session, trainer)
    return run_rounds(session, trainer, store, reporter, outbox=outbox, life=life, prepare=prepare, previous=previous)


def preparation(session: Session, trainer: TorchTrainer, files: SiteFile, before: Before) -> Callable[[], None]:
    """What is done before the first round of a fresh run: load the model that was agreed on, or standardise.

    Raises ConfigError where a model is given and none is agreed on, later where it is the other way round.
    """
    agreed = session.party.agreement.start.model
    named = read_section(DataSection, files.data, "data").start_model
    if before.model is not None and not agreed:
        raise ConfigError("--from-model is given, and federation.toml has no [start] model", _NEXT_MODEL)
    if not agreed:
        return _standardisation(session, trainer)
    return partial(_load, session, trainer, before.model or (None if named is None else files.path(named)), agreed)


def _previous(session: Session, files: SiteFile, directory: Path, given: Path | None) -> Taken | None:
    """At the leader: what the site has of the epochs before; its ledger remembers where they ran."""
    agreement, home = session.party.agreement, home_of(files)
    remembered = [home.run_of(bytes.fromhex(config)) for config in agreement.start.epochs]
    return find_previous(agreement, session.party.number, directory, given, [p for p in remembered if p is not None])


def _load(session: Session, trainer: TorchTrainer, file: Path | None, agreed: str) -> None:
    """The leader reads, the ranks of the site get it. A run that goes on from a checkpoint needs no file."""
    if file is None:
        raise ConfigError(
            f"site {session.site}: the federation begins from a model that every site is given as a file",
            f"`fedhpc run --from-model FILE`, or start_model in [data] of the site file; its SHA-256 is {agreed}",
        )
    tensors = read_start_file(file).fit(trainer.tensors(), agreed, session.site) if session.party.leads else {}
    trainer.load(from_leader(session.party.site, tensors))


def _standardisation(session: Session, trainer: TorchTrainer) -> Callable[[], None]:
    from fedhpc.train.standardise import standardise

    settings = read_section(TaskSettings, session.party.agreement.task, "task")
    return (
        partial(standardise, partial(Federation(session).sum, everyone=True), trainer)
        if settings.standardise
        else _nothing
    )


def _open_trainer(
    session: Session, files: SiteFile, directory: Path, outbox: FileOutbox, stage: Stage
) -> AbstractContextManager[TorchTrainer | RecordedTrainer]:
    """The trainer of this stage: an exchange plays what was trained, but the first one makes the model."""
    if stage == "exchange" and any((directory / CHECKPOINTS).glob("round-*.h5")):
        work = outbox.newest()
        if work is None:
            raise InterruptedRun(
                "nothing to exchange: the next round is not trained yet",
                "the next training job goes on from here: `fedhpc run --stage train`",
                agreed=True,
                untrained=True,
            )
        return nullcontext(RecordedTrainer(work))
    return open_site_trainer(session, files)


def open_site_trainer(session: Session, files: SiteFile) -> TorchTrainer:
    """The trainer of this rank's site. Raises ConfigError, DataError or PolicyError before anything is exchanged."""
    agreement = session.party.agreement
    if "name" not in agreement.task:
        raise ConfigError("federation.toml has no [task] name", "logistic, mlp, cnn, or module for your own")
    data = read_section(DataSection, files.data, "data")
    task = read_section(TaskSettings, agreement.task, "task")
    train = read_section(TrainSettings, agreement.train, "train")
    compute = read_section(ComputeSettings, files.compute, "compute")
    from fedhpc.train.site import open_trainer

    return open_trainer(
        task,
        train,
        compute,
        data=files.path(data.path),
        source=None if data.task_source is None else files.path(data.task_source),
        group=session.party.site,
        site=session.site,
        seed=agreement.federation.seed,
        proximal=agreement.strategy.proximal,
    )


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


def _nothing() -> None:
    """No preparation."""


def result_json(ran: Ran) -> str:
    """A finished run as one line of JSON."""
    outcome = ran.outcome
    return json.dumps(
        {
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
