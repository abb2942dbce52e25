"""What CI does not run has run all the same, with the files as they are: tests/evidence."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from harness import ROOT
from prove import TARGETS, Target, evidence_file, main, problem, prove

MAKEFILE = (ROOT / "Makefile").read_text()


def test_targets_outside_ci_have_run_with_the_files_as_they_are() -> None:
    wrong = {f"make {name}": problem(name, target) for name, target in TARGETS.items()}
    assert {name: why for name, why in wrong.items() if why} == {}, "run it, and commit tests/evidence"


def test_make_test_all_runs_every_target() -> None:
    listed = re.search(r"(?m)^EVIDENCE :=(.*)$", MAKEFILE)
    assert listed
    assert listed[1].split() == list(TARGETS)


def tried(tmp_path: Path, code: str, **more: object) -> Target:
    """A target of two files below `tmp_path` whose command is `code`."""
    (tmp_path / "a.py").write_text("1\n")
    (tmp_path / "b.py").write_text("2\n")
    return dataclasses.replace(Target(("-c", code), ("*.py",), ("pytest",)), **more)  # type: ignore[arg-type]


def test_evidence_is_of_the_files_the_command_and_a_run_that_passed(tmp_path: Path) -> None:
    target = tried(tmp_path, "print('words'); print('{\"loss\": 1.5}')")
    assert problem("try", target, tmp_path) == "it has never run"
    assert prove("try", target, tmp_path)
    assert problem("try", target, tmp_path) == ""
    kept = json.loads(evidence_file("try", tmp_path).read_text())
    assert kept["result"] == {"loss": 1.5}
    assert kept["versions"].keys() == {"python", "pytest"}
    assert kept["files"].keys() == {"a.py", "b.py"}

    (tmp_path / "c.py").write_text("3\n")
    assert problem("try", target, tmp_path) == "it ran with other files: c.py"
    (tmp_path / "c.py").unlink()
    (tmp_path / "b.py").write_text("4\n")
    assert problem("try", target, tmp_path) == "it ran with other files: b.py"
    other = dataclasses.replace(target, command=("-c", "print(2)"))
    assert problem("try", other, tmp_path).startswith("it ran another command: python -c")


def test_a_part_of_a_target_is_evidence_only_where_it_has_parts(tmp_path: Path) -> None:
    whole = tried(tmp_path, "import sys; print(sys.argv[1:])")
    with_parts = dataclasses.replace(whole, part=r"--quick|[a-z]+")
    assert prove("try", with_parts, tmp_path, ["relay"])
    assert json.loads(evidence_file("try", tmp_path).read_text())["result"] == "['relay']"
    assert problem("try", with_parts, tmp_path) == ""
    assert problem("try", whole, tmp_path).startswith("it ran another command: ")
    assert main(["try", "relay"], {"try": whole}) == 64
    assert main(["try", "--small"], {"try": with_parts}) == 64
    assert main(["bench-peers", "--small"]) == 64


def test_a_run_that_failed_is_no_evidence(tmp_path: Path) -> None:
    target = tried(tmp_path, "import sys; sys.exit(3)")
    assert not prove("try", target, tmp_path)
    assert problem("try", target, tmp_path) == "it failed: exit status 3"


def test_a_result_that_is_wrong_is_no_evidence(tmp_path: Path) -> None:
    target = tried(tmp_path, "print('7 passed')", check=lambda result: "" if result == "8 passed" else "too few")
    assert not prove("try", target, tmp_path)
    assert problem("try", target, tmp_path) == "it failed: too few"
