"""An epoch goes on over a relay: of three sites one leaves and one joins; sites are killed around the sum `start`."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import Completed, Job, Warm, edit, start, until, write_rows

from fedhpc.agreement.federation_file import Agreement
from fedhpc.config import read_bytes
from fedhpc.enrolment.approve import review
from fedhpc.enrolment.coordinator import Coordinator
from fedhpc.enrolment.next_epoch import Beginning
from fedhpc.enrolment.one_machine import enrol, running_relay
from fedhpc.enrolment.relay import BYTES, OBJECTS, admit
from fedhpc.enrolment.site import SiteFolder
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.state_tensors import arrays_of_checkpoint, model_sha256, tensors_tree
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.secure.salt import NO_BLIND
from fedhpc.secure.transcript import parse_canon, state_hash
from fedhpc.train.checkpoint_files import Hdf5Checkpoints

pytestmark = pytest.mark.timeout(600)

OLD, NEW = ("aa", "bb", "cc"), ("aa", "bb", "dd")
SCRIPT = Path(__file__).with_name("epoch_site.py")
ACCEPT = ("train", "measured")
SECTIONS = """
[cohort]
policy = "sync"

[task]
name = "logistic"
standardise = true
held_out = 0.25
options = { features = 4 }

[train]
lr = 0.3
batch_size = 0
local_steps = 2
"""


@dataclass
class World:
    """A coordinator's folder, sites, their runs and homes: everything in one folder, which can be copied."""

    folder: Path
    accept: tuple[str, ...] = ACCEPT
    made: dict[str, SiteFolder] = field(default_factory=dict)

    @property
    def coordinator(self) -> Coordinator:
        return Coordinator(self.folder / "coordinator")

    @property
    def federation(self) -> Path:
        return self.coordinator.federation

    @property
    def agreement(self) -> Agreement:
        return Agreement.open(self.federation)

    def site(self, name: str) -> SiteFolder:
        return SiteFolder.open(self.folder / "sites" / name / "site.toml")

    def join(self, name: str) -> None:
        """A new site asks, and is admitted."""
        data = self.folder / "data" / f"{name}.h5"
        write_rows(data, name, 30)
        coordinator = self.coordinator
        coordinator.invite(name)
        first = self.site(OLD[0])
        folder = SiteFolder.new(
            self.folder / "sites" / name,
            name,
            relay=first.file.exchange.url,
            relay_pin=coordinator.relay_pin,
            data=str(data),
        )
        coordinator.admit([coordinator.candidate(folder.request(None)[0], mailed=True)], 30.0, accept=self.accept)
        folder.take_certificate(read_bytes(coordinator.folder / "certificates" / f"{name}.pem"))

    def approve(self) -> None:
        """Every site of the roster signs, and the relay lets it in."""
        for name in self.agreement.names:
            folder = self.site(name)
            review(self.federation, folder).sign(folder, self.accept)
        relay = self.coordinator.relay / "relay.toml"
        admit(self.federation, relay, quota_bytes=BYTES, objects=OBJECTS)

    def words(self, name: str, *more: str | Path) -> list[str | Path]:
        return ["run", self.federation, "--site", self.folder / "sites" / name / "site.toml", *more]

    def start(self, name: str, *more: str | Path, at: str = "") -> Job:
        """A job of a site; `at`: where it freezes, and says so in the file NAME.frozen."""
        env = {"HTTPS_PROXY": "", "https_proxy": "", "XDG_DATA_HOME": str(self.folder / "homes" / name)}
        if at:
            env["FEDHPC_TEST_FROZEN"] = str(self.frozen(name))
            return start([sys.executable, SCRIPT, at, *self.words(name, *more)], env=env)
        return start([*Warm.words(), "fedhpc", *self.words(name, *more)], env=env)

    def frozen(self, name: str) -> Path:
        return self.folder / f"{name}.frozen"

    def run(self, *names: str, more: Mapping[str, tuple[str | Path, ...]] | None = None) -> dict[str, Completed]:
        """All sites at once, to their end."""
        with contextlib.ExitStack() as stack:
            jobs = {n: stack.enter_context(self.start(n, *(more or {}).get(n, ()))) for n in names}
            return {name: job.finish(120).ok() for name, job in jobs.items()}

    def relay(self) -> contextlib.AbstractContextManager[object]:
        return running_relay(self.coordinator.relay / "relay.toml")

    def checkpoint(self, run: str, site: str, round_: int | None = None) -> Checkpoint:
        store = Hdf5Checkpoints(self.folder / "coordinator" / run / site / "checkpoints")
        return store.load(max(store.rounds()) if round_ is None else round_)

    def records(self, run: str, site: str) -> list[dict[str, Any]]:
        text = (self.folder / "coordinator" / run / site / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def copy(self, folder: Path) -> World:
        """Its ledgers do not remember the runs that it has copies of."""
        shutil.copytree(self.folder, folder)
        for runs in (folder / "sites").glob("*/ledger/runs"):
            shutil.rmtree(runs)
        return World(folder, self.accept)


def make(folder: Path, sections: str = SECTIONS) -> World:
    """Three sites that have run their first epoch to its end."""
    (folder / "data").mkdir(parents=True)
    data = {name: folder / "data" / f"{name}.h5" for name in OLD}
    for number, (name, path) in enumerate(data.items()):
        write_rows(path, name, 24 + 9 * number)
    enrol(folder, "epochs", sections, data, rounds=2)
    world = World(folder)
    with world.relay():
        world.run(*OLD)
    return world


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("epochs") / "first")


@pytest.fixture(scope="module")
def changed(first: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """dd joins, which is an epoch that nobody runs; then cc leaves."""
    world = first.copy(tmp_path_factory.mktemp("epochs") / "changed")
    world.join("dd")
    world.approve()
    world.coordinator.revoke("cc", reinvite=False, accept=ACCEPT)
    edit(world.federation, "rounds = 2\n", "rounds = 1\n")
    world.approve()
    assert world.agreement.names == list(NEW)
    return world


@pytest.fixture(scope="module")
def unbroken(changed: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = changed.copy(tmp_path_factory.mktemp("epochs") / "unbroken")
    with world.relay():
        world.run(*NEW)
    return world


def first_state(world: World, site: str) -> tuple[str, Checkpoint]:
    """The state that was signed after `start`, hex, and what it is the hash of: the round's checkpoint."""
    proof = (world.folder / "coordinator" / "run-2" / site / "sums" / "round-1.proof").read_bytes()
    state = parse_canon(proof.split(b"\n")[0])["body"]["state"]
    return state, world.checkpoint("run-2", site, 0)


def test_one_leaves_and_one_joins(unbroken: World) -> None:
    old = unbroken.checkpoint("run", "aa")
    new = {site: unbroken.checkpoint("run-2", site) for site in NEW}
    assert len({model_sha256(c.tensors) for c in new.values()}) == 1
    assert len({c.blind for c in new.values()}) == 1
    for site in NEW:  # dd as well, which never saw it
        state, began = first_state(unbroken, site)
        assert model_sha256(began.tensors) == model_sha256(old.tensors)
        tree = tensors_tree(SerialGroup("s"), arrays_of_checkpoint(began), unbroken.agreement.secure.tree)
        assert state == state_hash(unbroken.agreement.hash, 1, tree).hex()
        # What the site that left knows all of, and the relay could have from it: the state without its blind.
        began.blind = NO_BLIND
        tree = tensors_tree(SerialGroup("s"), arrays_of_checkpoint(began), unbroken.agreement.secure.tree)
        assert state != state_hash(unbroken.agreement.hash, 1, tree).hex()


def test_the_site_that_left_has_nothing_of_the_blind(unbroken: World) -> None:
    _, began = first_state(unbroken, "aa")
    assert began.blind != NO_BLIND
    places = [unbroken.folder / "sites" / "cc", unbroken.folder / "coordinator" / "run" / "cc"]
    places.append(unbroken.coordinator.relay / "store")
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert began.blind not in data, path
        assert began.blind.hex().encode() not in data, path


@pytest.mark.parametrize(
    ("site", "at"),
    [
        ("aa", "vector after 1"),  # the giver, its vector not yet sent
        ("dd", "set after 1"),
        ("bb", "M5 after 1"),
        ("aa", "M6 before 1"),  # the sum is open, and nobody has this site's word for it
        ("dd", "M6 saved 1"),
        ("dd", "proof after 1"),
        ("bb", "save before 0"),
        ("aa", "save half 0"),
        ("dd", "save after 0"),
    ],
)
def test_killed_around_the_sum_that_begins_an_epoch(
    changed: World, unbroken: World, tmp_path: Path, site: str, at: str
) -> None:
    world = changed.copy(tmp_path / "w")
    expected = model_sha256(unbroken.checkpoint("run-2", "aa").tensors)
    with world.relay(), contextlib.ExitStack() as stack:
        others = [stack.enter_context(world.start(name)) for name in NEW if name != site]
        with world.start(site, at=at) as job:
            until(lambda: world.frozen(site).exists() or job.process.poll() is not None, 60, f"{site} at {at}")
            assert world.frozen(site).exists(), job.finish(1).text
            job.kill()
        with world.start(site) as again:
            again.finish(120).ok()
        for other in others:
            other.finish(120).ok()
    assert {model_sha256(world.checkpoint("run-2", name).tensors) for name in NEW} == {expected}


def test_all_are_killed_after_the_sum_and_before_its_checkpoint(
    changed: World, unbroken: World, tmp_path: Path
) -> None:
    world = changed.copy(tmp_path / "w")
    with world.relay():
        with contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(world.start(name, at="save before 0")) for name in NEW]
            for name, job in zip(NEW, jobs, strict=True):
                until(lambda n=name, j=job: world.frozen(n).exists() or j.process.poll() is not None, 60, name)
                assert world.frozen(name).exists(), job.finish(1).text
            for job in jobs:
                job.kill()
        world.run(*NEW)
    assert {model_sha256(world.checkpoint("run-2", name).tensors) for name in NEW} == {
        model_sha256(unbroken.checkpoint("run-2", "aa").tensors)
    }


def test_an_old_site_with_an_older_copy_is_refused(changed: World, tmp_path: Path) -> None:
    world = changed.copy(tmp_path / "w")
    (world.folder / "coordinator" / "run" / "bb" / "checkpoints" / "round-000002.h5").unlink()
    with world.relay(), contextlib.ExitStack() as stack:
        for name in ("aa", "dd"):
            stack.enter_context(world.start(name))
        with world.start("bb") as job:
            refused = job.finish(120)
    refused.refused(77, "goes on from another model than site bb", "run the old epoch to its end at this site first")
    assert not list((world.folder / "coordinator" / "run-2" / "bb").glob("checkpoints/*.h5"))


def test_an_old_site_without_a_copy_says_so_before_it_sums(changed: World, tmp_path: Path) -> None:
    world = changed.copy(tmp_path / "w")
    (world.folder / "coordinator" / "run" / "aa").rename(world.folder / "aa")
    with world.relay(), contextlib.ExitStack() as stack:
        others = [stack.enter_context(world.start(name)) for name in ("bb", "dd")]
        with world.start("aa") as job:
            job.finish(120).refused(65, "site aa has no model of an epoch before this one", "--previous RUN")
        with world.start("aa", "--previous", world.folder) as again:
            again.finish(120).ok()
        for other in others:
            other.finish(120).ok()


def test_again_with_the_same_sites(first: World, tmp_path: Path) -> None:
    """A second run of one configuration: nothing is asked, nothing is taken over."""
    world = first.copy(tmp_path / "w")
    seed = world.agreement.federation.seed
    world.coordinator.next_epoch(Beginning("again"))
    assert world.agreement.federation.seed != seed
    world.approve()
    with world.relay():
        world.run(*OLD)
    # From the same zeros, but the full batches come in another order: close, and not the same bits.
    assert world.records("run-1", "aa")[0]["metrics"] == world.records("run", "aa")[0]["metrics"]
    assert world.records("run-1", "aa")[-1]["round"] == 2


def test_a_site_that_was_away_catches_up_with_the_epoch(first: World, tmp_path: Path) -> None:
    """Four sites, of which one may be lost: dd is killed with `start` open, and the others settle without it."""
    world = first.copy(tmp_path / "w")
    world.join("dd")
    text = world.federation.read_text().replace("rounds = 2\n", "rounds = 8\n")
    text = text.replace('policy = "sync"', 'policy = "quorum"\nminimum = 3\ngrace_s = 3.0\nanswer_s = 5.0')
    world.federation.write_text(text)
    world.approve()
    with world.relay(), contextlib.ExitStack() as stack:
        others = {name: stack.enter_context(world.start(name)) for name in OLD}
        with world.start("dd", at="M6 before 1") as job:
            until(lambda: world.frozen("dd").exists() or job.process.poll() is not None, 60, "dd with the sum open")
            assert world.frozen("dd").exists(), job.finish(1).text
            job.kill()
        aa = world.folder / "coordinator" / "run-1" / "aa" / "checkpoints"
        until(lambda: any(aa.glob("round-00000[2-9].h5")), 120, "the others to go on")
        with world.start("dd") as again:
            done = again.finish(200).ok()
        assert "caught up" in done.out + done.err
        for other in others.values():
            other.finish(200).ok()
    assert len({model_sha256(world.checkpoint("run-1", name).tensors) for name in (*OLD, "dd")}) == 1
