"""How checks are run and shown: states, exit codes, JSON, time limits; docs/doctor.md has a row for each."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import click.testing
import pytest
from doctor_fakes import slurm, subject
from harness import ROOT

from fedhpc.cli.doctor import doctor
from fedhpc.doctor import check as check_module
from fedhpc.doctor.check import Check, Finding, Result, examine, exit_code, fail, ok, skipped, warn
from fedhpc.doctor.checks import CHECKS
from fedhpc.doctor.subject import Subject, open_subject
from fedhpc.doctor.table import as_json, as_text
from fedhpc.errors import ConfigError, FedhpcError, PolicyError

NOWHERE = {"PATH": "/nowhere"}
TESTS = [*Path(__file__).parent.glob("test_doctor*.py"), ROOT / "tests" / "relay" / "test_doctor_route.py"]


def made(name: str, finding: Finding | FedhpcError | Exception, *, quick: bool = True) -> Check:
    """A check that finds, or raises, what it is told."""

    def run(subject: Subject) -> Finding:
        if isinstance(finding, Exception):
            raise finding
        return finding

    return Check(name, "Group", f"{name} matters", run, quick)


def results(*found: Finding) -> list[Result]:
    return [Result(made(f"check-{n}", finding), finding) for n, finding in enumerate(found)]


# --- running


def test_errors_become_findings_and_a_broken_check_is_not_ok() -> None:
    nobody = open_subject(None, NOWHERE)
    checks = [
        made("a", PolicyError("refused", "do this")),
        made("b", PermissionError(13, "Permission denied", "/x")),
        made("c", KeyError("k\x1b[2J")),
        made("d", ok("fine")),
    ]
    states = [(r.finding.state, r.finding.exit_code) for r in examine(nobody, checks)]
    assert states == [("fail", 77), ("fail", 74), ("skipped", 0), ("ok", 0)]
    broken = examine(nobody, checks)[2].finding.what
    assert "please report it" in broken
    assert "\x1b" not in broken


def test_a_check_that_never_answers_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(check_module, "_QUICK_S", 0.05)
    hangs = Check("hangs", "Group", "why", lambda subject: ok(str(ended.wait())))
    try:
        (result, after) = examine(open_subject(None, NOWHERE, quick=True), [hangs, made("b", ok("fine"))])
    finally:
        ended.set()
    assert (result.finding.state, "no answer" in result.finding.what) == ("warn", True)
    assert after.finding.state == "ok"


def test_quick_leaves_out_what_takes_long() -> None:
    slow = made("slow", fail("would fail", "fix"), quick=False)
    (quick,) = examine(open_subject(None, NOWHERE, quick=True), [slow])
    (full,) = examine(open_subject(None, NOWHERE), [slow])
    assert (quick.finding.state, full.finding.state) == ("skipped", "fail")


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([64], 64), ([69, 64], 64), ([64, 65, 69], 65), ([64, 74], 74), ([74, 77, 69], 77), ([69], 69)],
)
def test_the_exit_code_is_that_of_the_worst_failure(codes: list[int], code: int) -> None:
    found = [fail("w", "f", c) for c in codes]
    assert exit_code(results(ok("a"), warn("b", "c"), skipped("d"), *found)) == code


def test_quick_checks_import_no_torch_and_ask_the_relay_without_patience(tmp_path: Path) -> None:
    """What every job does before its ranks start must not import torch on every node."""
    quick = {check.name for check in CHECKS if check.quick}
    assert quick.isdisjoint({"torch-build", "mpi-world", "slurm-accepts"})
    assert quick >= {"keys-private", "run-locks", "mpi-pmi", "relay-certificate", "gpus"}


# --- showing


FOUND = results(ok("good"), warn("doubtful", "mend a"), fail("bad", "mend b", 74), skipped("no reason"))


def test_text_has_groups_then_troubles_with_the_worst_last() -> None:
    lines = as_text(open_subject(None, NOWHERE), FOUND, 60).splitlines()
    assert lines[:5] == [
        "Group",
        "  check-0           ok          good",
        "  check-1           warning     doubtful",
        "  check-2           FAILED      bad",
        "  check-3           not checked no reason",
    ]
    assert lines[5:] == [
        *("", "warning: check-1: doubtful", "  why: check-1 matters", "  fix: mend a"),
        *("", "FAILED: check-2: bad", "  why: check-2 matters", "  fix: mend b"),
        *("", "1 ok, 1 warning, 1 failed, 1 not checked, on a machine without Slurm"),
    ]


def test_a_jobs_log_gets_only_the_troubles() -> None:
    lines = as_text(open_subject(None, NOWHERE, quick=True), FOUND, 60).splitlines()
    assert lines[0] == "warning: check-1: doubtful"
    assert not any("no reason" in line for line in lines)


def test_long_words_are_wrapped_and_kept() -> None:
    text = as_text(open_subject(None, NOWHERE), results(fail("word " * 50, "/a" * 100)), 60)
    assert text.count("word") == 100
    assert "/a" * 100 in text


def test_json_has_every_check_with_all_its_fields(tmp_path: Path) -> None:
    site = subject(tmp_path, slurm())
    found = json.loads(as_json(site, examine(site, CHECKS)))
    assert found.keys() == {"version", "place", "site", "quick", "exit_code", "counts", "checks"}
    assert (found["version"], found["place"], found["site"], found["quick"]) == (1, "login", "aa", False)
    assert found["counts"].keys() == {"ok", "warn", "fail", "skipped"}
    assert sum(found["counts"].values()) == len(CHECKS)
    assert [c["name"] for c in found["checks"]] == [c.name for c in CHECKS]
    for row in found["checks"]:
        assert row.keys() == {"name", "group", "state", "what", "why", "fix", "exit_code"}
        assert row["what"]
        assert row["why"]
        assert bool(row["fix"]) == (row["state"] in ("warn", "fail"))
        assert bool(row["exit_code"]) == (row["state"] == "fail")


def test_the_command_ends_with_the_code_and_one_task_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject(tmp_path)  # writes the files
    runner = click.testing.CliRunner()
    words = [str(tmp_path / "sites" / "aa.toml"), "--federation", str(tmp_path / "federation.toml"), "--quick"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_PROCID", "1")
    key = tmp_path / "keys" / "aa.key"
    (tmp_path / "data" / "aa.h5").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done = runner.invoke(doctor, words)
    assert (done.exit_code, done.output) == (0, "")
    key.chmod(0o644)
    done = runner.invoke(doctor, words)
    assert done.exit_code == 77
    assert "FAILED: keys-private" in done.output


# --- wrong input


def test_unknown_profiles_and_broken_files_are_refused(tmp_path: Path) -> None:
    subject(tmp_path)
    site = tmp_path / "sites" / "aa.toml"
    with pytest.raises(ConfigError, match="unknown profile 'nowhere'"):
        open_subject(site, {}, profile="nowhere")
    with pytest.raises(ConfigError, match="cannot read"):
        open_subject(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="SITE"):
        open_subject(None, {}, federation=tmp_path / "federation.toml")
    site.write_text(site.read_text() + "\n[slurm]\npartitions = 1\n")
    with pytest.raises(ConfigError, match="unknown key 'partitions'"):
        open_subject(site, {})
    site.write_text("[site\n")
    with pytest.raises(ConfigError, match=r"aa\.toml"):
        open_subject(site, {})


# --- the document and the tests


def test_the_page_has_a_row_for_each_check() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    rows = re.findall(r"(?m)^\| `([\w-]+)` \| (.+?) \| (.+?) \| (.+?) \|$", text)
    assert [name for name, *_ in rows] == [check.name for check in CHECKS]
    assert {name: why for name, _, why, _ in rows} == {check.name: check.why for check in CHECKS}
    groups = re.findall(r"(?m)^## (.+)$", text)
    wanted = list(dict.fromkeys(check.group for check in CHECKS))
    assert [group for group in groups if group in wanted] == wanted


def test_the_page_names_what_quick_leaves_out() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    (line,) = re.findall(r"(?m)^`--quick` leaves out ([^.]+)\.", text)
    assert re.findall(r"`([\w-]+)`", line) == [check.name for check in CHECKS if not check.quick]


def test_names_are_unique_and_every_check_was_made_to_fail_and_to_pass() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    text = "".join(path.read_text() for path in TESTS)
    for verbs in ("fails|warns", "passes"):
        tried = set(re.findall(rf'\b(?:{verbs})\(\s*"([\w-]+)"', text))
        assert [name for name in names if name not in tried] == [], verbs
