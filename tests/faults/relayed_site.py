"""One site of a federation that meets at a relay, as a process of its own: the real `Federation.sum` or main loop.

    relayed_site.main([FEDERATION, SITE_FILE, RUN, JOB, POINT, SEED])

JOB is `sums` (PLAN below, each result a line of JSON), `rounds` (the main loop with a small NumPy model), `steady` (the
same, but training depends on the round alone and on nothing private), `script` or `forgetful` (a user's own loop with
`fed.sync`, the latter saves and forgets after its second exchange). POINT is "" or `STEP WHEN ROUND`, where the process
freezes (freeze.py):

    READY, M1 … M6  before (nothing of it is on this site's disk), saved (not sent yet), after (the relay has it)
    M3v             begin, half (of the blocks), commit (all sent, not yet made whole), after; M3 goes at the same time
    vector, set, state    before, after the ledger's line
    Y               half (of the sum was fetched)
    keep, proof, save     before, after; save also half (written under its temporary name)

SEED -1 gives this site another vector than the one it had. FEDHPC_TEST_LEAVE `KIND ROUND`: once the relay has that
message the site is told to leave at once. FEDHPC_TEST_UMASK: its umask.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import freeze
import numpy as np

from fedhpc.app.federation import Federation
from fedhpc.app.join import join_with_files
from fedhpc.data import hdf5
from fedhpc.errors import FedhpcError, InterruptedRun
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.session import Session
from fedhpc.ledger.journal import FileJournal
from fedhpc.rounds.interfaces import AtStep, LocalResult
from fedhpc.rounds.loop import Run
from fedhpc.secure.attempt import SiteAttempt
from fedhpc.secure.transcript import parse_canon
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.over_relay.attempt_store import AttemptDisk
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.sums.over_relay.finished_sums import FinishedSums
from fedhpc.sums.over_relay.round import RelayedRound
from fedhpc.train.checkpoint_files import Hdf5Checkpoints
from fedhpc.transport.https import link as http_link
from tests.fakes.held_fakes import HeldTensors

BOUND = 8.0
SHAPES = {"weight": (300_000,), "bias": (7,)}


def ints(site: int, seed: int) -> dict[str, Any]:
    return {"n": np.random.default_rng([site, seed, 1]).integers(-(1 << 40), 1 << 40, 501)}


def floats(site: int, seed: int) -> dict[str, Any]:
    """2.4 MB and some: three blocks, and a gap between two tensors."""
    draw = np.random.default_rng([site, seed, 2])
    x = draw.uniform(-BOUND, BOUND, 600_001).astype(np.float32)
    return {"x": x, "y": draw.uniform(-BOUND, BOUND, 5)}


def few(site: int, seed: int) -> dict[str, Any]:
    return {"m": np.random.default_rng([site, seed, 3]).standard_normal(9)}


PLAN: Sequence[tuple[str, Callable[[int, int], dict[str, Any]], float | None]] = (
    ("one", ints, None),  # round 1
    ("two", floats, BOUND),  # round 2
    ("three", few, None),  # rounds 3, its scale, and 4
)


class Model(HeldTensors):
    """A Trainer: each site pulls the model towards a target of its own, with noise that restarts must repeat."""

    def __init__(self, number: int, *, steady: bool = False) -> None:
        """`steady`: what it trains depends on the model and the round alone, and on nothing private."""
        self.number, self.steps, self.steady = number, 0, steady
        draw = np.random.default_rng(number)
        self.target = {n: draw.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
        self.now: Tensors = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}

    def averaged(self) -> frozenset[str]:
        return frozenset({"bias"})

    def train(self, round_: int, anchor: Mapping[str, Any], at_step: AtStep = lambda: False) -> LocalResult:
        self.steps = round_ if self.steady else self.steps + 1
        for i, (name, target) in enumerate(self.target.items()):
            noise = np.random.default_rng([self.number, self.steps, i]).standard_normal(target.shape)
            step = (target - self.now[name]) + noise.astype(np.float32)
            self.now[name] = self.now[name] + np.float32(0.1) * step
        return LocalResult(10 * self.number, 1, 0.0, 0.0)

    def measure(self) -> Tensors:
        distance = sum(float(np.abs(self.now[n] - t).sum()) for n, t in self.target.items())
        return {"n": np.array(1), "distance": np.array(distance)}

    def summarise(self, sums: Mapping[str, Any]) -> dict[str, float | None]:
        return {"distance": float(sums["distance"])}

    def private(self) -> dict[str, Any]:
        return {"steps": np.array([self.steps])}

    def restore(self, private: Mapping[str, Any]) -> None:
        private = self.from_leader(private)
        self.steps = int(private["steps"][0])


class Lines:
    """A Reporter."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        say(round=record["round"], state=record["state"])

    def note(self, text: str) -> None:
        say(note=text)


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def place_fault(step: str, when: str, round_: int) -> None:
    """See the module."""
    if step == "M3v" or step == "Y":
        place_transfer(step, when, round_)
    elif step in ("vector", "set", "state"):
        kind = {"vector": (False, False), "set": (True, False), "state": (True, True)}[step]
        freeze.around(
            FileJournal, "admit", when, lambda self, e: e.round_ == round_ and (e.cohort != (), e.state != b"") == kind
        )
    elif when == "before" and step.startswith("M"):
        name, sent = f"round-{round_}.attempt", set(SENT[: SENT.index(step) + 1])

        def saves(self: Any, private: bytes) -> bool:
            return self._path.name == name and set(parse_canon(private)["sent"]) == sent

        freeze.around(AttemptDisk, "save", "before", saves)
    elif step == "READY" or step.startswith("M"):
        at = "after" if when == "after" else "before"
        freeze.around(RelayExchange, "put", at, lambda self, r, attempt, kind, data: (r, kind) == (round_, step))
    elif step == "keep":
        freeze.around(FinishedSums, "keep", when, lambda self, plan, *rest: plan.round_ == round_)
    elif step == "proof":
        freeze.around(FinishedSums, "keep_proof", when, lambda self, r, proof: r == round_)
    elif step == "save" and when == "half":
        name = f"round-{round_:06d}.h5"
        freeze.around(hdf5.os, "replace", "before", lambda source, target: Path(target).name == name)
    elif step == "save":
        freeze.around(Hdf5Checkpoints, "save", when, lambda self, checkpoint: checkpoint.round_ == round_)
    else:
        raise ValueError(step)


SENT = ("M1", "M2", "M3", "M4", "M5", "M6")


def place_transfer(step: str, when: str, round_: int) -> None:
    """Freezes while blocks move. Which round it is, is known from the leader's way through it."""
    now = {"round": 0}
    real = RelayedRound.run

    def run(self: RelayedRound, *arguments: Any) -> Any:
        now["round"] = self._plan.round_
        return real(self, *arguments)

    RelayedRound.run = run  # type: ignore[method-assign]
    if when in ("commit", "after"):
        freeze.around(
            RelayedRound,
            "_finish",
            "after" if when == "after" else "before",
            lambda self, *rest: now["round"] == round_,
        )
    else:
        count = 1 if when == "begin" else 2
        here = freeze.nth(count, lambda self, low, high: now["round"] == round_)
        freeze.around(BlockEngine, "hide" if step == "M3v" else "open", "before", here)


def fall_over() -> None:
    """A mistake in the program, where secrets are at hand. Its traceback must not show them."""

    def opening(self: Any, m5s: Any) -> Any:
        secrets = self._secrets
        raise RuntimeError(f"a mistake of the program: {self!r} {secrets!r} {self._plan!r} {self._dealt!r}")

    SiteAttempt.receive_answers = opening  # type: ignore[method-assign]


def do_sums(federation: Federation, seed: int) -> None:
    number = federation.session.party.number
    with federation:
        for name, values, bound in PLAN:
            sums = federation.sum(values(number, seed), name=name, bound=bound)
            digest = {key: hashlib.sha256(value.tobytes()).hexdigest() for key, value in sums.items()}
            quantum = {key: np.asarray(grid).tolist() for key, grid in sums.quantum.items()}
            say(sum=name, sites=sums.sites, quantum=quantum, **digest)


def do_rounds(session: Session, directory: Path, *, steady: bool) -> None:
    model = Model(session.party.number, steady=steady)

    def prepare() -> None:
        model.now["bias"] = Federation(session).mean({"bias": model.target["bias"]}, name="start", bound=BOUND)["bias"]

    with session:
        outcome = Run(session, model, Hdf5Checkpoints(directory), Lines(), prepare=prepare).run()
        say(final=outcome.model.sha256(), started_at=outcome.started_at)


def do_script(federation: Federation, saved: Path, *, forgets: bool) -> None:
    """Sums and a loop of one's own; training is the same whenever it is repeated."""
    import torch

    number = federation.session.party.number
    with federation:
        if not saved.exists():
            say(patients=int(federation.sum(10 * number, name="patients")), unnamed=int(federation.sum(number)))
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        sync = federation.sync(model, every=1, weight=10 * number)
        done = 0
        if saved.exists():
            kept = torch.load(saved, weights_only=True)
            done = kept["steps"]
            sync.load_state_dict(kept["sync"])
        for step in range(done, 4):
            with torch.no_grad():
                for i, values in enumerate(model.parameters()):
                    draw = np.random.default_rng([number, step, i]).standard_normal(values.shape)
                    values += torch.from_numpy(draw.astype(np.float32))
            assert sync.step()
            session = federation.session
            say(step=step, state=session.state.hex(), model=sync.model_sha256, round=session.round_)
            if forgets and step == 1:
                torch.save({"steps": step + 1, "sync": sync.state_dict()}, saved)
                federation.forget()
        say(after=int(federation.sum(number**2, name="after")), final=sync.model_sha256)


def leave_at(kind: str, round_: int) -> None:
    """Told to leave, without time for anything more, as soon as the relay has this site's message."""
    real = RelayExchange.put

    def put(self: RelayExchange, r: int, attempt: int, name: str, data: bytes, *, to: int = 0) -> None:
        real(self, r, attempt, name, data, to=to)
        if (r, name) == (round_, kind):
            raise InterruptedRun("left while it waited for other sites: the test says so")

    RelayExchange.put = put  # type: ignore[method-assign]


def main(words: Sequence[str]) -> int:
    federation, site_file, run, job, point, seed = words
    freeze.shift_clock(http_link)
    if os.environ.get("FEDHPC_TEST_MISTAKE"):
        fall_over()
    if point:
        step, when, round_ = point.split()
        place_fault(step, when, int(round_))
    if os.environ.get("FEDHPC_TEST_UMASK"):
        os.umask(int(os.environ["FEDHPC_TEST_UMASK"], 8))
    try:
        joined = join_with_files(Path(federation), sites=None, site=Path(site_file), run=Path(run))
        if os.environ.get("FEDHPC_TEST_LEAVE"):
            kind, number = os.environ["FEDHPC_TEST_LEAVE"].split()
            leave_at(kind, int(number))
        if job == "sums":
            do_sums(Federation(joined.session), int(seed))
        elif job in ("script", "forgetful"):
            saved = Path(run).with_name(f"saved-{joined.session.site}.pt")
            do_script(Federation(joined.session), saved, forgets=job == "forgetful")
        else:
            do_rounds(joined.session, joined.site_directory / "checkpoints", steady=job == "steady")
    except FedhpcError as error:
        print(f"error: {type(error).__name__}: {error.what}\n{error.hint}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0
