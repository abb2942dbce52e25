"""Every rank of the heart demo runs this: the federation over many paired splits, and its baselines.

    mpirun -n 8 … python -m mpi4py -m fedhpc.demo.heart.compare DIRECTORY SPLITS

The first split is the run that is kept in DIRECTORY/run; the result goes to DIRECTORY/run/demo.json.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from fedhpc.config import read_section
from fedhpc.demo.heart.baselines import Score, Split, fit, join_rows, read_split, score
from fedhpc.federation.agreement import Agreement, read_agreement, read_site_directory
from fedhpc.federation.federation import Federation
from fedhpc.federation.interfaces import Tensors
from fedhpc.federation.join import Joined, join_with_files
from fedhpc.federation.journal import MemoryJournal
from fedhpc.federation.nothing import NoCheckpoints, Silence
from fedhpc.ops.run import Ran, open_site_trainer, run_joined, train
from fedhpc.train.settings import TaskSettings, TrainSettings
from fedhpc.train.tasks import logistic

RESULT_FILE = "demo.json"


def compare(directory: Path, splits: int) -> None:
    """Train and score everything; rank 0 writes the result. Called by every rank."""
    torch.set_num_threads(1)
    joined = join_with_files(directory / "federation.toml", sites=directory / "sites", site=None, run=None)
    with joined.federation as fed:
        ran = run_joined(joined)
        agreements = [_other_split(fed.party.agreement, k) for k in range(splits)]
        models = [ran.outcome.model.tensors]
        for agreement in agreements[1:]:
            models.append(_train_split(joined, agreement))
        scores = _score_all(joined, directory, agreements, models)
        if joined.first:
            result = _result(joined, ran, scores)
            (ran.directory / RESULT_FILE).write_text(json.dumps(result) + "\n")


def _other_split(agreement: Agreement, k: int) -> Agreement:
    """The same agreement with the k-th split of the rows; k = 0 is the agreement itself."""
    seed = int(agreement.task["split_seed"]) + k
    text = re.sub(r"(?m)^split_seed = \d+", f"split_seed = {seed}", agreement.source.decode())
    return agreement if k == 0 else read_agreement(text.encode(), "federation.toml")


def _train_split(joined: Joined, agreement: Agreement) -> Tensors:
    """The federation's model on another split, trained by the same ranks; nothing of it is kept on disk."""
    party = joined.federation.party
    journal = MemoryJournal() if party.leads else None
    party = dataclasses.replace(party, agreement=agreement, journal=journal)
    fed = Federation(party, joined.federation.sums.of(party))
    with open_site_trainer(fed, joined.site_file) as trainer:
        return train(fed, trainer, NoCheckpoints(), Silence()).model.tensors


def _score_all(
    joined: Joined, directory: Path, agreements: list[Agreement], models: list[Tensors]
) -> list[dict[str, Score]]:
    """Per split: the score of each hospital alone, of the pooled rows and of the federation. Ranks share the work."""
    fed = joined.federation
    files = read_site_directory(directory / "sites", fed.party.agreement)
    stores = {f.site.name: f.path(Path(f.data["path"])) for f in files}
    place, places = _place_in_job(fed)
    mine: dict[int, dict[str, Any]] = {}
    for k in range(place, len(agreements), places):
        task = read_section(TaskSettings, agreements[k].task, "task")
        settings = read_section(TrainSettings, agreements[k].train, "train")
        steps = agreements[k].federation.rounds * settings.local_steps
        split = read_split(stores, task.held_out, task.split_seed)
        found = _baselines(split, task, settings, steps)
        found["federated"] = score(_model(task, models[k]), split.held_out)
        mine[k] = {name: dataclasses.asdict(s) for name, s in found.items()}
    gathered: dict[int, dict[str, Score]] = {}
    for part in _gather_over_job(fed, json.dumps(mine).encode()):
        for k, found in json.loads(part).items():
            gathered[int(k)] = {name: Score(**s) for name, s in found.items()}
    return [gathered[k] for k in sorted(gathered)]


def _baselines(split: Split, task: TaskSettings, settings: TrainSettings, steps: int) -> dict[str, Score]:
    found = {site: score(fit(rows, task, settings, steps), split.held_out) for site, rows in split.train.items()}
    pooled = fit(join_rows(list(split.train.values())), task, settings, steps)
    return {**found, "pooled": score(pooled, split.held_out)}


def _model(task: TaskSettings, tensors: Tensors) -> torch.nn.Module:
    """The federation's final model."""
    model = logistic.model(task.options)
    model.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})
    return model


def _place_in_job(fed: Federation) -> tuple[int, int]:
    """A running number of this rank over all sites, and how many there are; all sites have the same ranks here."""
    return (fed.party.number - 1) * fed.ranks + fed.rank, len(fed.sites) * fed.ranks


def _gather_over_job(fed: Federation, message: bytes) -> list[bytes]:
    """Every rank's message, at the leaders; at other ranks those of their site. The scores are of public data."""
    within = fed.party.site.gather_bytes(message)
    if not fed.party.leads:
        return within
    joined = fed.sums.announce("SCORES", b"\n".join(within)).values()
    return [line for lines in joined for line in lines.split(b"\n")]


def _result(joined: Joined, ran: Ran, scores: list[dict[str, Score]]) -> dict[str, Any]:
    sites = joined.federation.sites
    outcome = ran.outcome
    return {
        "accuracy": _summary([{n: s.accuracy for n, s in found.items()} for found in scores], sites),
        "auc": _summary([{n: s.auc for n, s in found.items()} for found in scores], sites),
        "splits": len(scores),
        "rounds": joined.federation.party.agreement.federation.rounds,
        "sites": sites,
        "ranks_per_site": joined.federation.ranks,
        "exchange": joined.federation.sums.name,
        "seconds_per_round": outcome.seconds_per_round,
        "bytes_per_site_per_round": outcome.bytes_per_round,
        "final_model_sha256": ran.model_sha256,
        "run": str(ran.directory),
    }


def _summary(rows: list[dict[str, float | None]], sites: list[str]) -> dict[str, Any]:
    """Mean and standard deviation over the splits, by method; None where a split has no value."""
    means: list[float | None] = []
    for row in rows:
        alone = [row[s] for s in sites]
        means.append(None if None in alone else fmean(a for a in alone if a is not None))
    columns = {name: [row[name] for row in rows] for name in (*sites, "federated", "pooled")} | {"alone_mean": means}

    def of(measure: Any) -> dict[str, Any]:
        values = {n: None if None in c else measure([v for v in c if v is not None]) for n, c in columns.items()}
        return {
            "alone": {s: values[s] for s in sites},
            **{n: values[n] for n in ("alone_mean", "federated", "pooled")},
        }

    return {**of(fmean), "sd": of(pstdev)}


if __name__ == "__main__":
    compare(Path(sys.argv[1]), int(sys.argv[2]))
