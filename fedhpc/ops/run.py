"""One run from two files: joins the federation and hands trainer, checkpoints and reporter to the main loop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.config import read_section
from fedhpc.errors import ConfigError
from fedhpc.federation.federation import Federation
from fedhpc.federation.join import Joined, join_with_files
from fedhpc.federation.rounds import Outcome, run_rounds
from fedhpc.ops.features import compare_stores
from fedhpc.ops.logs import rank_logs
from fedhpc.ops.rundir import keep_agreement
from fedhpc.ops.telemetry import Telemetry
from fedhpc.train.checkpoint import Hdf5Checkpoints
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.site import open_trainer
from fedhpc.train.standardise import standardise
from fedhpc.train.trainer import TorchTrainer


@dataclass(frozen=True)
class DataSection:
    """[data] of a site file."""

    path: Path
    """The site's store, relative to the site file."""
    task_source: Path | None = None
    """The file of a task of the federation's own, for [task] name = "module"."""


@dataclass(frozen=True)
class Ran:
    """What a finished run tells its caller, on every rank."""

    outcome: Outcome
    directory: Path
    first: bool  # rank 0 of the job
    sites: list[str]
    model_sha256: str


def run_federation(
    federation: Path, *, sites: Path | None, site: Path | None, out: Path | None, verbose: bool = False
) -> Ran:
    """Run or continue the federation in this job; every rank calls it. Raises every error a user can meet."""
    joined = join_with_files(federation, sites=sites, site=site, run=out)
    fed = joined.federation
    directory = joined.site_directory
    shows = joined.first
    rounds = fed.party.agreement.federation.rounds
    with fed, rank_logs(directory, site=fed.site, rank=fed.rank, show=shows, verbose=verbose):
        if fed.party.leads:
            keep_agreement(directory.parent, fed.party.agreement)
        trainer = _open_trainer(joined)
        try:
            compare_stores(fed, getattr(getattr(trainer.dataset.opened, "store", None), "feature_set", None))
            store = Hdf5Checkpoints(directory / "checkpoints")
            with Telemetry(
                directory, site=fed.site, site_number=fed.party.number, rank=fed.rank, show=shows, rounds=rounds
            ) as reporter:
                outcome = run_rounds(fed, trainer, store, reporter, prepare=_preparation(fed, trainer))
        finally:
            trainer.close()
    return Ran(outcome, directory.parent, shows, fed.sites, outcome.model.sha256())


def _open_trainer(joined: Joined) -> TorchTrainer:
    fed, files = joined.federation, joined.site_file
    agreement = fed.party.agreement
    if "name" not in agreement.task:
        raise ConfigError("federation.toml has no [task] name", "logistic, mlp, cnn, or module for your own")
    data = read_section(DataSection, files.data, "data")
    return open_trainer(
        read_section(TaskSettings, agreement.task, "task"),
        read_section(TrainSettings, agreement.train, "train"),
        read_section(ComputeSettings, files.compute, "compute"),
        data=files.path(data.path),
        source=None if data.task_source is None else files.path(data.task_source),
        group=fed.party.site,
        site=fed.site,
        seed=agreement.federation.seed,
        proximal=agreement.strategy.proximal,
    )


def _preparation(fed: Federation, trainer: TorchTrainer) -> Any:
    settings = read_section(TaskSettings, fed.party.agreement.task, "task")
    return lambda: standardise(fed.sum, trainer) if settings.standardise else None


def result_json(ran: Ran) -> str:
    """A finished run as one line of JSON."""
    outcome = ran.outcome
    return json.dumps(
        {
            "run": str(ran.directory),
            "sites": ran.sites,
            "metrics": outcome.metrics,
            "final_model_sha256": ran.model_sha256,
            "resumed_after_round": outcome.started_at,
            "seconds_per_round": outcome.seconds_per_round,
            "bytes_per_site_per_round": outcome.bytes_per_round,
        },
        sort_keys=True,
    )
