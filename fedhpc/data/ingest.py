"""From a CSV file and a recipe to a site store. Reads line by line; every refusal names the line and the column.

Memory: 4 bytes for each value kept and about 300 for each row. Rows keep the order of the file.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedhpc.data import cells, rowkey
from fedhpc.data.recipe import Column, Recipe
from fedhpc.data.store import write_store
from fedhpc.errors import DataError, StorageError

LONGEST_RECORD_BYTES = 16 << 20  # one row of the CSV, with all its lines
LONGEST_FIELD = 1 << 16  # characters of one cell
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Ingested:
    """What an ingest did, for the site's own eyes."""

    path: Path
    rows_read: int  # in the CSV
    rows_elsewhere: int  # left out by `where`
    dropped: dict[str, int]  # rows left out because this column was missing, by column (the first one counts)
    rows_kept: int


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
    that does not fit the recipe, ConfigError for the recipe itself, StorageError for I/O.
    """
    if len(key) != rowkey.KEY_BYTES:
        raise ValueError(f"the row-id key has {len(key)} bytes, not {rowkey.KEY_BYTES}")
    feature_set = recipe.feature_set()
    try:
        with csv_path.open("rb") as file:
            reader = _Reader(csv_path, file, recipe, {**recipe.source.where, **(where or {})}, key)
            blocks = reader.read()
    except FileNotFoundError:
        raise DataError(f"{csv_path} does not exist", "check the path") from None
    except OSError as error:
        raise StorageError(f"cannot read {csv_path}: {error.strerror}", "check the path and permissions") from None
    if not reader.labels:
        raise DataError(
            f"{csv_path}: no row is left of {reader.rows_read}",
            f"{reader.rows_elsewhere} left out by where, {sum(reader.dropped.values())} for missing values",
        )
    write_store(
        out,
        site=site,
        feature_set=feature_set,
        features=iter(blocks),
        labels=np.array(reader.labels, np.float64).astype(feature_set.label.dtype),
        row_ids=np.frombuffer(b"".join(reader.row_ids), np.uint8).reshape(-1, 32),
        source_sha256=reader.sha256.hexdigest(),
        licence=recipe.source.licence,
        citation=recipe.source.citation,
    )
    return Ingested(out, reader.rows_read, reader.rows_elsewhere, dict(reader.dropped), len(reader.labels))


class _Reader:
    """One pass over one CSV file."""

    def __init__(self, path: Path, file: BinaryIO, recipe: Recipe, where: Mapping[str, str], key: bytes) -> None:
        self.path = path
        self.file = file
        self.recipe = recipe
        self.where = where
        self.key = key
        self.markers = frozenset(recipe.source.missing_markers)
        self.sha256 = hashlib.sha256()
        self.line = 0  # of the file, counted from 1, as editors do
        self.record_bytes = 0
        self.rows_read = 0
        self.rows_elsewhere = 0
        self.dropped: Counter[str] = Counter()
        self.labels: list[float] = []
        self.row_ids: list[bytes] = []
        self.lines_of_ids: dict[bytes, int] = {}

    def read(self) -> list[NDArray[np.float32]]:
        """The features of the rows kept, in blocks; labels and row ids are in this object."""
        records = csv.reader(self._lines(), delimiter=self.recipe.source.delimiter, strict=True)
        header = [name.strip() for name in self._next(records) or []]
        place = self._places(header)
        moves = {(move.id, move.column): move.value for move in self.recipe.moves}
        moved: set[tuple[str, str]] = set()
        columns = [(c, place[c.column], cells.column_reader(c), cells.fill_values(c)) for c in self.recipe.features]
        label = cells.label_reader(self.recipe.label)
        blocks: list[NDArray[np.float32]] = []
        block: list[list[float]] = []
        while (record := self._next(records)) is not None:
            if not record:
                continue  # an empty line
            if len(record) != len(header):
                raise self._wrong(f"{len(record)} fields, but the header has {len(header)}", "is a quote missing?")
            if any(len(text) > LONGEST_FIELD for text in record):
                raise self._wrong(f"a field is longer than {LONGEST_FIELD} characters", "is a quote missing?")
            self.rows_read += 1
            row = [text.strip() for text in record]
            identifier = self._identifier(row[place[self.recipe.source.id]])
            for column, index in place.items() if moves else ():
                if (identifier, column) in moves:
                    row[index] = moves[identifier, column]
                    moved.add((identifier, column))
            if any(row[place[column]] != value for column, value in self.where.items()):
                self.rows_elsewhere += 1
                continue
            values = self._values(row, columns, place[self.recipe.label.column], label)
            if values is None:
                continue
            block.append(values[:-1])
            self.labels.append(values[-1])
            self.row_ids.append(rowkey.row_id(self.key, identifier))
            if len(block) == _BLOCK_ROWS:
                blocks.append(np.array(block, np.float32))
                block = []
        if block:
            blocks.append(np.array(block, np.float32))
        if unused := [f"id {i}, column {c}" for i, c in moves if (i, c) not in moved]:
            raise DataError(f"{self.path}: [[move]] finds no row: {unused[0]}", "the file or the recipe has changed")
        return blocks

    def _values(
        self,
        row: Sequence[str],
        columns: Sequence[tuple[Column, int, cells.Reader, tuple[float, ...] | None]],
        label_index: int,
        label: Callable[[str], float],
    ) -> list[float] | None:
        """The features of a row and its label as last entry; None if the row is dropped."""
        values: list[float] = []
        for column, index, read, fill in columns:
            if row[index] not in self.markers:
                try:
                    values += read(row[index])
                except ValueError as error:
                    raise self._wrong(f"column '{column.column}': {error}", "see the recipe") from None
            elif fill is not None:
                values += fill
            elif column.missing == "drop":
                self.dropped[column.column] += 1
                return None
            else:
                hint = "set missing = 'drop' or 'fill' for this feature in the recipe"
                raise self._wrong(f"column '{column.column}' is missing", hint)
        name = self.recipe.label.column
        if row[label_index] in self.markers:
            if self.recipe.label.missing == "drop":
                self.dropped[name] += 1
                return None
            raise self._wrong(f"label column '{name}' is missing", "set missing = 'drop' for the label in the recipe")
        try:
            values.append(label(row[label_index]))
        except ValueError as error:
            raise self._wrong(f"label column '{name}': {error}", "see the recipe") from None
        return values

    def _identifier(self, identifier: str) -> str:
        column = self.recipe.source.id
        if not identifier:
            raise self._wrong(f"column '{column}' is empty", "every row needs an identifier")
        digest = rowkey.row_id(self.key, identifier)
        first = self.lines_of_ids.setdefault(digest, self.line)
        if first != self.line:
            hint = "identifiers must be unique: one row for one person"
            raise self._wrong(f"column '{column}' repeats the identifier of line {first}", hint)
        return identifier

    def _places(self, header: list[str]) -> dict[str, int]:
        if not any(header):
            raise DataError(f"{self.path} has no header", "the first line must name the columns")
        for name, count in Counter(header).items():
            if count > 1:
                raise DataError(f"{self.path}: column '{name}' is there {count} times", "rename one of them")
        wanted = dict.fromkeys([*self.recipe.columns(), *self.where])
        for name in wanted:
            if name not in header:
                near = difflib.get_close_matches(name, header, n=1)
                guess = f"did you mean '{near[0]}'? " if near else ""
                shown = ", ".join(header[:20]) + (" …" if len(header) > 20 else "")
                raise DataError(f"{self.path} has no column '{name}'", f"{guess}it has: {shown}")
        return {name: header.index(name) for name in wanted}

    def _next(self, records: Iterator[list[str]]) -> list[str] | None:
        self.record_bytes = 0
        try:
            return next(records, None)
        except csv.Error as error:
            raise self._wrong(f"it is not CSV: {error}", "check quotes, delimiter and line ends") from None

    def _lines(self) -> Iterator[str]:
        while data := self.file.readline(LONGEST_RECORD_BYTES + 1):
            self.line += 1
            self.record_bytes += len(data)
            if self.record_bytes > LONGEST_RECORD_BYTES:
                limit = f"{LONGEST_RECORD_BYTES >> 20} MiB"
                raise self._wrong(f"a row is longer than {limit}", "is a quote missing, or is this no CSV?")
            self.sha256.update(data)
            try:
                text = data.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError:
                raise self._wrong("it is not UTF-8", "convert it: iconv -f latin1 -t utf-8 IN > OUT") from None
            yield text

    def _wrong(self, what: str, hint: str) -> DataError:
        return DataError(f"{self.path}, line {self.line}: {what}", hint)
