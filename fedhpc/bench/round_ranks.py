"""Every rank of `fedhpc bench round` runs this; rank 0 prints the result.

A repeat is a fresh run with masks and a fresh one without, of the same data and first model, each as `fedhpc run` has
them: with evaluation, a checkpoint in every round and the ledger on disk. They must end with the same model.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from typing_extensions import override

from fedhpc.bench.memory import clear_peak, peak_bytes
from fedhpc.bench.rehearsal import Stage, set_stage
from fedhpc.bench.sum_ranks import over_job, versions
from fedhpc.config import read_section
from fedhpc.rounds.loop import Run
from fedhpc.rounds.null_objects import Silence
from fedhpc.train.checkpoint_files import Hdf5Checkpoints
from fedhpc.train.open_torch_trainer import open_torch_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings

_STAGES = ("evaluate", "train", "exchange", "checkpoint", "encode", "masks", "wire", "decode", "agree", "ledger")
_MEDIANS = ("unmasked_s", "unmasked_cpu_s", "secure_share")


@dataclass(frozen=True)
class Case:
    """What is measured."""

    folder: str  # for checkpoints and ledgers
    stores: list[str]  # of each site
    ranks: list[int]  # of each site
    federation: str  # keys of [federation], then sections
    repeat: int


class Clock(Silence):
    """Notes when this rank ended each round."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []  # seconds, processor seconds
        self.stages: list[dict[str, float]] = []
        self.finite = True

    @override
    def round_done(self, record: Mapping[str, Any]) -> None:
        if "train_loss" in record:  # the final model's record has none
            self.ends.append((time.perf_counter(), time.process_time()))
            self.stages.append(dict(record["seconds"]))
            self.finite = self.finite and math.isfinite(record["train_loss"])


@dataclass(frozen=True)
class Mode:
    """A run in one mode: what one of its rounds takes, without the first."""

    wall_s: float  # of the slowest rank
    cpu_s: float  # of all ranks
    peak_bytes: int  # of all ranks
    model_sha256: str  # "" where the ranks have different ones, or a loss is not finite
    params: int
    bytes_up: int
    stages: dict[str, float]  # mean over ranks and rounds


def measure(case: Case) -> None:
    """Run the case; rank 0 prints one JSON object."""
    stage = set_stage(case.ranks)
    repeats: list[dict[str, Any]] = []
    params = sent = 0
    for number in range(case.repeat):
        modes = ("pairwise", "off") if number % 2 else ("off", "pairwise")
        found = {mode: _run(case, stage, mode, f"{number}-{mode}") for mode in modes}
        masked, unmasked = found["pairwise"], found["off"]
        params, sent = masked.params, masked.bytes_up
        repeats.append(
            {
                "wall_s": masked.wall_s,
                "cpu_s": masked.cpu_s,
                "peak_bytes": masked.peak_bytes,
                "verified": masked.model_sha256 != "" and masked.model_sha256 == unmasked.model_sha256,
                "unmasked_s": unmasked.wall_s,
                "unmasked_cpu_s": unmasked.cpu_s,
                "secure_share": 1 - unmasked.cpu_s / masked.cpu_s,
                "stages_s": masked.stages,
            }
        )
    if stage.world.group.rank:
        return
    middle = {name: statistics.median(r[name] for r in repeats) for name in _MEDIANS}
    result = {
        **middle,
        "stages_s": {n: statistics.median(r["stages_s"][n] for r in repeats) for n in _STAGES},
        "bytes_up_per_site": sent,
        "params": params,
        "sites": stage.sites,
        "ranks": case.ranks,
        "repeats": repeats,
        "versions": versions() | {"torch": version("torch")},
    }
    print(json.dumps(result))


def _run(case: Case, stage: Stage, mode: str, name: str) -> Mode:
    """A fresh federation's run from the first model to the last."""
    home = Path(case.folder) / name / str(stage.place.number)
    if stage.place.site.rank == 0:
        home.mkdir(parents=True)
    stage.world.group.barrier()
    session = stage.session(stage.party(mode, home=home, more=case.federation))
    agreement, group = session.agreement, stage.place.site
    trainer = open_torch_trainer(
        read_section(TaskSettings, agreement.task, "task"),
        read_section(TrainSettings, agreement.train, "train"),
        ComputeSettings(backend="ddp" if group.size > 1 else "serial"),
        data=Path(case.stores[stage.place.number - 1]),
        source=None,
        group=group,
        site=session.site,
        seed=agreement.federation.seed,
    )
    clock = Clock()
    try:
        clear_peak()
        outcome = Run(session, trainer, Hdf5Checkpoints(home / "checkpoints"), clock).run()
        peak, params = peak_bytes(), sum(p.numel() for p in trainer.model.parameters())
    finally:
        trainer.close()
        session.close()
    spans = [[b - a for a, b in zip(x, y, strict=True)] for x, y in itertools.pairwise(clock.ends)]
    wall_s, cpu_s = (statistics.fmean(column) for column in zip(*spans, strict=True))
    mine = {"wall_s": wall_s, "cpu_s": cpu_s, "peak": peak, "sha256": outcome.model.sha256(), "finite": clock.finite}
    ranks = over_job(stage, mine | {n: statistics.fmean(s.get(n, 0.0) for s in clock.stages[1:]) for n in _STAGES})
    hashes = {r["sha256"] for r in ranks}
    return Mode(
        wall_s=max(r["wall_s"] for r in ranks),
        cpu_s=sum(r["cpu_s"] for r in ranks),
        peak_bytes=sum(r["peak"] for r in ranks),
        model_sha256=hashes.pop() if len(hashes) == 1 and all(r["finite"] for r in ranks) else "",
        params=params,
        bytes_up=outcome.bytes_per_round,
        stages={n: statistics.fmean(r[n] for r in ranks) for n in _STAGES},
    )


if __name__ == "__main__":
    measure(Case(**json.loads(sys.argv[1])))
