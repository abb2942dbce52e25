"""`make test-horovod`: tests/mpi/test_horovod.py with the real Horovod; the last line is what they found, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest


class Found:
    """What the tests say that they found, and how many passed."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.passed += report.passed
            self.facts |= dict(report.user_properties)


def main() -> int:
    found = Found()
    status = pytest.main(["-q", str(Path(__file__).with_name("test_horovod.py"))], plugins=[found])
    print(json.dumps({"passed": found.passed, **found.facts}), flush=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
