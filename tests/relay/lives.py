"""Sites of a small federation over a relay, as jobs one after the other: `fedhpc run` in stages, stopped and killed.

All federations here have the same data, seed and settings and differ in a comment, so all end with one model. Their
task (TASK) can stop its own process after a step: STOP_AT="5 SIGUSR2" in a job's environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from harness import FEDHPC, ROOT, Completed, Job, Warm, call, edit, mpi_words, start, write_rows, write_toml

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.site_file import SiteFile
from fedhpc.config import read_bytes
from fedhpc.enrolment.one_machine import Enrolled, enrol
from fedhpc.sums.over_relay.access import relay_access
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience

SITES = ("aa", "bb", "cc")
ROUNDS, STEPS = 2, 6
NO_PROXY = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), "")
DEAD = "https://127.0.0.1:1"
TASK = """
import os
import signal

import torch

from fedhpc.train.tasks import logistic

left = iter(range(1 << 30))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.2)
        self.b = torch.nn.Linear(8, 1)

    def forward(self, x):
        return self.b(self.drop(torch.relu(self.norm(self.a(x)))))[:, 0]


def model(options):
    return Model()


def dataset(path, options):
    return logistic.dataset(path, {"features": 4})


def loss(model, batch):
    step, _, name = os.environ.get("STOP_AT", "").partition(" ")
    if step and torch.is_grad_enabled() and next(left) + 1 == int(step):  # not where the loss is tried at the start
        os.kill(os.getpid(), getattr(signal, name))
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1].float())


def sums(model, batch):
    return {"n": torch.tensor(len(batch[1])), "loss": loss_sum(model, batch)}


def loss_sum(model, batch):
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1].float(), reduction="sum")
"""
SECTIONS = f"""
[cohort]
policy = "sync"

[secure]
mode = "pairwise"

[strategy]
name = "diloco"

[task]
name = "module"
source_sha256 = "{hashlib.sha256(TASK.encode()).hexdigest()}"
held_out = 0.25

[train]
optimizer = "adamw"
lr = 0.02
batch_size = 8
local_steps = {STEPS}
"""
NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("this job must not import " + name)

sys.meta_path.insert(0, Refuse())
"""


@dataclass
class Lives:
    """The sites, enrolled once; `federation` makes a run of its own over the same relay."""

    folder: Path
    base: Enrolled
    made: Iterable[int] = field(default_factory=itertools.count)

    @classmethod
    def enrol(cls, folder: Path) -> Lives:
        (folder / "data").mkdir()
        (folder / "no-torch").mkdir()
        (folder / "no-torch" / "sitecustomize.py").write_text(NO_TORCH)
        (folder / "task.py").write_text(TASK)
        data = {name: folder / "data" / f"{name}.h5" for name in SITES}
        for number, (name, path) in enumerate(data.items()):
            write_rows(path, name, 24 + 9 * number)
        base = enrol(folder, "lives", SECTIONS, data, rounds=ROUNDS)
        for name in SITES:
            edit(base.site_file(name), "[data]\n", f'[data]\ntask_source = "{folder / "task.py"}"\n')
        return cls(folder, base)

    def federation(self, **life: object) -> Run:
        """Another federation of the same sites; `life`: [life] of every site."""
        number = next(iter(self.made))
        folder = self.folder / f"run{number}"
        source = f"# number {number}\n{read_bytes(self.base.federation).decode()}"
        enrolled = self.base.variant(folder, source.encode())
        for name in SITES if life else ():
            lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in life.items())
            enrolled.site_file(name).write_text(f"{enrolled.site_file(name).read_text()}\n[life]\n{lines}")
        return Run(self, folder / "run", enrolled)

    def rehearsal(self) -> str:
        """The hash of the model when all sites are one job."""
        folder = self.folder / "rehearsal"
        (folder / "sites").mkdir(parents=True)
        for name in SITES:
            key = self.base.folder / "sites" / name / "sign.key"
            data = {"path": self.folder / "data" / f"{name}.h5", "task_source": self.folder / "task.py"}
            section = {"name": name, "key": key}
            write_toml(folder / "sites" / f"{name}.toml", {"site": section, "data": data, "compute": {"device": "cpu"}})
        words = ["-m", "fedhpc", "run", self.base.federation, "--sites", folder / "sites", "--out", folder / "run"]
        return final_hash(call(mpi_words(len(SITES), words, warm=True), timeout=120).ok())


@dataclass
class Run:
    """One federation's files."""

    lives: Lives
    out: Path
    enrolled: Enrolled

    def copy(self, out: Path) -> Run:
        """The same federation with a copy of the run directory: for jobs that exchange nothing."""
        shutil.copytree(self.out, out)
        return Run(self.lives, out, self.enrolled)

    def site(self, name: str) -> Path:
        """The site's part of the run directory."""
        return self.out / name

    def words(
        self, name: str, stage: str = "all", ranks: int = 1, site_file: Path | None = None, cold: bool = False
    ) -> list[str | Path]:
        """`cold`: by processes that start from nothing; others have imported torch already."""
        arguments = ["run", self.enrolled.federation, "--site", site_file or self.enrolled.site_file(name)]
        arguments += ["--out", self.out, "--stage", stage]
        if ranks > 1:
            return mpi_words(ranks, ["-m", "fedhpc", *arguments], warm=not cold)
        return [*(FEDHPC if cold else [*Warm.words(), "fedhpc"]), *arguments]

    def start(
        self,
        name: str,
        stage: str = "all",
        env: Mapping[str, str] | None = None,
        ranks: int = 1,
        site_file: Path | None = None,
        cold: bool = False,
    ) -> Job:
        """A job of a site; a cold one too where `env` says what may be imported."""
        words = self.words(name, stage, ranks, site_file, cold or "PYTHONPATH" in (env or {}))
        return start(words, env=NO_PROXY | dict(env or {}))

    def job(
        self, name: str, stage: str = "all", env: Mapping[str, str] | None = None, timeout: float = 120, **more: object
    ) -> Completed:
        """A job of a site, to its end."""
        with self.start(name, stage, env, **more) as job:  # type: ignore[arg-type]
            return job.finish(timeout)

    def at_once(self, *stages: str, env: Mapping[str, str] | None = None) -> list[list[Completed]]:
        """Every site through jobs of these stages, all sites at the same time."""

        def through(name: str) -> list[Completed]:
            return [self.stage_job(name, stage, env) for stage in stages]

        with ThreadPoolExecutor(len(SITES)) as pool:
            return list(pool.map(through, SITES))

    def stage_job(self, name: str, stage: str, env: Mapping[str, str] | None = None) -> Completed:
        """A job as it is in a detached life: training has no relay, an exchange no data and no torch."""
        if stage == "train":
            return self.job(name, stage, env, site_file=self.unconnected(name))
        if stage == "exchange" and list(self.site(name).glob("checkpoints/round-*")):
            return self.job(name, stage, dict(env or {}) | self.without_torch(), site_file=self.without_data(name))
        return self.job(name, stage, env)

    def unconnected(self, name: str) -> Path:
        """A site file with a relay that nobody is."""
        path = self.enrolled.site_file(name)
        other = path.with_name("site-unconnected.toml")
        other.write_text(re.sub(r'(?m)^url = ".*"', f'url = "{DEAD}"', path.read_text()))
        assert DEAD in other.read_text()
        return other

    def without_data(self, name: str) -> Path:
        """A site file whose store and task are not there."""
        path = self.enrolled.site_file(name)
        other = path.with_name("site-without-data.toml")
        head, mark, rest = path.read_text().partition("[data]\n")
        data, *others = re.split(r"(?m)^(?=\[)", rest)  # [ledger] has a path too
        data = re.sub(r'(?m)^(path|task_source) = ".*"', r'\1 = "/nowhere/at-all"', data)
        other.write_text(head + mark + data + "".join(others))
        assert other.read_text().count("/nowhere") == 2
        return other

    def without_torch(self) -> dict[str, str]:
        """An environment in which importing torch fails."""
        return {"PYTHONPATH": os.pathsep.join([str(self.lives.folder / "no-torch"), str(ROOT)])}

    def until_done(self, name: str, stages: Iterable[str], env: Mapping[str, str] | None = None) -> list[Completed]:
        """Jobs of these stages, one after the other, as long as they end with 75; the last one ends with 0."""
        done: list[Completed] = []
        for stage in stages:
            done.append(self.stage_job(name, stage, env))
            if done[-1].code != 75:
                break
            assert len(done) < 40, "it does not come to an end"
        done[-1].ok()
        return done

    def all_until_done(self, stages: tuple[str, ...]) -> dict[str, list[Completed]]:
        """`until_done` at all sites at once; `stages` again and again."""
        with ThreadPoolExecutor(len(SITES)) as pool:
            found = pool.map(lambda name: self.until_done(name, itertools.cycle(stages)), SITES)
            return dict(zip(SITES, found, strict=True))

    def client(self, name: str) -> RelayClient:
        """The site's access to the relay."""
        agreement = Agreement.open(self.enrolled.federation)
        mine = SiteFile.open(self.enrolled.site_file(name))
        access = relay_access(agreement, mine, agreement.number_of(name))
        return RelayClient(dataclasses.replace(access, proxy=None), 1, Patience(5.0))

    def exchange(self, name: str) -> RelayExchange:
        """What the site says to others."""
        config = hashlib.sha256(read_bytes(self.enrolled.federation)).digest()
        return RelayExchange(self.client(name), config, 1 + SITES.index(name))

    def ready(self) -> list[int]:
        """The sites that the relay knows to be ready, in the round that is not done."""
        rounds = self.exchange("aa").standing(quiet=True)["sums"]
        return list(rounds[0]["ready"]) if rounds else []


def final_hash(done: Completed) -> str:
    """What a finished job says its model is."""
    found = re.search(r"sha256 ([0-9a-f]{64})", done.out)
    assert found, done.text
    return found[1]


__all__ = ["SITES", "STEPS", "Lives", "Run", "final_hash"]
