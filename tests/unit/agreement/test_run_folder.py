"""RUN and RUN/SITE are their owner's only, also those of an older run; folders that are no run stay as they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from secure_fakes import key_of

from fedhpc.agreement.run_folder import bind_run_folder, make_run_folder
from fedhpc.app.logs import JsonLines
from fedhpc.errors import PolicyError, StorageError
from fedhpc.files import private_folder, write_whole


@pytest.fixture(params=[0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_private(tmp_path: Path, umask: int) -> None:
    site = tmp_path / "deep" / "run" / "aa"
    make_run_folder(site, tmp_path / "federation.toml", placed=False)
    lines = JsonLines(site / "metrics.jsonl")
    lines.append({"samples": 3})
    lines.close()
    write_whole(site / "finished.json", b"{}", mode=0o600)
    assert [mode(p) for p in (site.parent, site, site / "metrics.jsonl", site / "finished.json")] == [
        0o700,
        0o700,
        0o600,
        0o600,
    ]
    assert mode(tmp_path / "deep") == 0o777 & ~umask  # it is not ours


def test_what_an_older_run_left_is_tightened(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in (run, run / "aa", run / "aa" / "attempts"):
        folder.mkdir()
        folder.chmod(0o755)
    (run / "federation.toml").write_text("")
    (run / "aa" / "metrics.jsonl").touch()
    (run / "aa" / "metrics.jsonl").chmod(0o640)
    make_run_folder(run / "aa", tmp_path / "federation.toml", placed=False)
    private_folder(run / "aa" / "attempts")
    JsonLines(run / "aa" / "metrics.jsonl").close()
    assert {mode(p) for p in (run, run / "aa", run / "aa" / "attempts")} == {0o700}
    assert mode(run / "aa" / "metrics.jsonl") == 0o600


@pytest.mark.parametrize("case", ["users own", "beside the file", "placed", "shared by many"])
def test_folders_that_are_no_run_stay_as_they_are(tmp_path: Path, case: str) -> None:
    run, federation = tmp_path / "here", tmp_path / "federation.toml"
    run.mkdir()
    run.chmod(0o1777 if case == "shared by many" else 0o775)
    if case == "users own":
        (run / "results").mkdir()
    elif case == "beside the file":  # --out .
        federation = run / "federation.toml"
        federation.write_text("")
    before = mode(run)
    make_run_folder(run / "aa", federation, placed=case == "placed")
    assert mode(run) == before
    assert mode(run / "aa") == 0o700


def test_an_empty_folder_becomes_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o755)
    make_run_folder(run / "aa", tmp_path / "federation.toml", placed=False)
    assert mode(run) == 0o700


def test_it_is_of_one_configuration(tmp_path: Path) -> None:
    """Attempt files and sums have the numbers of rounds: another federation's would be taken for one's own."""
    make_run_folder(tmp_path / "run" / "aa", tmp_path / "federation.toml", placed=False)
    for _ in range(2):
        bind_run_folder(tmp_path / "run" / "aa", key_of("one"))
    assert mode(tmp_path / "run" / "aa" / "configuration") == 0o600
    with pytest.raises(PolicyError, match=r"holds a run of another federation\.toml") as refused:
        bind_run_folder(tmp_path / "run" / "aa", key_of("two"))
    assert "a run directory of its own" in refused.value.hint
    (tmp_path / "run" / "aa" / "configuration").write_bytes(b"\xff")
    with pytest.raises(StorageError, match="configuration"):
        bind_run_folder(tmp_path / "run" / "aa", key_of("one"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match=f"{tmp_path}/run"):
        make_run_folder(tmp_path / "run" / "aa", tmp_path / "federation.toml", placed=False)
