"""The heart demo over a relay: each hospital has its own process group, as if on another machine.

Everything between them goes through `fedhpc relay serve`, another process: enrolment, signatures, masked vectors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from fedhpc.agreement.federation_file import Agreement
from fedhpc.data.rowkey import create_key, read_key
from fedhpc.demo.heart.federation import STRATEGY, TASK, TRAIN
from fedhpc.demo.heart.hospitals import write_site_stores
from fedhpc.demo.heart.scores import Costs, other_split, score_split, write_result
from fedhpc.enrolment.one_machine import Enrolled, enrol, running_relay
from fedhpc.errors import InternalError
from fedhpc.mpi.launch import launcher_command, launcher_environment
from fedhpc.mpi.own_ranks import run_ranks

MODELS = "models"  # in the demo's directory: what each site ended with

_SECTIONS = """\
[cohort]
policy = "sync"

[secure]
mode = "pairwise"
suite = "blake3"

[strategy]
{strategy}

[task]
{task}

[train]
{train}
"""


def run_relayed(directory: Path, *, seed: int, rounds: int, splits: int, ranks: int) -> None:
    """Enrol four sites, start a relay and the sites, compare; the result is DIRECTORY/run/demo.json.

    Raises RanksFailedError if a site fails.
    """
    directory.mkdir(parents=True, exist_ok=True)
    create_key(directory / "row-id.key")
    stores = write_site_stores(directory / "data", read_key(directory / "row-id.key"))
    sections = _SECTIONS.format(strategy=STRATEGY, task=TASK.format(split_seed=seed), train=TRAIN)
    enrolled = enrol(directory, "heart", sections, stores, rounds=rounds, seed=seed)
    agreement = Agreement.open(enrolled.federation)
    for k in range(1, splits):
        enrolled.variant(split_folder(directory, k), other_split(agreement, k))
    environment, note = launcher_environment()
    sites = len(enrolled.sites)
    print(f"starting a relay at {enrolled.url} and {sites} sites of {ranks} ranks, each apart; {note}", flush=True)
    with running_relay(enrolled.relay):
        module = ["-m", "mpi4py", "-m", "fedhpc.demo.heart.relayed_site", str(directory)]
        start = [*launcher_command(ranks), sys.executable, *module]
        run_ranks([[*start, name, str(splits)] for name in enrolled.sites], environment)
    _score(directory, enrolled, splits, ranks)


def split_folder(directory: Path, k: int) -> Path:
    """Where the federation of the k-th split lies; the first is the demo's own."""
    return directory if k == 0 else directory / "splits" / str(k)


def _score(directory: Path, enrolled: Enrolled, splits: int, ranks: int) -> None:
    reports = [json.loads((directory / MODELS / f"{name}.json").read_text()) for name in enrolled.sites]
    if any(report["sha256"] != reports[0]["sha256"] for report in reports):
        raise InternalError("the sites ended with different models")
    stores = {name: directory / "data" / f"{name}.h5" for name in enrolled.sites}
    scores = []
    for k in range(splits):
        file = split_folder(directory, k) / "coordinator" / "federation.toml"
        agreement = Agreement.open(file)
        with np.load(directory / MODELS / f"{k}.npz", allow_pickle=False) as arrays:
            scores.append(score_split(stores, agreement, dict(arrays)))
    costs = Costs(
        "https", ranks, reports[0]["seconds_per_round"], reports[0]["bytes_per_round"], reports[0]["sha256"][0]
    )
    own = Agreement.open(enrolled.federation)
    write_result(directory / "run", own, scores, costs)
