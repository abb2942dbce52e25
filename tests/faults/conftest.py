"""The fault matrix of `pytest -m faults`: cells of real processes, a few at once, printed with the others."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from theatre import CELLS, Theatre


@pytest.fixture(scope="session")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    made = Theatre(tmp_path_factory.mktemp("relayed"))
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Both matrices, where their tests ran: the I/O-free machines in one process, and real processes."""
    pure = getattr(sys.modules.get("test_protocol_faults"), "CELLS", Counter())
    if not CELLS:
        return
    write = terminalreporter.write_line
    write("fault matrix: who | what became of it | where, and how often it ended how")
    rows: dict[str, Counter[str]] = {}
    for (who, size, fate, lost, step, _, outcome), count in pure.items():
        rows.setdefault(f"machines | {who} {size} {lost} | {fate} | {step}", Counter())[outcome] += count
    for (who, fate, point, outcome), count in CELLS.items():
        rows.setdefault(f"processes | {who} | {fate} | {point.split()[0]}", Counter())[outcome] += count
    for name, outcomes in sorted(rows.items()):
        write(f"{name:64} {', '.join(f'{n} {o}' for o, n in sorted(outcomes.items()))}")
    total = sum(pure.values()) + sum(CELLS.values())
    write(f"{sum(pure.values())} cells in one process + {sum(CELLS.values())} of real processes = {total}")
