"""`make test-containers`: the tests of this directory; the last line is what they found, as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# What was used, and what prints its version.
TOOLS = {
    **{name: f"{name} --version" for name in ("debootstrap", "ch-run", "podman", "crun")},
    **{name: f"dpkg-query --show --showformat=${{Version}} {name}" for name in ("slurm-client", "libpmix2")},
}


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
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    tally = Tally()
    status = pytest.main(["-q", "--timeout", "3600", str(Path(__file__).parent)], plugins=[tally])
    tools = {name: _first_line(command) for name, command in TOOLS.items()}
    found = {"passed": tally.passed, "skipped": tally.skipped, "tools": tools, **tally.facts}
    print(json.dumps(found), flush=True)
    return int(status)


def _first_line(command: str) -> str:
    words = command.split()
    done = subprocess.run(words, env={**os.environ, "USER": "root"}, capture_output=True, text=True, check=False)
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "nothing")


if __name__ == "__main__":
    sys.exit(main())
