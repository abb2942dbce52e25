"""Rounds over a relay with real processes, real TLS and kill -9: the generated subset of the fault matrix.

Every cell ends with the exact plain sum over the sites it names, computed without fedhpc, or is stopped cleanly and
started again with the same final hash; and no ledger lets two sets of one round open. What each cell does is in
relayed_cells.py and relayed_trouble.py, how processes stop at a place in freeze.py.
"""

from __future__ import annotations

import pytest
import relayed_cells
import relayed_trouble
from relayed_cells import Cell
from theatre import CELLS, Theatre

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ALL = [*relayed_cells.cells(), *relayed_trouble.cells()]


@pytest.fixture(scope="session")
def begun(theatre: Theatre, request: pytest.FixtureRequest) -> Theatre:
    """Begins all cells that were asked for, in order."""
    for item in request.session.items:
        if "cell" in getattr(getattr(item, "callspec", None), "params", {}):
            theatre.begin(item.callspec.params["cell"])  # type: ignore[attr-defined]
    return theatre


@pytest.mark.parametrize("cell", ALL, ids=lambda cell: cell.name)
def test_cell(cell: Cell, begun: Theatre) -> None:
    assert begun.begin(cell).result()


def test_the_matrix_is_whole(request: pytest.FixtureRequest) -> None:
    """As many cells were played as were generated; a cell that silently falls out is noticed."""
    assert len({cell.name for cell in ALL}) == len(ALL) == 127
    asked = [i for i in request.session.items if "cell" in getattr(getattr(i, "callspec", None), "params", {})]
    assert sum(CELLS.values()) == len(asked)
