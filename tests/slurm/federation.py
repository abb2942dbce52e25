"""The heart federation on the two clusters: two hospitals on each, and the relay in its own place between them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clusters import Cluster, Clusters, until
from harness import call, mpi_words, write_toml
from places import Place
from topology import RELAY

from fedhpc.data.rowkey import create_key, read_key
from fedhpc.demo.heart import federation as heart
from fedhpc.demo.heart.hospitals import HOSPITALS, write_site_stores
from fedhpc.enrolment.one_machine import Enrolled, enrol

SECTIONS = """
[cohort]
{cohort}

[secure]
mode = "pairwise"

[strategy]
{strategy}

[task]
{task}

[train]
{train}
"""


class SlurmFederation:
    """`folder` is seen by every node, as a parallel file system would be. `where`: site -> its cluster."""

    def __init__(
        self, clusters: Clusters, folder: Path, *, rounds: int = 2, cohort: str = 'policy = "sync"', train: str = ""
    ) -> None:
        self.clusters, self.folder = clusters, folder
        folder.mkdir(parents=True, exist_ok=True)
        create_key(folder / "row-id.key")
        self.stores = write_site_stores(folder / "data", read_key(folder / "row-id.key"))
        self.sites = tuple(HOSPITALS)
        self.where: dict[str, Cluster] = {
            site: clusters.alpha if number < 2 else clusters.beta for number, site in enumerate(self.sites)
        }
        sections = SECTIONS.format(
            cohort=cohort, strategy=heart.STRATEGY, task=heart.TASK.format(split_seed=0), train=train or heart.TRAIN
        )
        self.enrolled: Enrolled = enrol(folder, "heart", sections, self.stores, rounds=rounds)
        for site in self.sites:
            replace(self.enrolled.site_file(site), self.enrolled.url, self.url)
        replace(self.enrolled.relay, "127.0.0.1:" + str(self.enrolled.port), f"{RELAY}:{self.enrolled.port}")

    @property
    def url(self) -> str:
        """The relay as sites dial it."""
        return f"https://{RELAY}:{self.enrolled.port}"

    @property
    def run(self) -> Path:
        """The run directory of every site."""
        return self.folder / "run"

    def spool(self, *sites: str) -> None:
        """These sites exchange through a spool directory in their folders, which `carrier` empties and fills."""
        for site in sites:
            file = self.enrolled.site_file(site)
            replace(file, 'kind = "https"', 'kind = "spool"\nspool = "spool"')
            (file.parent / "spool").mkdir()

    def settings(self, site: str, text: str) -> None:
        """Add sections ([life], [slurm]) to a site's file."""
        with self.enrolled.site_file(site).open("a") as file:
            file.write(f"\n{text}\n")

    @contextmanager
    def relay(self) -> Iterator[subprocess.Popen[str]]:
        """`fedhpc relay serve` in the relay's place, until the block ends. Its log is relay.log."""
        with self._process(
            self.clusters.relay, "relay.log", "listening", "relay", "serve", self.enrolled.relay
        ) as relay:
            yield relay

    @contextmanager
    def carrier(self, site: str) -> Iterator[subprocess.Popen[str]]:
        """`fedhpc spool carry --watch` for a site in beta's transfer place, until the block ends or it is killed."""
        files = [self.enrolled.federation, "--site", self.enrolled.site_file(site)]
        words = ["spool", "carry", *files, "--watch"]
        with self._process(self.clusters.transfer, f"carrier-{site}.log", "carrying", *words) as carrier:
            yield carrier

    @contextmanager
    def _process(self, place: Place, log: str, ready: str, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        command = place.inside(sys.executable, "-m", "fedhpc", *words)
        path = self.folder / log
        with path.open("a") as file:
            before = file.tell()
            process = subprocess.Popen(command, stdout=file, stderr=file, text=True, env=self.clusters.alpha.env)
        try:
            until(lambda: ready in path.read_text()[before:] or process.poll() is not None, ready, 60, path.read_text)
            assert process.poll() is None, path.read_text()
            yield process
        finally:
            process.terminate()
            process.wait(60)

    def run_words(self, site: str, *more: str) -> list[str]:
        """The words after srun that run a site."""
        files = [str(self.enrolled.federation), "--site", str(self.enrolled.site_file(site)), "--out", str(self.run)]
        return ["python", "-m", "mpi4py", "-m", "fedhpc", "run", *files, *more]

    def script(self, site: str, *more: str) -> str:
        """The shortest batch script that runs a site."""
        return f"#!/bin/bash\nexec srun --mpi=pmix {shlex.join(self.run_words(site, *more))}\n"

    def submit(self, site: str, *args: str) -> dict[str, object]:
        """`fedhpc submit` at the login node of the site's cluster; what it says of the (last) job, as --json."""
        files = [self.enrolled.site_file(site), "--federation", self.enrolled.federation, "--out", self.run]
        out = self.where[site].run("python", "-m", "fedhpc", "submit", *files, *args, "--json", timeout=120)
        said: dict[str, object] = json.loads(out.splitlines()[-1])
        return said

    def listed(self, site: str) -> list[dict[str, str]]:
        """What `fedhpc jobs list --json` says of a site's jobs, oldest first."""
        files = [self.enrolled.site_file(site), "--federation", self.enrolled.federation, "--out", self.run]
        out = self.where[site].run("python", "-m", "fedhpc", "jobs", "list", *files, "--json")
        return [json.loads(line) for line in out.splitlines()]

    def job(self, site: str, link: int = -1) -> str:
        """The id of link `link` (from 0; -1: the last) of a site's newest chain, '' while it has none."""
        found = [json.loads(path.read_text()) for path in (self.run / site / "jobs").glob("fedhpc-*.json")]
        newest = max((r["time"], r["chain"]) for r in found)[1] if found else ""
        links = sorted((r["link"], r["job"]) for r in found if r["chain"] == newest)
        return str(links[link][1]) if -len(links) <= link < len(links) else ""

    def rounds_done(self, site: str) -> int:
        """How many rounds a site's metrics tell of."""
        path = self.run / site / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def log(self, site: str, job: str) -> str:
        """What a job has said so far."""
        return "".join(path.read_text() for path in (self.run / site / "jobs").glob(f"*-{job}.out"))

    def alive(self, site: str) -> list[str]:
        """Ids of a site's jobs that wait or run."""
        out = self.where[site].run("squeue", "-h", "-o", "%i %j")
        return [line.split()[0] for line in out.splitlines() if line.split()[1].startswith(f"fedhpc-heart-{site}-")]

    def logs(self, *sites: str) -> str:
        """All logs of these sites' jobs (default: of all), for the message of a failed test."""
        found = [path for site in sites or self.sites for path in sorted((self.run / site / "jobs").glob("*.out"))]
        found += sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in found)

    def wait(self, *sites: str, seconds: float = 240) -> None:
        """Wait until these sites (default: all) have finished and have nothing in the queue any more."""
        wanted = sites or self.sites

        def done() -> bool:
            waiting = [site for site in wanted if not self.alive(site)]
            for site in waiting:
                assert self.finished(site), f"{site} has no more jobs, and is not finished\n{self.logs()}"
            return len(waiting) == len(wanted)

        until(done, f"the end of {wanted}", seconds, self.logs)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Wait until it is true; AssertionError with all logs."""
        until(condition, what, seconds, self.logs)

    def finished(self, site: str) -> str:
        """SHA-256 of the final model according to a site's run directory; '' if it is not there yet."""
        path = self.run / site / "finished.json"
        return str(json.loads(path.read_text())["model_sha256"]) if path.exists() else ""

    def rehearsal(self, **ranks: int) -> str:
        """SHA-256 of the final model of the same federation.toml, keys and data in one MPI job on this machine.

        `ranks`: of the sites that have more than one. A site's own sums depend on how many share its rows.
        """
        folder = self.folder / "rehearsal"
        folder.mkdir()
        for site in self.sites:
            key = self.enrolled.site_file(site).with_name("sign.key")
            sections: Mapping[str, Mapping[str, object]] = {
                "site": {"name": site, "ranks": ranks.get(site, 1), "key": str(key)},
                "data": {"path": str(self.stores[site])},
            }
            write_toml(folder / f"{site}.toml", sections)
        files = [self.enrolled.federation, "--sites", folder, "--out", folder / "run"]
        everyone = sum(ranks.get(site, 1) for site in self.sites)
        done = call(mpi_words(everyone, ["-m", "fedhpc", "run", *files, "--json"], warm=True), timeout=240).ok()
        return str(json.loads(done.out.splitlines()[-1])["final_model_sha256"])


def replace(path: Path, old: str, new: str) -> None:
    """Exchange words of a file that must have them."""
    text = path.read_text()
    assert old in text, f"{old} is not in {path}"
    path.write_text(text.replace(old, new))
