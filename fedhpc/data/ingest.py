"""From a CSV file and a recipe to a site store. Reads line by line; every refusal names the line and the column.

Memory: 300 bytes for each row, and 256 MiB of their values; beyond that they wait in a file beside the store. Rows keep
the order of the file.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhpc.data import cells, rowkey
from fedhpc.data.csv_file import CsvFile
from fedhpc.data.decimals import CellError
from fedhpc.data.kept_rows import KeptRows
from fedhpc.data.recipe import ROW_NUMBER, Recipe
from fedhpc.data.rows import RowReader
from fedhpc.data.schema import FeatureSet
from fedhpc.data.spelling import visible
from fedhpc.data.store import write_store
from fedhpc.data.written_over import refuse_written_over
from fedhpc.errors import DataError, StorageError

_MOST_NAMES = 5000  # to look for the nearest among
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")  # no column has such a name: the line is the first person's row


@dataclass(frozen=True)
class Ingested:
    """What an ingest did, for the site only."""

    path: Path
    rows_read: int  # in the CSV
    rows_elsewhere: int  # left out by `where`
    dropped: dict[str, int]  # rows left out because this column was missing, by column (the first one counts)
    rows_kept: int
    filled: dict[str, int]  # cells that were missing and got the recipe's `fill`, in rows that were kept, by column
    warnings: tuple[str, ...]  # what the recipe leaves open


def ingest_csv(
    csv_path: Path,
    recipe: Recipe,
    out: Path,
    *,
    site: str,
    key: bytes,
    where: Mapping[str, str] | None = None,
) -> Ingested:
    """Write the store `out` for `site` from the UTF-8 file `csv_path`; `key` [32 bytes] hides the row identifiers.

    `where` adds to, or replaces, the entries of the recipe's own. Raises DataError with line and column for a cell
    that does not fit the recipe, ConfigError for the recipe itself or an `out` that is read, StorageError for I/O.
    """
    refuse_written_over(out, csv_path)
    if len(key) != rowkey.KEY_BYTES:
        raise ValueError(f"the row-id key has {len(key)} bytes, not {rowkey.KEY_BYTES}")
    try:
        file = csv_path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{csv_path} does not exist", "check the path") from None
    except OSError as error:
        raise StorageError(f"cannot read {csv_path}: {error.strerror}", "check the path and permissions") from None
    with file:
        csv = CsvFile(csv_path, file, recipe.source)
        return _Reader(csv, recipe, {**recipe.source.where, **(where or {})}, key).read(out, site)


class _Reader:
    """One pass over one CSV file."""

    def __init__(self, csv: CsvFile, recipe: Recipe, where: Mapping[str, str], key: bytes) -> None:
        self.csv = csv
        self.recipe = recipe
        self.where = {column: visible(value) for column, value in where.items()}
        self.key = key
        self.rows_read = 0
        self.rows_elsewhere = 0
        self.dropped: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()
        self.labels: list[float] = []
        self.row_ids: list[bytes] = []
        self.lines_of_ids: dict[bytes, int] = {}

    def read(self, out: Path, site: str) -> Ingested:
        """Read all rows, and write those that are kept to the store `out`."""
        header = self.csv.header()
        columns = self.recipe.for_header(header, self.where)
        feature_set = self.recipe.feature_set(columns)
        place = self._places(header, [column.column for column in columns])
        reader = RowReader(columns, [place[column.column] for column in columns], self.recipe.source)
        kept = KeptRows(reader.width, out.parent)
        try:
            self._rows(place, reader, kept)
            self._write(out, site, feature_set, kept)
        finally:
            kept.close()
        counts = (self.rows_read, self.rows_elsewhere, dict(self.dropped), len(self.labels))
        return Ingested(out, *counts, dict(self.filled), self._warnings())

    def _rows(self, place: Mapping[str, int], reader: RowReader, kept: KeptRows) -> None:
        moves: dict[str, dict[str, str]] = {}
        for move in self.recipe.moves:
            moves.setdefault(visible(move.id), {})[move.column] = move.value
        unmoved = dict(moves)
        label = cells.label_reader(self.recipe.label, self.recipe.source)
        label_name = self.recipe.label.column
        label_place = place[label_name]
        for row in self.csv.rows():
            self.rows_read += 1
            identifier = self._identifier(row, place)
            for column, value in moves.get(identifier, {}).items():
                row[place[column]] = value
                unmoved.pop(identifier, None)
            if any(visible(row[place[column]]) != value for column, value in self.where.items()):
                self.rows_elsewhere += 1
                continue
            try:
                dropped = reader.read(row, kept.next_row())
                if dropped is None:
                    dropped = self._label(label, row[label_place])
            except CellError as error:
                raise self.csv.wrong(str(error), error.hint) from None
            if dropped is not None:
                self.dropped[dropped] += 1
                continue
            kept.keep()
            self.filled.update(reader.filled)
            self.row_ids.append(self._row_id(identifier))
        for number, move in enumerate(self.recipe.moves):
            if visible(move.id) in unmoved:
                what = f"{self.csv.path}: move[{number}] (column '{move.column}') finds no row with its id"
                raise DataError(what, "the file or the recipe has changed")

    def _write(self, out: Path, site: str, feature_set: FeatureSet, kept: KeptRows) -> None:
        if not self.labels:
            raise DataError(
                f"{self.csv.path}: no row is left of {self.rows_read}",
                f"{self.rows_elsewhere} left out by where, {sum(self.dropped.values())} for missing values",
            )
        source = self.recipe.source
        write_store(
            out,
            site=site,
            feature_set=feature_set,
            features=kept.blocks(),
            labels=np.array(self.labels, np.float64).astype(feature_set.label.dtype),
            row_ids=np.frombuffer(b"".join(self.row_ids), np.uint8).reshape(-1, 32),
            source_sha256=self.csv.sha256.hexdigest(),
            licence=source.licence,
            citation=source.citation,
            row_ids_from=ROW_NUMBER if source.numbers_rows else "",
        )

    def _label(self, read: cells.LabelReader, text: str) -> str | None:
        """Keep the label in the cell `text`; returns the column's name if the row is dropped. Raises CellError."""
        column = self.recipe.label
        try:
            value = read(text)
        except CellError as error:
            raise CellError(f"label column '{column.column}': {error}", error.hint) from None
        if value is not None:
            self.labels.append(value)
            return None
        if column.missing == "drop":
            return column.column
        raise CellError(
            f"label column '{column.column}' is missing", "set missing = 'drop' for the label in the recipe"
        )

    def _identifier(self, row: Sequence[str], place: Mapping[str, int]) -> str:
        """The row's identifier, as the recipe's moves use it; unique in the file. Raises DataError."""
        column = self.recipe.source.id
        if self.recipe.source.numbers_rows:
            return str(self.rows_read)
        identifier = visible(row[place[column]])
        if not identifier:
            raise self.csv.wrong(f"column '{column}' is empty", "every row needs an identifier")
        first = self.lines_of_ids.setdefault(self._row_id(identifier), self.csv.line)
        if first != self.csv.line:
            hint = (
                "identifiers must be unique: one row for one person (invisible characters do not count); where two "
                "columns together name a person, as FID and IID of PLINK do, write both into one column of the file"
            )
            raise self.csv.wrong(f"column '{column}' repeats the identifier of line {first}", hint)
        return identifier

    def _row_id(self, identifier: str) -> bytes:
        numbered = f"{ROW_NUMBER} {identifier}" if self.recipe.source.numbers_rows else identifier
        return rowkey.row_id(self.key, numbered)

    def _places(self, header: Sequence[str], features: Sequence[str]) -> dict[str, int]:
        """The place in a row of each column that is needed. Raises DataError."""
        path = self.csv.path
        if self.recipe.source.numbers_rows and ROW_NUMBER in header:
            raise DataError(f"{path} has a column '{ROW_NUMBER}', which in id = … asks to number rows", "rename it")
        first: dict[str, int] = {}
        counts = Counter(header)
        for index, name in enumerate(header):
            first.setdefault(name, index)
        place = {}
        for name in dict.fromkeys([*self.recipe.columns(), *self.where, *features]):
            spelled = visible(name)
            if spelled not in first:
                raise DataError(f"{path} has no column '{name}'", self._nearest(spelled, header))
            if counts[spelled] > 1:
                raise DataError(f"{path}: column '{name}' is there {counts[spelled]} times", "rename one of them")
            place[name] = first[spelled]
        return place

    def _nearest(self, name: str, header: Sequence[str]) -> str:
        near = difflib.get_close_matches(name, header[:_MOST_NAMES], n=1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        other = next((mark for mark in ";|, " if len(header) == 1 and mark in header[0]), "")
        if other:
            named = "a blank or tab" if other == " " else repr(other)
            guess = f"does {named} separate its columns? Then set delimiter in [source]. "
        if name == self.recipe.source.id:
            guess += f"Without identifiers: id = '{ROW_NUMBER}'. "
        if not self._is_header(header):
            return f'{guess}if its first line is a row, not a header, name the columns: header = ["…"] in [source]'
        shown = ", ".join(header[:20]) + (" …" if len(header) > 20 else "")
        return f"{guess}it has: {shown}"

    def _is_header(self, header: Sequence[str]) -> bool:
        """Whether the first line is certainly not a person's row, so that it may be shown."""
        words = {word for name in header[:_MOST_NAMES] for word in (name, *re.split(r"[;,\t| ]", name))}
        if any(_NUMBER.fullmatch(word) for word in words):
            return False
        return any(visible(name) in words for name in (*self.recipe.columns(), *self.where))

    def _warnings(self) -> tuple[str, ...]:
        label = self.recipe.label
        told = []
        if label.above is not None and not label.range:
            told.append(
                f"label '{label.column}' has no range: a code such as 9 or 99 would count as above {label.above:g}; "
                "give range = [smallest, largest]"
            )
        if self.recipe.source.numbers_rows:
            told.append("rows are numbered: a person who is in it twice goes unnoticed")
        return tuple(told)
