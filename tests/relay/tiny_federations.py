"""Federations of tiny sites (tiny_site.py) over one relay, and the same ones as an MPI job."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Completed, Job, mpi_words, start, until, write_toml

from fedhpc.config import read_bytes
from fedhpc.enrolment.one_machine import Enrolled, enrol, running_relay

SCRIPT = Path(__file__).with_name("tiny_site.py")
ENVIRONMENT = {"HTTPS_PROXY": "", "https_proxy": ""}
OFF = '[secure]\nmode = "off"\n'


@dataclass
class Tiny:
    """Sites enrolled once in `folder`; every federation is a variant of the first one's file."""

    folder: Path
    base: Enrolled
    made: dict[str, Enrolled] = field(default_factory=dict)

    @classmethod
    def enrol(cls, folder: Path, sites: Sequence[str]) -> Tiny:
        """Keys, certificates and a relay's folder; nothing runs yet."""
        data = dict.fromkeys(sites, folder / "no-data")
        return cls(folder, enrol(folder, "tiny", OFF, data, unmasked=True, quota_bytes=4 << 30))

    @property
    def sites(self) -> tuple[str, ...]:
        return self.base.sites

    def federation(
        self, name: str, *, rounds: int = 2, samples: Sequence[int] = (), **sections: Mapping[str, Any]
    ) -> Enrolled:
        """federation.toml with these sections, signed by all sites, known to the relay."""
        text = read_bytes(self.base.federation).decode()
        head, _, roster = text.partition(OFF)
        head = head.replace("rounds = 1", f"rounds = {rounds}", 1)
        assert f"rounds = {rounds}" in head
        for number, count in enumerate(samples):
            place = f'name = "{self.sites[number]}"'
            assert roster.count(place) == 1
            roster = roster.replace(place, f"{place}\nsamples = {count}")
        folder = self.folder / name
        folder.mkdir()
        middle = write_toml(folder / "sections.toml", sections).read_text()
        source = f"# {name}: two files are never the same federation\n{head}{middle}\n{roster}".encode()
        self.made[name] = self.base.variant(folder, source, quota_bytes=4 << 30, unmasked=True)
        return self.made[name]

    def case(self, name: str, site: str, how: str = "https", **more: Any) -> dict[str, Any]:
        """A case of tiny_site.py: a federation at one site; `how` names its run directory."""
        enrolled = self.made[name]
        place = {"site": str(enrolled.site_file(site)), "run": str(enrolled.folder / f"run-{how}")}
        return {"name": name, "federation": str(enrolled.federation)} | place | more

    def edit_exchange(self, name: str, site: str, **settings: Any) -> None:
        """Add lines to [exchange] of a site's file."""
        path = self.made[name].site_file(site)
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        path.write_text(path.read_text().replace("[exchange]\n", f"[exchange]\n{lines}"))

    def mpi_case(self, name: str, ranks: Mapping[str, int], how: str = "mpi", **more: Any) -> dict[str, Any]:
        """The same federation.toml, keys and data with all sites in one job."""
        enrolled = self.made[name]
        folder = enrolled.folder / f"sites-{how}"
        folder.mkdir()
        for site in self.sites:
            key = self.base.folder / "sites" / site / "sign.key"
            section = {"name": site, "ranks": ranks.get(site, 1), "key": key}
            write_toml(folder / f"{site}.toml", {"site": section, "data": {"path": "none"}})
        place = {"sites": str(folder), "run": str(enrolled.folder / f"run-{how}")}
        return {"name": name, "federation": str(enrolled.federation)} | place | more


def words(cases: Sequence[Mapping[str, Any]], ranks: int = 1) -> list[str | Path]:
    """The command line of one site with `ranks` ranks, or of all sites in one job."""
    arguments = [SCRIPT, *(json.dumps(case) for case in cases)]
    return mpi_words(ranks, arguments) if ranks > 1 else [sys.executable, *arguments]


def results(done: Completed) -> list[dict[str, Any]]:
    """What a site printed, by case."""
    return [json.loads(line) for line in done.ok().out.splitlines() if line.startswith("{")]


def run_sites(
    cases: Mapping[str, Sequence[Mapping[str, Any]]], ranks: Mapping[str, int] | None = None, timeout: float = 120
) -> dict[str, list[dict[str, Any]]]:
    """All sites at once, each through its cases: what each gave, by site."""
    with contextlib.ExitStack() as stack:
        jobs = {
            site: stack.enter_context(start(words(of, (ranks or {}).get(site, 1)), env=ENVIRONMENT))
            for site, of in cases.items()
        }
        return {site: results(job.finish(timeout)) for site, job in jobs.items()}


@contextlib.contextmanager
def relay_of(tiny: Tiny) -> Iterator[Path]:
    """The relay, until the block ends; its log."""
    log = tiny.folder / "relay.log"
    with log.open("a") as file, running_relay(tiny.base.relay, file):
        yield log


class Gates:
    """Holds sites at the beginning of a round (see tiny_site.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def open(self, site: str, round_: int | None = None) -> None:
        """Let a site train its round, or all rounds."""
        (self.folder / (f"{site}.go" if round_ is None else f"{site}.{round_}.go")).touch()

    def hold(self, site: str) -> None:
        """Hold a site at its next measurement, until `release`."""
        (self.folder / f"{site}.hold").touch()

    def release(self, site: str) -> None:
        (self.folder / f"{site}.hold").unlink()

    def reached(self, site: str, round_: int, timeout: float = 60) -> None:
        """Wait until a site is about to train its round."""
        until(lambda: (self.folder / f"{site}.{round_}").exists(), timeout, f"{site} in round {round_}")


__all__ = ["Gates", "Job", "Tiny", "relay_of", "results", "run_sites", "words"]
