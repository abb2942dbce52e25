"""A site behind a spool directory that was away catches up through it; and it helps one that was away over https."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import start, until
from spool_sites import carriers, place_of, use_spool
from tiny_federations import ENVIRONMENT, Gates, Tiny, relay_of, results, words

SITES = ("aa", "bb", "cc", "dd")
SHAPES = {"weight": (600_001,), "scalar": (), "bias": (7,)}  # a state of several blocks
ROUNDS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    made = Tiny.enrol(tmp_path_factory.mktemp("away"), SITES)
    for name in ("taker", "givers"):
        made.federation(
            name,
            rounds=ROUNDS,
            secure={"bound": 2.0},
            strategy={"name": "diloco", "weights": "uniform"},
            cohort={"policy": "quorum", "minimum": 3, "grace_s": 3.0},
        )
    with relay_of(made):
        yield made


@pytest.mark.faults
@pytest.mark.parametrize(("name", "behind"), [("taker", ("dd",)), ("givers", SITES[:3])])
def test_a_site_that_was_away(name: str, behind: tuple[str, ...], tiny: Tiny, tmp_path: Path) -> None:
    """dd dies in the first round; the others train all but the last without it."""
    spool = tmp_path / "spool"
    use_spool(tiny, name, behind, spool)
    gates = Gates(tmp_path / "gates")
    cases = {site: words([tiny.case(name, site, shapes=SHAPES, gates=str(gates.folder))]) for site in SITES}
    with contextlib.ExitStack() as stack:
        stack.enter_context(carriers(tiny, name, behind))
        jobs = {site: stack.enter_context(start(cases[site], env=ENVIRONMENT)) for site in SITES[:3]}
        with start(cases["dd"], env=ENVIRONMENT) as job:
            for site in SITES:
                gates.reached(site, 1)
            job.kill()
        for round_ in range(1, ROUNDS):
            for site in SITES[:3]:
                gates.open(site, round_)
        for site in SITES[:3]:
            gates.reached(site, ROUNDS, timeout=120)
        gates.open("dd")
        jobs["dd"] = stack.enter_context(start(cases["dd"], env=ENVIRONMENT))
        gates.reached("dd", ROUNDS, timeout=120)
        for site in SITES[:3]:
            gates.open(site)
        found = {site: results(job.finish(120))[0] for site, job in jobs.items()}
    assert len({got["sha256"] for got in found.values()}) == 1
    assert len({got["state"] for got in found.values()}) == 1
    assert found["dd"]["rounds"] == ROUNDS
    assert found["dd"]["trained"] < ROUNDS, "it took over what the others trained"
    for site in behind:
        notes = place_of(tiny, name, site, spool) / "out" / "puts"
        until(lambda n=notes: not [p for p in n.iterdir() if ".B" in p.name], 1, "blocks that nobody wants any more")  # type: ignore[misc]
