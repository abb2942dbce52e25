"""docs/security.md says what the tests do: the same attacks, the same counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from attack_table import document_rows
from test_relayed_kill import ALL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def section(title: str) -> list[str]:
    """The lines of a section of the page."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines()


def test_attacks() -> None:
    assert [line for line in section("Attacks") if line.startswith("| ")][1:] == document_rows()


def test_counts_of_the_fault_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "unit"))
    import test_protocol_faults as pure

    machines = sum(sum(1 for _ in pure.cells(n)) + 1 + len(pure.relay_moments(n)) for n in pure.SIZES)
    text = "\n".join(section("Faults"))
    assert f"{machines} cells" in text
    assert f"{len(ALL)} cells" in text
