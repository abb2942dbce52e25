"""Rounds over a relay with real processes, real TLS and kill -9: the generated subset of the fault matrix.

Every cell ends with the exact plain sum over the sites it names, computed without fedhpc, or is stopped cleanly and
started again with the same final hash; and no ledger lets two sets of one round open. What each cell does is in
relayed_cells.py and relayed_trouble.py, how processes stop at a place in freeze.py.

CI plays a sample, in which everything that can befall anybody is there, and `make fault-matrix` all of them.
"""

from __future__ import annotations

import pytest
import relayed_cells
import relayed_trouble
from relayed_cells import Cell
from theatre import CELLS, Theatre

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ALL = [*relayed_cells.cells(), *relayed_trouble.cells()]
EVERY = 3  # cell of those that are alike


def sample() -> list[Cell]:
    """The first of the cells that are alike in who and what, and of the others every third."""
    alike: dict[tuple[str, str], int] = {}
    found = []
    for cell in ALL:
        before = alike.get((cell.who, cell.fate), 0)
        alike[cell.who, cell.fate] = before + 1
        if before % EVERY == 0:
            found.append(cell)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        cells = ALL if metafunc.config.getoption("--whole") else sample()
        metafunc.parametrize("cell", cells, ids=lambda cell: cell.name)


@pytest.fixture(scope="session")
def begun(theatre: Theatre, request: pytest.FixtureRequest) -> Theatre:
    """Begins all cells that were asked for, in order."""
    for item in request.session.items:
        if "cell" in getattr(getattr(item, "callspec", None), "params", {}):
            theatre.begin(item.callspec.params["cell"])  # type: ignore[attr-defined]
    return theatre


def test_cell(cell: Cell, begun: Theatre) -> None:
    assert begun.begin(cell).result()


def test_the_matrix_is_whole(request: pytest.FixtureRequest) -> None:
    """As many cells were played as were asked for; a cell that silently falls out is noticed."""
    assert len({cell.name for cell in ALL}) == len(ALL) == 132
    assert {(c.who, c.fate) for c in sample()} == {(c.who, c.fate) for c in ALL}
    asked = [i for i in request.session.items if "cell" in getattr(getattr(i, "callspec", None), "params", {})]
    assert sum(CELLS.values()) == len(asked)
