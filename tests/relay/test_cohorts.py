"""Cohorts of four sites over a real relay: one that is killed and comes back, and updates from older models.

The schedule is fixed by gates (tiny_site.py), so the model after each round is known: it is computed here by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Job, ledger_entries, start, until
from tiny_federations import ENVIRONMENT, Gates, Tiny, relay_of, results, words
from tiny_site import SHAPES, kind_of, update_of

from fedhpc.secure.ring import scale_for
from fedhpc.train.checkpoint_files import Hdf5Checkpoints

SITES = ("aa", "bb", "cc", "dd")  # τ = 3
BOUND = 2.0
DEADLINES = {"answer_s": 10.0, "upload_s": 20.0, "deadline_s": 100.0}
FEDERATIONS: dict[str, dict[str, Any]] = {
    "quorum": {"rounds": 6, "cohort": {"policy": "quorum", "grace_s": 1.0, **DEADLINES}},
    "quorum of ranks": {"rounds": 6, "cohort": {"policy": "quorum", "grace_s": 1.0, **DEADLINES}},
    "buffered": {"rounds": 4, "cohort": {"policy": "buffered", "staleness": 2, "discount": 0.5, **DEADLINES}},
}
Model = Mapping[str, np.ndarray]
ZERO: Model = {name: np.zeros(shape, kind_of(name)) for name, shape in SHAPES.items()}


def after(model: Model, members: Mapping[str, tuple[Model, int]]) -> Model:
    """One round by hand. `members`: site -> (the model it trained from, after how many rounds); 1/4 is a site's share.

    The mean over those who are there is exact, an older update counts (1 + s)^-1/2, and all steps go from `model`.
    """
    following = {}
    newest = max(rounds for _, rounds in members.values())
    for name, tensor in model.items():
        scale = 2.0 ** scale_for(BOUND, 8 * tensor.itemsize, len(SITES))
        total = np.zeros(tensor.shape, np.int64)
        for site, (base, rounds) in members.items():
            local = np.asarray(base[name] - update_of(site, rounds + 1, name, tensor.shape))
            share = 1.0 / len(SITES) * float((1.0 + newest - rounds) ** -0.5)
            total += np.rint(np.subtract(base[name], local).astype(np.float64) * (share * scale)).astype(np.int64)
        mean = (total.astype(np.float64) / scale).astype(tensor.dtype)
        if len(members) < len(SITES):
            mean = (mean.astype(np.float64) * (len(SITES) / len(members))).astype(tensor.dtype)
        following[name] = np.asarray(tensor - mean)
    return following


def together(model: Model, rounds: int, *sites: str) -> Model:
    return after(model, dict.fromkeys(sites, (model, rounds)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    made = Tiny.enrol(tmp_path_factory.mktemp("cohorts"), SITES)
    common = {"secure": {"bound": BOUND}, "strategy": {"name": "fedavg", "weights": "uniform"}}
    for name, settings in FEDERATIONS.items():
        made.federation(name, **common, **settings)
    with relay_of(made):
        yield made


class Run:
    """The sites of one federation, each held at the beginning of its rounds."""

    def __init__(self, tiny: Tiny, name: str) -> None:
        self._tiny, self._name = tiny, name
        self.gates = Gates(tiny.folder / f"gates {name}")
        self.jobs: dict[str, Job] = {}
        self.stack = ExitStack()

    def start(self, *sites: str, ranks: int = 1) -> None:
        for site in sites:
            case = self._tiny.case(self._name, site, gates=str(self.gates.folder))
            self.jobs[site] = self.stack.enter_context(start(words([case], ranks), env=ENVIRONMENT))

    def let(self, round_: int, *sites: str) -> None:
        """These sites train `round_`; until they are about to train the next one."""
        for site in sites:
            self.gates.open(site, round_)
        for site in sites:
            self.reached(round_ + 1, site)

    def reached(self, round_: int, site: str) -> None:
        here = self.gates.folder / f"{site}.{round_}"
        until(lambda: here.exists() or self.jobs[site].process.poll() is not None, 60, f"{site} in round {round_}")
        assert here.exists(), self.jobs[site].finish(1).text

    def held(self, site: str) -> None:
        """Wait until a site is held at a measurement."""
        until(lambda: (self.gates.folder / f"{site}.held").exists(), 60, f"{site} to be held")

    def ready(self, round_: int, site: str) -> None:
        """Wait until a site's READY for a masked sum is at the relay."""
        name = f"READY.{SITES.index(site) + 1}"
        store = self._tiny.base.relay.parent / "store"
        until(lambda: any(store.glob(f"*/{round_}/0/{name}")), 60, f"{site} to be ready for round {round_}")

    def folder(self, site: str) -> Path:
        return self._tiny.made[self._name].folder / "run-https" / site

    def model(self, site: str, rounds: int) -> Model:
        """What a site's checkpoint after so many rounds holds."""
        return Hdf5Checkpoints(self.folder(site) / "checkpoints").load(rounds).tensors

    def ledger(self, site: str) -> list[dict[str, Any]]:
        return ledger_entries(self._tiny.made[self._name].site_file(site).parent / "ledger" / "ledger.jsonl")


@contextmanager
def run_of(tiny: Tiny, name: str) -> Iterator[Run]:
    run = Run(tiny, name)
    with run.stack:
        yield run


def assert_equal(found: Model, expected: Model) -> None:
    assert {n: t.tobytes() for n, t in found.items()} == {n: t.tobytes() for n, t in expected.items()}


@pytest.mark.parametrize(("name", "ranks"), [("quorum", 1), ("quorum of ranks", 2)])
def test_a_killed_site_comes_back_to_a_quorum(tiny: Tiny, name: str, ranks: int) -> None:
    """dd is killed in round 3, the others train two rounds without it, and it goes on with them from there."""
    with run_of(tiny, name) as run:
        run.start(*SITES[:3])
        run.start("dd", ranks=ranks)
        run.let(1, *SITES)
        run.let(2, *SITES)
        run.jobs["dd"].kill()
        run.let(3, "aa", "bb", "cc")
        run.let(4, "aa", "bb", "cc")
        run.start("dd", ranks=ranks)
        run.gates.open("dd", 3)
        run.reached(5, "dd")  # it has trained round 3 for nothing, and has the others' model
        for round_ in (5, 6):
            for site in SITES:
                run.gates.open(site, round_)
        found = {site: results(job.finish(60))[0] for site, job in run.jobs.items()}
        model = ZERO
        for rounds in range(6):
            model = together(model, rounds, *(SITES[:3] if rounds in (2, 3) else SITES))
        for site in SITES:
            assert found[site]["sha256"] == found["aa"]["sha256"]
            assert_equal(run.model(site, 6), model)
        assert found["dd"]["started_at"] == 2
        # The metrics of the round that its checkpoint was written in are said again; the last are the final ones.
        assert [record["round"] for record in found["dd"]["records"]] == [2, 5, 6, 6]
        again, told = found["dd"]["records"][0], found["aa"]["records"][1]
        assert (again["again"], again["metrics"], again["state"]) == (True, told["metrics"], told["state"])
        assert [bool(r["metrics"]) for r in found["aa"]["records"]] == [True, True, False, False, True, True, True]


def test_older_updates_are_discounted_and_summed_once(tiny: Tiny) -> None:
    """As soon as three are ready: dd's update of round 1 is in the third sum, cc's of round 3 in the fourth."""
    with run_of(tiny, "buffered") as run:
        run.start(*SITES)
        run.let(1, "aa", "bb", "cc")
        run.let(2, "aa", "bb", "cc")
        run.reached(1, "dd")
        models = [ZERO]
        for rounds in (0, 1):
            models.append(together(models[-1], rounds, "aa", "bb", "cc"))
        run.gates.open("dd", 1)
        run.ready(3, "dd")
        run.let(3, "aa", "bb")
        run.reached(4, "dd")
        models.append(after(models[2], {"aa": (models[2], 2), "bb": (models[2], 2), "dd": (models[0], 0)}))
        run.gates.open("cc", 3)
        run.ready(4, "cc")
        for site in ("aa", "bb", "cc"):
            run.gates.hold(site)  # at its next measurement, that of the final model: they can still give it to dd
        run.gates.open("aa", 4)
        run.gates.open("bb", 4)
        models.append(after(models[3], {"aa": (models[3], 3), "bb": (models[3], 3), "cc": (models[2], 2)}))
        run.held("aa")
        run.gates.open("dd", 4)
        run.ready(5, "dd")  # too late for the last round: it has the final model, and sums only its metrics
        for site in ("aa", "bb", "cc"):
            run.gates.release(site)
        found = {site: results(job.finish(60))[0] for site, job in run.jobs.items()}
        assert {(f["sha256"], f["rounds"]) for f in found.values()} == {(found["aa"]["sha256"], 4)}
        for site in SITES:
            assert_equal(run.model(site, 4), models[4])
        for site in ("cc", "dd"):
            inputs = {(entry["input"], entry["round"]) for entry in run.ledger(site)}
            assert len({input_ for input_, _ in inputs}) == len(inputs), "no input was masked in two rounds"
        summed = {
            entry["round"]: entry["cohort"] for entry in run.ledger("dd") if entry["cohort"] and entry["round"] < 5
        }
        assert summed == {3: [1, 2, 4]}
