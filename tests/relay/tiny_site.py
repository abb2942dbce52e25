"""One site with a small NumPy model: real loop, masks, ledger and checkpoints, no torch; mpi or https.

    tiny_site.py CASE…       each a JSON object, run one after the other in this process

A CASE has `name`, `federation`, `run`, and `site` (a file) or `sites` (a directory: all of them, in one MPI job);
`what` is "train" (default) or the name of a function of user_scripts.py. For "train": `shapes` of the model by name,
and `gates`, a folder: before it trains round r the site writes SITE.r there and waits for SITE.r.go or SITE.go; while
there is SITE.hold, it writes SITE.held and does not measure. `dies`: [PURPOSE, WHEN]: the site kills itself in the sum
of that purpose, WHEN it is asked ("open") or it has sent M3 or M5. Rank 0 prints one JSON object per case, and what the
loop notes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import user_scripts

from fedhpc.app.federation import Federation
from fedhpc.app.join import join_with_files
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.session import Session
from fedhpc.mpi.world import abort_job, describe_failure
from fedhpc.rounds.interfaces import AtStep, LocalResult
from fedhpc.rounds.loop import Run
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.sums.over_relay.masked_sum import RelayedSums
from fedhpc.train.checkpoint_files import Hdf5Checkpoints
from tests.fakes.held_fakes import HeldTensors

SHAPES: dict[str, tuple[int, ...]] = {"weight": (700, 3), "scalar": (), "running": (5,), "bias": (7,)}
GATE_S = 120.0


def kind_of(name: str) -> type:
    """One tensor is a double, as models with double parameters have."""
    return np.float64 if name == "scalar" else np.float32


def update_of(site: str, round_: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a site subtracts from the model it began from in its training of `round_`: at most 1, all digits used."""
    draw = np.random.default_rng([*site.encode(), round_, *name.encode()])
    return np.asarray(draw.uniform(-1, 1, shape), kind_of(name))


def rows_of(site: str) -> int:
    """The site's private weight."""
    return 10 + 7 * (site.encode()[0] % 5)


class Model(HeldTensors):
    """A Trainer. Its private state is one number that must survive a restart."""

    def __init__(self, site: str, shapes: Mapping[str, Any], gates: Path | None) -> None:
        self.site, self.gates = site, gates
        self.shapes = {n: tuple(s) for n, s in shapes.items()}
        self.now: Tensors = {n: np.zeros(s, kind_of(n)) for n, s in self.shapes.items()}
        self.trained = 0

    def averaged(self) -> frozenset[str]:
        return frozenset({"running"} & self.shapes.keys())

    def train(self, round_: int, anchor: Mapping[str, Any], at_step: AtStep) -> LocalResult:
        self.wait_for(round_)
        self.trained += 1
        for name, tensor in self.now.items():
            self.now[name] = np.asarray(tensor - update_of(self.site, round_, name, tensor.shape))
        return LocalResult(rows_of(self.site), 1, 0.0, 0.0)

    def wait_for(self, round_: int) -> None:
        """Say where this site is, and wait until it may go on."""
        if self.gates is None:
            return
        (self.gates / f"{self.site}.{round_}").touch()
        go = [self.gates / f"{self.site}.{round_}.go", self.gates / f"{self.site}.go"]
        deadline = time.monotonic() + GATE_S
        while not any(path.exists() for path in go):
            assert time.monotonic() < deadline, f"site {self.site} was never let into round {round_}"
            time.sleep(0.01)

    def measure(self) -> Tensors:
        deadline = time.monotonic() + GATE_S
        while self.gates is not None and (self.gates / f"{self.site}.hold").exists():
            (self.gates / f"{self.site}.held").touch()
            assert time.monotonic() < deadline, f"site {self.site} was never released"
            time.sleep(0.01)
        return {"n": np.array(1), "first": np.array(float(self.now["bias"][0]))}

    def summarise(self, sums: Mapping[str, Any]) -> dict[str, float | None]:
        return {"first": float(sums["first"] / sums["n"]), "sites": float(sums["n"])}

    def private(self) -> dict[str, Any]:
        return {"trained": np.array([self.trained])}

    def restore(self, private: Mapping[str, Any]) -> None:
        private = self.from_leader(private)
        self.trained = int(private["trained"][0])


class Reporter:
    """Keeps what the leader would write."""

    def __init__(self, leads: bool) -> None:
        self.leads = leads
        self.records: list[dict[str, Any]] = []

    def round_done(self, record: Mapping[str, Any]) -> None:
        kept = ("round", "metrics", "state", "no_metrics", "again")
        self.records.append({name: record[name] for name in kept if name in record})

    def note(self, text: str) -> None:
        if self.leads:
            print(f"note: {text}", flush=True)


def train(session: Session, case: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Run the federation's rounds."""
    gates = Path(case["gates"]) if case.get("gates") else None
    model = Model(session.site, case.get("shapes", SHAPES), gates)
    reporter = Reporter(session.party.leads)

    def prepare() -> None:
        """A statistic that becomes part of the first model, as standardising does; `everyone` is the case's."""
        if "prepare" in case:
            start = update_of(session.site, 0, "bias", model.now["bias"].shape)
            options = {} if case["prepare"] is None else {"everyone": bool(case["prepare"])}
            total = Federation(session).sum({"bias": start.astype(np.float64)}, bound=2.0, name="start", **options)
            model.now["bias"] = np.asarray(total["bias"] / len(total.sites), np.float32)

    outcome = Run(session, model, Hdf5Checkpoints(directory / "checkpoints"), reporter, prepare=prepare).run()
    tensors = outcome.model.whole()
    return {
        "sha256": outcome.model.sha256(),
        "state": outcome.model.state.hex(),
        "blind": outcome.model.blind.hex(),
        "rounds": outcome.model.rounds,
        "started_at": outcome.started_at,
        "trained": model.trained,
        "metrics": outcome.metrics,
        "records": reporter.records,
        "tensors": {n: t.tolist() for n, t in tensors.items() if t.size < 100},
    }


def die(purpose: str, when: str) -> None:
    """Be killed where a case says so."""
    asked: list[str] = []
    real_open, real_put = RelayedSums.open, RelayExchange.put

    def open_(sums: RelayedSums, checked: Any, stages: Any) -> Any:
        asked[:] = [checked.plan.purpose]
        if (checked.plan.purpose, "open") == (purpose, when):
            os.kill(os.getpid(), signal.SIGKILL)
        return real_open(sums, checked, stages)

    def put(exchange: RelayExchange, round_: int, attempt: int, kind: str, data: bytes, **more: Any) -> None:
        real_put(exchange, round_, attempt, kind, data, **more)
        if asked == [purpose] and kind == when:
            time.sleep(1.0)  # the vector goes beside M3
            os.kill(os.getpid(), signal.SIGKILL)

    RelayedSums.open, RelayExchange.put = open_, put  # type: ignore[method-assign, assignment]


def main(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        if "dies" in case:
            die(*case["dies"])
        where = {name: Path(case[name]) if name in case else None for name in ("sites", "site", "run")}
        joined = join_with_files(Path(case["federation"]), **where)  # type: ignore[arg-type]
        with joined.session as session:
            what = case.get("what", "train")
            script = None if what == "train" else getattr(user_scripts, what)
            found = train(session, case, joined.site_directory) if script is None else script(Federation(session))
        if session.party.leads and ("site" in case or joined.first):
            print(json.dumps({"case": case["name"], "site": session.site, **found}), flush=True)


if __name__ == "__main__":
    try:
        main([json.loads(word) for word in sys.argv[1:]])
    except Exception as error:  # as the command line does
        text, code = describe_failure(error)
        sys.stderr.write(text + "\n")
        abort_job(code)
        sys.exit(code)
