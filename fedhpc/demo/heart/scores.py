"""The table of the heart demo: what each way of training scores, split by split and over all of them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from fedhpc.agreement.federation_file import Agreement
from fedhpc.config import read_section
from fedhpc.demo.heart.baselines import Score, Split, fit, join_rows, read_split, score
from fedhpc.federation.checkpoint import Tensors
from fedhpc.train.settings import TaskSettings, TrainSettings

RESULT_FILE = "demo.json"


@dataclasses.dataclass(frozen=True)
class Costs:
    """The cost and the result of the run that is kept."""

    exchange: str
    ranks_per_site: int
    seconds_per_round: float
    bytes_per_site_per_round: int
    final_model_sha256: str


def other_split(agreement: Agreement, k: int) -> bytes:
    """federation.toml for the k-th split of the rows; k = 0 is the agreement's own."""
    seed = int(agreement.task["split_seed"]) + k
    return re.sub(r"(?m)^split_seed = \d+", f"split_seed = {seed}", agreement.source.decode()).encode()


def score_split(stores: Mapping[str, Path], agreement: Agreement, federated: Tensors) -> dict[str, Score]:
    """Each hospital alone, the pooled rows, and the federation's model, on the held-out rows of this split."""
    task = read_section(TaskSettings, agreement.task, "task")
    settings = read_section(TrainSettings, agreement.train, "train")
    steps = agreement.federation.rounds * settings.local_steps
    split = read_split(stores, task.held_out, task.split_seed)
    return _baselines(split, task, settings, steps) | {"federated": score(federated, split.held_out)}


def write_result(run: Path, agreement: Agreement, scores: list[dict[str, Score]], costs: Costs) -> None:
    """Write RUN/demo.json, which `fedhpc demo heart` prints."""
    sites = agreement.names
    result = {
        "accuracy": _summary([{n: s.accuracy for n, s in found.items()} for found in scores], sites),
        "auc": _summary([{n: s.auc for n, s in found.items()} for found in scores], sites),
        "splits": len(scores),
        "rounds": agreement.federation.rounds,
        "sites": sites,
        "run": str(run),
        **dataclasses.asdict(costs),
    }
    (run / RESULT_FILE).write_text(json.dumps(result) + "\n")


def _baselines(split: Split, task: TaskSettings, settings: TrainSettings, steps: int) -> dict[str, Score]:
    found = {site: score(fit(rows, task, settings, steps), split.held_out) for site, rows in split.train.items()}
    pooled = fit(join_rows(list(split.train.values())), task, settings, steps)
    return {**found, "pooled": score(pooled, split.held_out)}


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
