"""Puts this directory on the path for `harness`, adds --regenerate, and lets no suite go missing unnoticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# With FEDHPC_NO_SKIP=1 (`make test`, CI) every one of these must run tests, and none may be skipped.
SUITES = ("unit", "cli", "mpi", "relay", "slurm", "faults", "fuzz", "wheel")

_ran: dict[str, int] = dict.fromkeys(SUITES, 0)
_skipped: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="rewrite golden files instead of comparing them")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    suite = Path(report.nodeid.split("::")[0]).parts[1:2]
    if report.skipped:
        _skipped.append(report.nodeid)
    elif report.when == "call" and suite and suite[0] in _ran:
        _ran[suite[0]] += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("FEDHPC_NO_SKIP") == "1" and exitstatus == 0 and (_skipped or not all(_ran.values())):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("FEDHPC_NO_SKIP") != "1":
        return
    missing = [suite for suite, count in _ran.items() if not count]
    for name in _skipped:
        terminalreporter.write_line(f"skipped, but must run: {name}", red=True)
    for suite in missing:
        terminalreporter.write_line(f"the suite tests/{suite} ran no test", red=True)
