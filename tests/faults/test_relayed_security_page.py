"""docs/security.md says how many cells the fault matrices have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from test_relayed_kill import ALL

ROOT = Path(__file__).parents[2]
LOSSES = (ROOT / "docs" / "security.md").read_text().split("\n## 5. Losses\n")[1].split("\n## ")[0]


def test_cells_of_real_processes() -> None:
    assert f"{len(ALL)} cells" in LOSSES
    said: Counter[str] = Counter()
    for line in LOSSES.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[2].isdigit():
            said[cells[0]] += int(cells[2])
    assert said == Counter(cell.who for cell in ALL)


def test_cells_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "unit" / "secure"))
    import test_protocol_faults as pure

    machines = sum(sum(1 for _ in pure.cells(n)) + 1 + len(pure.relay_moments(n)) for n in pure.SIZES)
    assert f"{machines} cells" in LOSSES
