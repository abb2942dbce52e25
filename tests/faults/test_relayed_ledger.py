"""One ledger for all that a site runs, over a real relay: audits 5 and 6, and a rerun in which another site is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attack_stage import ALL
from harness import edit
from tls_stage import SECTIONS, TlsStage, four_sites, stage_of

from fedhpc.app.federation import Federation
from fedhpc.config import read_bytes
from fedhpc.enrolment.one_machine import Enrolled
from fedhpc.errors import PolicyError
from fedhpc.rounds.global_model import GlobalModel

pytestmark = pytest.mark.faults

UNIFORM = SECTIONS + '[strategy]\nname = "fedavg"\nweights = "uniform"\n[secure]\nbound = 8192.0\n'


@pytest.fixture
def enrolled(tmp_path: Path) -> Enrolled:
    """Four sites, one of which may be lost; their ledgers lie beside their folders."""
    made = four_sites(tmp_path / "four", UNIFORM)
    for name in made.sites:
        edit(made.site_file(name), 'path = "ledger"', f'path = "{tmp_path / "homes" / name}"')
    return made


@pytest.fixture
def stage(enrolled: Enrolled, tmp_path: Path) -> Iterator[TlsStage]:
    with stage_of(enrolled, tmp_path) as made:
        yield made


def train(fed: Federation) -> None:
    """One round with a full batch from a model of zeros: the same update in every run."""
    model = GlobalModel(fed.session, {"w": np.zeros(3, np.float32)})
    model.exchange({"w": np.full(3, -float(fed.session.party.number), np.float32)}, 1, {})


def test_a_rerun_in_which_another_site_is_lost(enrolled: Enrolled, stage: TlsStage, tmp_path: Path) -> None:
    """federation.toml is edited and everything begins again, with a run directory of its own."""
    stage.start(spoil=dict.fromkeys(ALL, train))
    stage.run(1)
    stage.run(1, round_=2)
    for u in ALL:
        assert stage.end(u) is None
    stage.stop_relay()

    source = read_bytes(enrolled.federation).decode().replace("rounds = 1", "rounds = 20", 1)
    other = enrolled.variant(tmp_path / "other", source.encode())
    with stage_of(enrolled, tmp_path / "again") as again:
        again.enrolled, first = other, again.config
        again.config = next(c for c in again.server.roster.federations if c != first)
        again.start(spoil=dict.fromkeys(ALL, train))
        again.run(1, (1, 2, 3))
        for u in (1, 2, 3):
            error = again.end(u)
            assert isinstance(error, PolicyError), repr(error)
            assert "round 1 ('train') holds the same numbers" in error.what
            assert "those of s4" in error.what
            assert "fedhpc federation next --again" in error.hint
            assert error.exit_code == 77
        assert not any(again.has(1, kind, [u]) for kind in ("M4", "M5") for u in (1, 2, 3))


def test_a_second_run_directory_cannot_open_a_second_set(stage: TlsStage, tmp_path: Path) -> None:
    """Audit 6: `--out other` had a ledger of its own, and the relay with one colluder took the difference."""
    stage.start()
    stage.run(1)
    for u in ALL:
        assert stage.end(u) is None
    stage.runs = stage.runs.with_name("other")  # what the hints used to ask for
    stage.give_up(1)
    stage.start(2)
    assert stage.end(2) is None
    assert stage.got(2) == 11110, "the sum that lies beside the ledger, and nothing is asked for"
    copies = list((tmp_path / "homes").glob("*/runs/*.sums"))
    assert len(copies) == 4
    for folder in copies:
        shutil.rmtree(folder)
    stage.start(1, 3, 4)
    stage.run(2, (1, 3, 4))
    for u in (1, 3, 4):
        error = stage.end(u)
        assert isinstance(error, PolicyError), repr(error)
        assert "was opened over sites [1, 2, 3, 4], not [1, 3, 4]" in error.what
    assert not stage.has(2, "M4", [1])


def test_unnamed_like_numbers_over_another_set(stage: TlsStage) -> None:
    """Audit 5 over a relay: a second name for the same numbers, and a site that comes too late."""
    stage.start()
    stage.run(1)
    for u in ALL:
        assert stage.end(u) is None

    def again(fed: Federation) -> None:
        fed.session.round_ = 1
        fed.sum({"n": np.full(5, 10**fed.session.party.number)}, name="the same")

    stage.start(1, 2, 3, spoil=dict.fromkeys((1, 2, 3), again))
    stage.run(1, (1, 2, 3), round_=2)
    for u in (1, 2, 3):
        error = stage.end(u)
        assert isinstance(error, PolicyError), repr(error)
        assert "holds the same numbers as an earlier sum" in error.what
        assert "those of s4" in error.what
        assert "everyone=True" in error.hint
