"""The records of a CSV file, in order, and where each of them stands."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from fedhpc.data.encodings import foreign_line, foreign_start
from fedhpc.data.recipe import WHITESPACE, Source
from fedhpc.data.spelling import visible
from fedhpc.errors import DataError, StorageError

LONGEST_RECORD_BYTES = 64 << 20  # one row of the CSV, with all its lines: a million numbers and more
LONGEST_FIELD = 1 << 16  # characters of one cell
_HEAD_BYTES = 4096
# Excel reads the delimiter from it. Where it was saved again, the delimiters of the other columns follow.
_SEP_LINE = re.compile(r'"?sep=(.)"?(?:\1|\s)*', re.IGNORECASE)


class CsvFile:
    """One pass over one CSV file."""

    def __init__(self, path: Path, file: io.BufferedReader, source: Source) -> None:
        self.path = path
        self.sha256 = hashlib.sha256()  # of all that was read
        self.line = 0  # of the file, counted from 1, as editors do
        self._file = file
        self._source = source
        self._record_bytes = 0
        self._utf8_seen = False
        self._padded = source.delimiter == WHITESPACE
        delimiter = " " if self._padded else source.delimiter
        self._records = csv.reader(self._lines(), delimiter=delimiter, strict=True, skipinitialspace=self._padded)
        self._width = 0

    def header(self) -> list[str]:
        """The columns' names as `visible` spells them. Raises DataError."""
        if self._source.header:
            header = [visible(name) for name in self._source.header]
        else:
            header = [visible(name) for name in self._next() or []]
            if not any(header):
                raise DataError(f"{self.path} has no header", "the first line must name the columns; or header = […]")
        self._width = len(header)
        return header

    def rows(self) -> Iterator[list[str]]:
        """The stripped cells of each row after the header, as many as it has. Raises DataError."""
        named = bool(self._source.header)
        while (record := self._next()) is not None:
            if not any(map(str.strip, record)):
                continue  # an empty line, or one of the empty rows that a spreadsheet writes below its last
            if named and [visible(text) for text in record] == [visible(name) for name in self._source.header]:
                raise self.wrong("it is the header", "remove header = … from [source]: the file has one")
            named = False
            if len(record) != self._width:
                hint = "is a quote missing, or a number written with the delimiter as its decimal comma?"
                raise self.wrong(f"{len(record)} fields, but the header has {self._width}", hint)
            if max(map(len, record)) > LONGEST_FIELD:
                raise self.wrong(f"a field is longer than {LONGEST_FIELD} characters", "is a quote missing?")
            yield [text.strip() for text in record]

    def wrong(self, what: str, hint: str) -> DataError:
        """The error that names the line last read."""
        return DataError(f"{self.path}, line {self.line}: {what}", hint)

    def _next(self) -> list[str] | None:
        self._record_bytes = 0
        try:
            return next(self._records, None)
        except csv.Error as error:
            raise self.wrong(f"it is not CSV: {error}", "check quotes, delimiter and line ends") from None

    def _lines(self) -> Iterator[str]:
        while data := self._read_line():
            self.line += 1
            self._record_bytes += len(data)
            if self._record_bytes > LONGEST_RECORD_BYTES:
                limit = f"{LONGEST_RECORD_BYTES >> 20} MiB"
                raise self.wrong(f"a row is longer than {limit}", "is a quote missing, or is this no CSV?")
            self.sha256.update(data)
            try:
                text = data.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError:
                raise self.wrong(*foreign_line(data, self.path, self._utf8_seen)) from None
            if "\0" in text:
                raise self.wrong("there are bytes of value 0 in it", "is it text? copy or export it again")
            self._utf8_seen = self._utf8_seen or not text.isascii()
            if self.line == 1 and (named := _SEP_LINE.fullmatch(text)):
                self._check_delimiter(named.group(1))
                continue
            yield f"{text.replace(chr(9), ' ').strip()}\n" if self._padded else text

    def _read_line(self) -> bytes:
        try:
            if self.line == 0 and (told := foreign_start(self._file.peek(_HEAD_BYTES)[:_HEAD_BYTES], self.path)):
                raise DataError(f"{self.path}: {told[0]}", told[1])
            return self._file.readline(LONGEST_RECORD_BYTES + 1)
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}", "check the disk and the file") from None

    def _check_delimiter(self, named: str) -> None:
        mine = self._source.delimiter
        if named == mine or (self._padded and named.isspace()):
            return
        raise self.wrong(
            f"the file says that {named!r} separates its columns, and the recipe that {mine!r} does",
            f"delimiter = {'TAB' if named == chr(9) else repr(named)} in [source]".replace("TAB", r'"\t"'),
        )
