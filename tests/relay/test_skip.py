"""SKIP over a real relay: a site is killed in a sum over everyone, the others go on, and it ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from harness import Job, start, until
from tiny_federations import ENVIRONMENT, Gates, Tiny, relay_of, results, words

SITES = ("aa", "bb", "cc", "dd")  # τ = 3
COHORT = {"upload_s": 4.0, "answer_s": 5.0, "deadline_s": 600.0}
COMMON: dict[str, Any] = {"secure": {"bound": 2.0}, "strategy": {"name": "fedavg", "weights": "uniform"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    made = Tiny.enrol(tmp_path_factory.mktemp("skip"), SITES)
    for name in ("open", "M3", "M5"):
        made.federation(name, rounds=2, **COMMON, cohort=COHORT)
    for name in ("scripts", "second"):
        made.federation(name, rounds=1, **COMMON, cohort=COHORT)
    with relay_of(made):
        yield made


class Run:
    """The sites of one federation."""

    def __init__(self, tiny: Tiny, name: str, stack: ExitStack) -> None:
        self.tiny, self.name, self.stack = tiny, name, stack
        self.gates = Gates(tiny.folder / f"gates {name}")
        self.jobs: dict[str, Job] = {}

    def start(self, sites: Sequence[str], **more: Any) -> None:
        for site in sites:
            case = self.tiny.case(self.name, site, gates=str(self.gates.folder), **more)
            self.jobs[site] = self.stack.enter_context(start(words([case]), env=ENVIRONMENT))

    def reached(self, round_: int, *sites: str) -> None:
        """Wait until sites are about to train a round."""
        for site in sites:
            here = self.gates.folder / f"{site}.{round_}"
            until(lambda here=here, site=site: here.exists() or self.ended(site), 100, f"{site} in round {round_}")
            assert here.exists(), self.jobs[site].finish(1).text

    def ended(self, site: str) -> bool:
        return self.jobs[site].process.poll() is not None

    def records(self, site: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        found = results(self.jobs[site].finish(100))[0]
        return found, found["records"]


@pytest.mark.parametrize("when", ["open", "M3", "M5"])
def test_a_site_killed_in_a_sum_over_everyone_holds_nobody_up(tiny: Tiny, when: str) -> None:
    """dd dies as its measurement is asked for, with its vector at the relay, or after M5; the others go on alone.

    After M3 and M5 the vector is in the sum, and three are enough to open it. Then dd comes back and finds its way.
    """
    with ExitStack() as stack:
        run = Run(tiny, when, stack)
        run.start(SITES[:3])
        run.start(SITES[3:], dies=["measured after round 1", when])
        for site in SITES:
            run.gates.open(site, 1)
        until(lambda: run.ended("dd"), 100, "dd to be killed")
        run.reached(2, *SITES[:3])  # nobody waits for dd's return, nor until deadline_s
        run.start(SITES[3:])
        for site in SITES:
            run.gates.open(site)
        found = {site: run.records(site) for site in SITES}
        for site, (outcome, records) in found.items():
            assert outcome["sha256"] == found["aa"][0]["sha256"]
            assert outcome["state"] == found["aa"][0]["state"]
            rounds = [record["round"] for record in records]
            assert rounds == [1, 2, 2], (site, records)
            skipped = when == "open"
            assert (records[0]["metrics"] == {}) == skipped, (site, records)
            assert ("no_metrics" in records[0]) == skipped
            assert records[1]["metrics"]["sites"] == records[2]["metrics"]["sites"] == 4
        assert found["dd"][0]["started_at"] == 1
        assert found["dd"][1][0]["again"] is True
        assert {json.dumps(records[1:]) for _, records in found.values()} == {json.dumps(found["aa"][1][1:])}
        sums = tiny.made[when].folder / "run-https"
        for site in SITES:
            assert not list((sums / site / "attempts").glob("round-*")), "keys of a skipped round go"


def scripts(tiny: Tiny, name: str, what: Mapping[str, str], stack: ExitStack, **more: Any) -> dict[str, Job]:
    """Site bb has two ranks: both must get the same answer."""
    cases = {site: tiny.case(name, site, what=script, **more) for site, script in what.items()}
    commands = {site: words([case], 2 if site == "bb" else 1) for site, case in cases.items()}
    return {site: stack.enter_context(start(command, env=ENVIRONMENT)) for site, command in commands.items()}


def test_scripts_that_may_skip_go_on_with_none(tiny: Tiny) -> None:
    """dd never asks for the first sum; it comes later, and goes on with the next one like the others."""
    with ExitStack() as stack:
        for job in scripts(tiny, "scripts", dict.fromkeys(SITES, "nothing"), stack).values():
            job.finish(100).ok()  # all have signed the configuration
        first = scripts(tiny, "scripts", dict.fromkeys(SITES[:3], "skipping"), stack)
        folder = tiny.made["scripts"].folder / "run-https"
        until(
            lambda: all(list((folder / site / "sums").glob("*.skipped")) for site in SITES[:3]), 100, "sites to skip it"
        )
        late = scripts(tiny, "scripts", {"dd": "skipping"}, stack)
        found = {site: results(job.finish(100))[0] for site, job in (first | late).items()}
        for site, got in found.items():
            assert got["first"] is None, site
            assert got["second"] == 10
            assert got["round"] == 2
        again = scripts(tiny, "scripts", dict.fromkeys(SITES, "skipping"), stack)
        for site, job in again.items():  # what was skipped stays skipped, what was summed is there
            got = results(job.finish(100))[0]
            assert (got["first"], got["second"]) == (None, 10), site


def test_a_second_different_sum_under_an_old_name_is_refused(tiny: Tiny) -> None:
    """The same numbers give the kept sum again; other numbers end with exit code 77, not with the old total."""
    with ExitStack() as stack:
        jobs = scripts(tiny, "second", dict.fromkeys(SITES, "patients"), stack)
        for job in jobs.values():
            got = results(job.finish(100))[0]
            assert (got["total"], got["again"]) == (10, 10)
        jobs = scripts(tiny, "second", dict.fromkeys(SITES, "other_patients"), stack)
        for job in jobs.values():
            job.finish(100).refused(77, "'patients' was summed in round 1 already, with other numbers of this site")
