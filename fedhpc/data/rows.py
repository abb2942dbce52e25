"""The features of one row, quickly: plain numbers go through one array, all other cells through their own reader.

A table may have a million columns. A plain number is defined so narrowly here that nothing can be wrong with
it: every doubtful cell (a code for missing, digits that float32 may lose, text) is read by `cells.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedhpc.data import cells
from fedhpc.data.decimals import LARGEST_EXACT, CellError
from fedhpc.data.recipe import Column, Source

# At most 2^24 in seven digits; no fraction below 1e-30, which is far from where float32 ends.
_WHOLE = r"[+-]?\d{1,7}"
_FRACTION = r"[+-]?\d{1,15}(?:%s\d{1,20})?(?:[eE]-?0?\d)?"
_NO_THOUSANDS = r"(?![+-]?\d{1,3}\.\d{3}\Z)"


class RowReader:
    """Reads the cells of `columns`, which stand at `places` of a row, into the features' values."""

    def __init__(self, columns: Sequence[Column], places: Sequence[int], source: Source) -> None:
        """Raises ConfigError for what only shows when cells are read."""
        self._columns, self._places = columns, places
        kinds: dict[tuple[object, ...], int] = {}
        self._kinds = [kinds.setdefault(_kind(column), len(kinds)) for column in columns]
        firsts = [columns[i] for i in np.unique(self._kinds, return_index=True)[1]]
        self._readers = [cells.column_reader(column, source) for column in firsts]
        self._fills = [cells.fill_values(column, source) for column in firsts]
        widths = np.array([len(column.features()) for column in firsts])
        self._starts = np.concatenate([[0], np.cumsum(widths[self._kinds])])
        self.width = int(self._starts[-1])
        self.filled: list[str] = []
        """Columns of the row read last whose missing cell was filled."""

        decimals = cells.decimals_of(source)
        self._comma = decimals.mark == ","
        guard = _NO_THOUSANDS if decimals.semicolons and not decimals.said else ""
        plain = {
            "number": re.compile(guard + _FRACTION % re.escape(decimals.mark), re.ASCII).fullmatch,
            "integer": re.compile(_WHOLE, re.ASCII).fullmatch,
        }
        self._quick = [i for i, column in enumerate(columns) if column.type in plain]
        self._slow = [i for i, column in enumerate(columns) if column.type not in plain]
        self._quick_places = [places[i] for i in self._quick]
        self._quick_starts = self._starts[self._quick]
        self._matchers = [plain[columns[i].type] for i in self._quick]
        codes = [cells.numeric_codes(column, source) for column in firsts]
        table = np.full((max(map(len, codes)), len(firsts)), np.nan, np.float32)
        for kind, mine in enumerate(codes):
            with np.errstate(over="ignore"):  # a code may be the largest float64
                table[: len(mine), kind] = mine
        self._codes = table[:, [self._kinds[i] for i in self._quick]]  # [codes, quick columns]

    def read(self, row: Sequence[str], values: NDArray[np.float32]) -> str | None:
        """Fill `values` [width] from the stripped cells of `row`; the column's name if the row is to be dropped.

        Raises CellError, which names the column, for a cell that does not fit.
        """
        self.filled = []
        texts = [row[place] for place in self._quick_places]
        doubtful = self._read_plain(texts, values)
        for i in sorted([*self._slow, *doubtful]) if doubtful else self._slow:
            column = self._columns[i]
            try:
                found = self._readers[self._kinds[i]](row[self._places[i]])
            except CellError as error:
                raise CellError(f"column '{column.column}': {error}", error.hint) from None
            if found is None:
                found = self._fills[self._kinds[i]]
                if found is not None:
                    self.filled.append(column.column)
            if found is None:
                if column.missing == "drop":
                    return column.column
                hint = "set missing = 'drop' or 'fill' for this feature in the recipe"
                raise CellError(f"column '{column.column}' is missing", hint)
            values[self._starts[i] : self._starts[i + 1]] = found
        return None

    def _read_plain(self, texts: Sequence[str], values: NDArray[np.float32]) -> list[int]:
        """Fill in what is certain; returns the numbers of the columns where it is not."""
        pairs = zip(self._matchers, texts, strict=True)
        if self._comma:
            found = [float(text.replace(",", ".")) if plain(text) else np.nan for plain, text in pairs]
        else:
            found = [float(text) if plain(text) else np.nan for plain, text in pairs]
        numbers = np.array(found, np.float64)
        held = numbers.astype(np.float32)
        values[self._quick_starts] = held
        doubtful = ~(np.abs(numbers) <= LARGEST_EXACT)
        for codes in self._codes:
            doubtful |= held == codes
        return [self._quick[i] for i in np.flatnonzero(doubtful)]


def _kind(column: Column) -> tuple[object, ...]:
    """Equal for columns whose cells are read alike."""
    coded = (column.true, column.false, column.levels, column.coding, tuple(column.aliases.items()))
    return (column.type, column.rounding, column.missing_markers, column.fill, *coded)
