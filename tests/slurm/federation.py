"""The heart federation on the two clusters: two hospitals on each, and the relay in its own place between them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clusters import Cluster, Clusters
from harness import call, mpi_words, write_toml
from topology import RELAY

from fedhpc.data.rowkey import create_key, read_key
from fedhpc.demo.heart import federation as heart
from fedhpc.demo.heart.hospitals import HOSPITALS, write_site_stores
from fedhpc.ops.enrolment.one_machine import Enrolled, enrol

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

    def settings(self, site: str, text: str) -> None:
        """Add sections ([life], [slurm]) to a site's file."""
        with self.enrolled.site_file(site).open("a") as file:
            file.write(f"\n{text}\n")

    @contextmanager
    def relay(self) -> Iterator[subprocess.Popen[str]]:
        """`fedhpc relay serve` in the relay's place, until the block ends. Its log is relay.log."""
        words = [sys.executable, "-m", "fedhpc", "relay", "serve", self.enrolled.relay]
        command = self.clusters.relay.inside(*words)
        env = self.clusters.alpha.env
        with (self.folder / "relay.log").open("a") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
            try:
                assert process.stdout is not None
                assert "listening" in process.stdout.readline(), (self.folder / "relay.log").read_text()
                yield process
            finally:
                process.terminate()
                process.wait(60)
                if process.stdout:
                    process.stdout.close()

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
        done = call(mpi_words(everyone, ["-m", "fedhpc", "run", *files, "--json"]), timeout=240).ok()
        return str(json.loads(done.out.splitlines()[-1])["final_model_sha256"])


def replace(path: Path, old: str, new: str) -> None:
    """Exchange words of a file that must have them."""
    text = path.read_text()
    assert old in text, f"{old} is not in {path}"
    path.write_text(text.replace(old, new))
