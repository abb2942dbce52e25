"""The program of [task]: training rounds on each site's data, or the sums of what an earlier job has trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from typing_extensions import override

from fedhpc.agreement.run_folder import checkpoints
from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.features import compare_stores
from fedhpc.app.federation import Federation
from fedhpc.app.life.open import open_outbox
from fedhpc.app.previous import CHECKPOINTS, find_previous
from fedhpc.app.programs.program import Program
from fedhpc.config import read_section
from fedhpc.errors import ConfigError, DataError, InterruptedRun
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.life import Life, Stage
from fedhpc.federation.session import Session
from fedhpc.ledger.home import home_of
from fedhpc.mpi.arrays import from_leader
from fedhpc.rounds.best_round import Choice
from fedhpc.rounds.interfaces import LocalWork, Outbox, Reporter
from fedhpc.rounds.loop import Outcome, Run
from fedhpc.rounds.null_objects import NoOutbox
from fedhpc.rounds.start_sum import Taken
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.recorded import RecordedTrainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.site_trainer import SiteTrainer
from fedhpc.train.standardise import standardise
from fedhpc.train.start_file import read_start_file

_NEXT_MODEL = "the coordinator agrees on it: `fedhpc federation next DIR --from-model FILE`"


@dataclass(frozen=True)
class DataSection:
    """[data] of a site file."""

    path: Path
    """The site's store, relative to the site file."""
    task_source: Path | None = None
    """The file of a task of the federation's own, for [task] name = "module"."""
    min_rows: int = 2
    """A store with fewer rows does not take part: what is known of a sum would say much of a single person."""
    test: Path | None = None
    """A store of rows for the final model alone, for [task] test."""
    weights: Path | None = None
    """The folder of safetensors that the first model is read from, for [task] weights_sha256."""
    start_model: Path | None = None
    """The model that the federation begins from, for [start] model; a safetensors file."""

    def __post_init__(self) -> None:
        if self.min_rows < 1:
            raise ConfigError(f"data.min_rows = {self.min_rows} is out of range", "it must be 1 or more")


@dataclass(frozen=True)
class Before:
    """Where people say that the model lies from which an epoch begins."""

    model: Path | None = None  # the file of [start] model
    run: Path | None = None  # the run directory of an epoch before this one


NOT_SAID = Before()


@contextmanager
def open_training(
    session: Session, files: SiteFile, directory: Path, stage: Stage, before: Before = NOT_SAID
) -> Iterator[Program]:
    """The training program of this rank's site; `directory` is RUN/SITE.

    An exchange plays what was trained, but the first one makes the model. Raises InterruptedRun where there is nothing
    to exchange yet, else what `open_site_trainer` raises.
    """
    outbox = open_outbox(session.party, directory)
    if stage == "exchange" and checkpoints(directory / CHECKPOINTS):
        work = outbox.newest()
        if work is None:
            raise InterruptedRun(
                "nothing to exchange: the next round is not trained yet",
                "the next training job goes on from here: `fedhpc run --stage train`",
                agreed=True,
                untrained=True,
            )
        yield RecordedTraining(work, outbox)
        return
    with open_site_trainer(session, files) as trainer:
        yield Training(trainer, files, outbox, before=before, directory=directory)


class Training(Program):
    """Rounds of local training and masked sums, from the first model to the last."""

    def __init__(
        self,
        trainer: SiteTrainer,
        files: SiteFile,
        outbox: Outbox | None = None,
        *,
        before: Before = NOT_SAID,
        directory: Path | None = None,
    ) -> None:
        """`directory`: RUN/SITE, beside which a run of an epoch before is looked for; None where there is none."""
        self._trainer, self._files, self._outbox = trainer, files, outbox or NoOutbox()
        self._before, self._directory = before, directory

    @override
    def run(self, session: Session, life: Life, store: CheckpointStore, reporter: Reporter) -> Outcome:
        """Compare the sites' features, prepare the first model, and run all rounds."""
        prepare = self._preparation(session)
        if life.stage != "train":
            compare_stores(session, self._trainer.features)
        return Run(
            session,
            self._trainer,
            store,
            reporter,
            outbox=self._outbox,
            life=life,
            prepare=prepare,
            previous=partial(self._previous, session),
            choice=_choice(session),
            tested=self._trainer.measure_test,
        ).run()

    def _preparation(self, session: Session) -> Callable[[], None]:
        """What is done before the first round of a fresh run: load the model that was agreed on, or standardise.

        Raises ConfigError where a model is given and none is agreed on, later where it is the other way round.
        """
        agreed = session.agreement.start.model
        named = read_section(DataSection, self._files.data, "data").start_model
        if self._before.model is not None and not agreed:
            raise ConfigError("--from-model is given, and federation.toml has no [start] model", _NEXT_MODEL)
        if agreed:
            file = self._before.model or (None if named is None else self._files.path(named))
            return partial(self._load, session, file, agreed)
        if read_section(TaskSettings, session.agreement.task, "task").standardise:
            return partial(self._standardise, session)
        return _nothing

    def _load(self, session: Session, file: Path | None, agreed: str) -> None:
        """The leader reads, the ranks of the site get it. A run that goes on from a checkpoint needs no file."""
        if file is None:
            raise ConfigError(
                f"site {session.site}: the federation begins from a model that every site is given as a file",
                f"`fedhpc run --from-model FILE`, or start_model in [data] of the site file; its SHA-256 is {agreed}",
            )
        trainer, party = self._trainer, session.party
        tensors = read_start_file(file).fit(trainer.forms(), agreed, session.site) if party.leads else {}
        trainer.load(from_leader(party.site, tensors))

    def _standardise(self, session: Session) -> None:
        standardise(partial(Federation(session).sum, everyone=True), self._trainer)

    def _previous(self, session: Session) -> Taken | None:
        """At the leader: what the site has of the epochs before; its ledger remembers where they ran."""
        if self._directory is None:
            return None
        agreement, home = session.agreement, home_of(self._files)
        remembered = [home.run_of(bytes.fromhex(config)) for config in agreement.start.epochs]
        places = [place for place in remembered if place is not None]
        return find_previous(agreement, session.party.number, self._directory, self._before.run, places)


class RecordedTraining(Program):
    """The sum of one round that an earlier job has trained; it needs neither torch nor the data."""

    def __init__(self, work: LocalWork, outbox: Outbox) -> None:
        self._work, self._outbox = work, outbox

    @override
    def run(self, session: Session, life: Life, store: CheckpointStore, reporter: Reporter) -> Outcome:
        trainer = RecordedTrainer(self._work)
        return Run(session, trainer, store, reporter, outbox=self._outbox, life=life, choice=_choice(session)).run()


def open_site_trainer(session: Session, files: SiteFile) -> SiteTrainer:
    """The trainer of this rank's site. Raises ConfigError, DataError or PolicyError before anything is exchanged."""
    agreement = session.agreement
    if "name" not in agreement.task:
        raise ConfigError(
            "federation.toml has no [task] name", "logistic, mlp, cnn, transformer, or module for your own"
        )
    data = read_section(DataSection, files.data, "data")
    task = read_section(TaskSettings, agreement.task, "task")
    train = read_section(TrainSettings, agreement.train, "train")
    compute = read_section(ComputeSettings, files.compute, "compute")
    trainer = open_trainer(
        task,
        train,
        compute,
        data=files.path(data.path),
        source=None if data.task_source is None else files.path(data.task_source),
        weights=None if data.weights is None else files.path(data.weights),
        test=None if data.test is None else files.path(data.test),
        group=session.party.site,
        site=session.site,
        seed=agreement.federation.seed,
        proximal=agreement.strategy.proximal,
    )
    rows = trainer.train_rows.size + trainer.held_out_rows.size
    if rows < data.min_rows:
        trainer.close()
        raise DataError(
            f"site {session.site}: the store has {rows} row{'s' if rows != 1 else ''}, and the site asks for "
            f"{data.min_rows} at least",
            "a sum with so few persons of one site may say something of each: min_rows in [data] allows it",
        )
    return trainer


def _choice(session: Session) -> Choice | None:
    train = session.agreement.train
    return read_section(TrainSettings, train, "train").choice() if "keep" in train else None


def _nothing() -> None:
    """No preparation."""
