"""A run of 3 sites with a small NumPy model, for test_kill.py: real loop, masks, ledger and checkpoints, no torch.

    kill_ranks.py FEDERATION SITES POINT

POINT is "" or `SITE WHERE COUNT`: there the process freezes and says so in the file `frozen`; the test then kills all.
WHERE is `admit-before`, `admit-after` (the COUNT-th line of the ledger), `save-before`, `save-half`, `save-after` (of
round COUNT), `sum` (half-way through the COUNT-th long sum), `settle` (before the COUNT-th sum's results).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.app.federation import Federation
from fedhpc.app.join import join_with_files
from fedhpc.app.previous import find_previous
from fedhpc.app.rundir import keep_agreement
from fedhpc.data import hdf5
from fedhpc.federation.checkpoint import Tensors
from fedhpc.ledger.journal import FileJournal
from fedhpc.rounds.interfaces import AtStep, LocalResult
from fedhpc.rounds.loop import Run
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.in_job.masked_sum import MpiSums
from fedhpc.train.checkpoint_files import Hdf5Checkpoints
from tests.fakes.held_fakes import HeldTensors

SHAPES = {"weight": (300_000,), "bias": (7,)}  # 1.2 MB: two blocks
federation, sites, point = sys.argv[1:]


class Model(HeldTensors):
    """A Trainer: each site pulls the model towards its own target, with noise of its own that restarts must repeat."""

    def __init__(self, site: str, prepare: Callable[[], float]) -> None:
        draw = np.random.default_rng(list(site.encode()))
        self.target = {n: draw.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
        self.now: Tensors = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
        self.velocity = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
        self.steps = 0
        self.site = site

    def averaged(self) -> frozenset[str]:
        return frozenset({"bias"})

    def train(self, round_: int, anchor: Mapping[str, Any], at_step: AtStep = lambda: False) -> LocalResult:
        self.steps += 1
        for name, target in self.target.items():
            noise = np.random.default_rng([*self.site.encode(), self.steps]).standard_normal(target.shape)
            self.velocity[name] = np.float32(0.5) * self.velocity[name] + (target - self.now[name])
            self.now[name] = self.now[name] + np.float32(0.1) * (self.velocity[name] + noise.astype(np.float32))
        return LocalResult(10 * len(self.site) + ord(self.site[0]) % 7, 1, 0.0, 0.0)

    def measure(self) -> Tensors:
        distance = sum(float(np.abs(self.now[n] - t).sum()) for n, t in self.target.items())
        return {"n": np.array(1), "distance": np.array(distance)}

    def summarise(self, sums: Mapping[str, Any]) -> dict[str, float | None]:
        return {"distance": float(sums["distance"])}

    def private(self) -> dict[str, Any]:
        return {"steps": np.array([self.steps]), **{f"velocity {n}": v for n, v in self.velocity.items()}}

    def restore(self, private: Mapping[str, Any]) -> None:
        private = self.from_leader(private)
        self.steps = int(private["steps"][0])
        self.velocity = {n: private[f"velocity {n}"].copy() for n in SHAPES}


class Quiet:
    def round_done(self, record: Mapping[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        if session.party.leads:
            print(text, flush=True)


def freeze() -> None:
    Path("frozen").write_text(str(os.getpid()))
    time.sleep(3600)


def before_and_after(cls: type, name: str, here: Callable[..., str]) -> None:
    """Freeze before or after the method `name`, as `here(self, *arguments)` says: "before", "after" or ""."""
    real = getattr(cls, name)

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        when = here(self, *arguments)
        if when == "before":
            freeze()
        result = real(self, *arguments, **options)
        if when == "after":
            freeze()
        return result

    setattr(cls, name, method)


def place_fault(where: str, count: int) -> None:
    seen = {"sums": 0}
    kind, _, when = where.partition("-")
    if kind == "admit":
        before_and_after(FileJournal, "admit", lambda self, entry: when if len(self.ledger) + 1 == count else "")
    elif kind == "save" and when in ("before", "after"):
        before_and_after(Hdf5Checkpoints, "save", lambda self, c: when if c.round_ == count else "")
    elif kind == "save":
        real = hdf5.os.replace

        def replace(source: Any, target: Any) -> None:
            path = Path(target)
            files = {"half": path.parent, "private": path.with_name("private.h5"), "index": path.with_name("index.h5")}
            files["rank"] = path.with_name(f"rank-{session.ranks - 1:04d}-of-{session.ranks:04d}.h5")
            round_ = path.stem if when == "half" else path.parent.name
            if round_ == f"round-{count:06d}" and path in (files[when], files["half"] / f"{round_}.h5"):
                freeze()  # all is written, under the temporary name
            real(source, target)

        hdf5.os.replace = replace  # type: ignore[assignment]
    elif kind == "sum":

        def half_way(self: Any, low: int, high: int) -> str:
            seen["sums"] += low == 0 and high > 40_000
            return "after" if low >= 1 << 19 and seen["sums"] == count else ""

        before_and_after(BlockEngine, "hide", half_way)
    elif kind == "settle":

        def before_settling(*arguments: Any) -> str:
            seen["sums"] += 1
            return "before" if seen["sums"] == count else ""

        before_and_after(MpiSums, "settle", before_settling)
    else:
        raise ValueError(where)


joined = join_with_files(Path(federation), sites=Path(sites), site=None, run=None)
session = joined.session
if point and point.split()[0] == session.site:
    place_fault(point.split()[1], int(point.split()[2]))
prepared: list[float] = []
model = Model(session.site, lambda: 0.0)


def prepare() -> None:
    """A statistic that becomes part of the first model, as standardising does."""
    mean = Federation(session).mean({"bias": model.target["bias"].astype(np.float64)}, name="start")["bias"]
    model.now["bias"] = mean.astype(np.float32)


with session:
    store = Hdf5Checkpoints(joined.site_directory / "checkpoints")
    agreement, number = session.party.agreement, session.party.number
    keep_agreement(joined.site_directory.parent, agreement)
    previous = partial(find_previous, agreement, number, joined.site_directory, None)
    outcome = Run(session, model, store, Quiet(), prepare=prepare, previous=previous).run()
    sha256 = outcome.model.sha256()
    if joined.first:
        print(f"final {sha256} after {outcome.started_at}")
