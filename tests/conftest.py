"""Puts this directory on the path for `harness`, deals the tests out, and lets no suite go missing unnoticed."""

from __future__ import annotations

import importlib.util
import itertools
import os
import tempfile
from pathlib import Path

import pytest
import surroundings

surroundings.settle()

# With FEDHPC_NO_SKIP=1 (`make test`, CI) every one of these that was asked for must run tests, and none may be skipped.
# In this order: those that take long and mostly wait begin first, where tests run side by side.
SUITES = ("wheel", "slurm", "relay", "mpi", "faults", "fuzz", "cli", "unit")

# What is built and run for its evidence only (tests/prove.py): collected where it is named, and nowhere else.
BY_NAME = ("containers",)

_ran: dict[str, int] = dict.fromkeys(SUITES, 0)
_skipped: list[str] = []


# Where nothing else is said, a site's ledger lies in the user's data directory: never in that of who runs the tests.
_data = tempfile.TemporaryDirectory(prefix="fd", dir="/tmp", ignore_cleanup_errors=True)
_numbers = itertools.count()
os.environ["XDG_DATA_HOME"] = _data.name


@pytest.fixture(autouse=True)
def _data_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", f"{_data.name}/{next(_numbers)}")  # made by who needs it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="rewrite golden files instead of comparing them")
    parser.addoption("--whole", action="store_true", help="play all cells of tests/faults/test_relayed_kill.py")


def pytest_configure(config: pytest.Config) -> None:
    here = Path(__file__).parent
    named = _named(config)
    for suite in SUITES:
        inside = any((here / suite).is_relative_to(path) or path.is_relative_to(here / suite) for path in named)
        if named and not inside:
            _ran.pop(suite)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    suites = [Path(__file__).parent / name for name in BY_NAME]
    asked = any(path.is_relative_to(suite) for path in _named(config) for suite in suites)
    return True if collection_path in suites and not asked else None


def _named(config: pytest.Config) -> list[Path]:
    """Paths of the command line."""
    return [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Not skipped: what a machine does not have was not asked for, and `make test` refuses tests that are skipped.
    here = {"gpu": Path("/dev/nvidiactl").exists(), "horovod": importlib.util.find_spec("horovod") is not None}
    there = [item for item in items if all(here.get(mark.name, True) for mark in item.iter_markers())]
    if len(there) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in there])
        items[:] = there
    items.sort(key=lambda item: SUITES.index(_suite(item.nodeid)) if _suite(item.nodeid) in SUITES else -1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """For `-n`: a file is one process's, since fixtures are made once for it; the clusters of tests/slurm likewise."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if _suite(nodeid) == "slurm" else nodeid.split("::")[0]

    return Scheduling(config, log)


def _suite(nodeid: str) -> str:
    return (Path(nodeid.split("::")[0]).parts[1:2] or ("",))[0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    suite = _suite(report.nodeid)
    if report.skipped:
        _skipped.append(report.nodeid)
    elif report.when == "call" and suite in _ran:
        _ran[suite] += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workerinput"):
        return  # the process that hands out the tests hears of all of them
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
