"""A new federation's files: one that begins from a given model has it, and goes on as any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.agreement.federation_file import Agreement
from fedhpc.config import parse_toml, read_bytes
from fedhpc.enrolment.next_epoch import Beginning
from fedhpc.enrolment.rehearsal import Rehearsal
from fedhpc.enrolment.scaffold import NewSite, Plan, write_federation
from fedhpc.train.start_file import StartFile

SHA = "ab" * 32


def written(folder: Path, start: StartFile | None) -> Path:
    plan = Plan("three", 2, 0, 'name = "fedavg"', 'name = "logistic"', "lr = 0.1", start=start)
    return write_federation(folder, plan, {name: NewSite(folder / f"{name}.h5") for name in ("aa", "bb", "cc")})


@pytest.fixture
def given(tmp_path: Path) -> StartFile:
    (tmp_path / "old.safetensors").write_bytes(b"a model")
    return StartFile(tmp_path / "old.safetensors", {}, (), SHA)


def test_every_site_is_given_the_model(tmp_path: Path, given: StartFile) -> None:
    federation = written(tmp_path / "new", given)
    agreement = Agreement.open(federation)
    assert (agreement.start.model, agreement.start.from_) == (SHA, None)
    assert agreement.names == ["aa", "bb", "cc"]
    for name in agreement.names:
        site = tmp_path / "new" / "sites" / f"{name}.toml"
        file = site.parent / parse_toml(read_bytes(site), name)["data"]["start_model"]
        assert file.read_bytes() == b"a model"


def test_without_one_the_files_are_as_before(tmp_path: Path) -> None:
    federation = written(tmp_path / "new", None)
    assert "start" not in federation.read_text()
    assert "start" not in (tmp_path / "new" / "sites" / "aa.toml").read_text()


def test_it_goes_on_to_the_next_epoch(tmp_path: Path, given: StartFile) -> None:
    federation = written(tmp_path / "new", given)
    Rehearsal(tmp_path / "new").next_epoch(Beginning())
    after = Agreement.open(federation)
    assert (after.federation.epoch, after.start.model, after.start.from_) == (1, "", "previous")
