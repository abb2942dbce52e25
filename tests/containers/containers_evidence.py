"""`make test-containers`: the tests of this directory; the last line is what they found, as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from places import PATH, run

# What was used, and prints its version.
TOOLS = (
    *("debootstrap --version", "ch-run --version", "podman --version", "crun --version", "srun --version"),
    "dpkg-query -W -f ${Version} libpmix2",
)


class Tally:
    """What the tests say that they found, how many passed, and which did not run."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.passed: dict[str, int] = {}
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)
        elif report.when == "call":
            file = Path(report.nodeid.partition("::")[0]).stem
            self.passed[file] = self.passed.get(file, 0) + report.passed
            self.facts |= dict(report.user_properties)


def main() -> int:
    os.environ["PATH"] = PATH
    tally = Tally()
    status = pytest.main(["-q", "--timeout", "3600", str(Path(__file__).parent)], plugins=[tally])
    tools = {line.split()[-1] if " libpmix2" in line else line.split()[0]: _first_line(line) for line in TOOLS}
    found = {"passed": tally.passed, "skipped": tally.skipped, "tools": tools, **tally.facts}
    print(json.dumps(found), flush=True)
    return int(status)


def _first_line(command: str) -> str:
    return run([*command.split()], env={"USER": "root", "PATH": PATH}).strip().splitlines()[0]


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "slurm")]
    sys.exit(main())
