"""A first recipe from a CSV file: types, likely codes for missing, and what only people know left to fill in.

The recipe goes to other sites, so it holds no value of a single person: of a column's words only those that at least
FEW rows have become levels, and smallest and largest values are left out. Nothing that was read is printed.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhpc.data.csv_file import CsvFile
from fedhpc.data.decimals import Decimals
from fedhpc.data.recipe import MISSING_MARKERS, ROW_NUMBER, Source
from fedhpc.data.spelling import visible
from fedhpc.errors import ConfigError, DataError, StorageError

FEW = 5
"""Rows that must share a value before it is written down."""
_MOST_LEVELS = 40
_MOST_CLASSES = 20
_MOST_DISTINCT = 1000  # values of a column that are told apart
_CODES = (-9, -99, -999, -9999, -1, -2, -8, 9, 99, 999, 9999, 99999)  # that stand for "not measured" in many files
_HEAD_BYTES = 1 << 20
_PERSON = re.compile(r"(?:^|[_ .-])(id|pid|mrn|patient|subject|participant|person|record|case|row)(?:$|[_ .-])", re.I)
_OUTCOME = re.compile(
    r"(?:^|[_ .-])(label|outcome|target|y|ill|sick|disease|diagnosis|class|status|died|dead|death|event|case|relapse"
    r"|response|readmitted|survived)(?:$|[_ .-])",
    re.I,
)
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ].*)?|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}", re.ASCII)
_TRUE_FALSE = (("yes", "no"), ("true", "false"), ("y", "n"), ("t", "f"), ("m", "f"), ("male", "female"), ("ja", "nein"))


@dataclass
class Seen:
    """What a pass has seen of a column; numbers and words are told apart cell by cell."""

    name: str
    numbers: int = 0
    whole: int = 0
    words: int = 0
    dates: int = 0
    missing: int = 0
    values: Counter[str] = field(default_factory=Counter)  # at most _MOST_DISTINCT
    lowest: float = float("inf")  # of numbers that are no suspected code
    highest: float = float("-inf")
    codes: Counter[float] = field(default_factory=Counter)

    def see(self, text: str, decimals: Decimals) -> None:
        """Count a stripped cell."""
        if text in MISSING_MARKERS:
            self.missing += 1
            return
        if len(self.values) < _MOST_DISTINCT or text in self.values:
            self.values[text] += 1
        value = decimals.value(text)
        if value is None:
            self.words += 1
            self.dates += _DATE.fullmatch(text) is not None
            return
        self.numbers += 1
        self.whole += value.is_integer()
        if value in _CODES:
            self.codes[value] += 1
        else:
            self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)

    @property
    def rows(self) -> int:
        """That are not missing."""
        return self.numbers + self.words

    @property
    def unique(self) -> bool:
        """Whether no value comes twice, as far as they were told apart."""
        return self.rows > 1 and max(self.values.values(), default=0) == 1

    def suspected(self) -> list[str]:
        """Codes that stand apart from all other numbers of the column: further off than these are from each other."""
        if self.words or not self.lowest <= self.highest:
            return []
        room = max(self.highest - self.lowest, 1.0)
        apart = [
            code
            for code in self.codes
            if (code < 0 <= self.lowest and self.highest > 2) or code > self.highest + room or code < self.lowest - room
        ]
        return [f"{code:g}" for code in sorted(apart)]

    def levels(self) -> list[str]:
        """Values that enough rows have, in order."""
        return sorted(value for value, rows in self.values.items() if rows >= FEW)

    @property
    def rare(self) -> int:
        """How many values are not written down."""
        return sum(rows < FEW for rows in self.values.values())


@dataclass(frozen=True)
class Draft:
    """A drafted recipe, and what is to be said of it; neither holds a person's value."""

    text: str
    rows: int
    identifier: str
    label: str
    told: tuple[tuple[str, str], ...]  # column, what was made of it
    open_: tuple[str, ...]  # what is left to people


def draft_recipe(path: Path, *, identifier: str = "", label: str = "") -> Draft:
    """A recipe for the UTF-8 file `path`; absent columns are guessed from names and values.

    Raises DataError for what is no CSV, ConfigError for an `identifier` or a `label` that the file does not have.
    """
    try:
        with path.open("rb") as file:
            head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            source = Source(ROW_NUMBER, delimiter=_delimiter(head))
            reader = CsvFile(path, file, source)
            header = reader.header()
            _refuse_unclear(path, header, {"--id": identifier, "--label": label})
            decimals = _decimals(head, source.delimiter)
            columns = [Seen(name) for name in header]
            rows = 0
            for row in reader.rows():
                rows += 1
                for column, text in zip(columns, row, strict=True):
                    column.see(text, decimals)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "check the path") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check the path and permissions") from None
    if rows < FEW:
        raise DataError(f"{path} has {rows} rows", f"a recipe is drafted from {FEW} and more")
    return _written(columns, rows, source, decimals, visible(identifier), visible(label))


def _refuse_unclear(path: Path, header: Sequence[str], asked: dict[str, str]) -> None:
    counts = Counter(header)
    for name, count in counts.items():
        if count > 1 or not name:
            what = f"column '{name}' is there {count} times" if name else "a column has no name"
            raise DataError(f"{path}: {what}", "give every column a name of its own in the first line")
    for option, name in asked.items():
        if name and visible(name) not in counts:
            raise ConfigError(f"{path} has no column '{name}' ({option})", f"it has: {', '.join(header[:20])}")


def _delimiter(head: bytes) -> str:
    """What separates the columns of the first line."""
    lines = head.decode("utf-8-sig", "replace").splitlines()
    first = next((line for line in lines if line.strip() and not line.lower().startswith("sep=")), "")
    counts = {mark: len(next(csv.reader([first], delimiter=mark), [])) for mark in (",", ";", "\t", "|")}
    return max(counts, key=lambda mark: counts[mark])


def _decimals(head: bytes, delimiter: str) -> Decimals:
    """With a comma where that separates no columns and more cells are numbers with it than with a point."""
    text = head.decode("utf-8", "replace")
    if delimiter == ",":
        return Decimals()
    cells = re.split(rf"[{re.escape(delimiter)}\r\n]", text)
    commas = sum(re.fullmatch(r"\s*[+-]?\d+,\d+\s*", cell) is not None for cell in cells)
    points = sum(re.fullmatch(r"\s*[+-]?\d+\.\d+\s*", cell) is not None for cell in cells)
    return Decimals("," if commas > points else ".")


def _written(
    columns: Sequence[Seen], rows: int, source: Source, decimals: Decimals, identifier: str, label: str
) -> Draft:
    if not identifier:
        found = next((c for c in columns if c.unique and not c.missing and _PERSON.search(c.name)), None)
        identifier = found.name if found is not None else ROW_NUMBER
    guessed = not label
    if guessed:
        others = [c for c in columns if c.name != identifier and c.rows]
        named = [c for c in others if _OUTCOME.search(c.name) and len(c.values) <= _MOST_CLASSES]
        if not others:
            raise DataError("no column is left that could be the label", "give --id and --label")
        label = (named or others)[-1].name
    outcome = next(c for c in columns if c.name == label)
    open_: list[str] = []
    if guessed:
        open_.append(f"[label]: is '{label}' what you want to predict? It was guessed; --label names another column")
    parts = [_head(source, decimals, identifier)]
    told = [(identifier, "identifier: only a keyed hash is kept")] if identifier != ROW_NUMBER else []
    for column in columns:
        if column.name in (identifier, label):
            continue
        text, word = _feature(column, open_)
        parts.append(text)
        told.append((column.name, word))
    text, word = _label(outcome, open_)
    parts.append(text)
    told.append((label, f"label, {word}"))
    return Draft("\n".join(parts), rows, identifier, label, tuple(told), tuple(open_))


def _head(source: Source, decimals: Decimals, identifier: str) -> str:
    lines = ["# A first recipe: read it, fill in units, and agree on it with all sites. Every site uses the same file."]
    lines += ["# docs/data.md says what each key means.", "", "[source]"]
    said = "   # no column names a person: rows are numbered" if identifier == ROW_NUMBER else ""
    lines.append(f"id = {_quoted(identifier)}{said}")
    if source.delimiter != ",":
        lines.append(f"delimiter = {_quoted(source.delimiter)}")
    if decimals.mark == ",":
        lines.append('decimal = ","')
    lines += ['licence = ""', ""]
    return "\n".join(lines)


def _feature(column: Seen, open_: list[str]) -> tuple[str, str]:
    """A [[feature]], or a comment that says why there is none; and a word for people."""
    if reason := _left_out(column):
        open_.append(f"'{column.name}' is left out: {reason}")
        return f"# column {_quoted(column.name)} is left out: {reason}\n", f"left out: {reason}"
    lines = ["[[feature]]", f"column = {_quoted(column.name)}"]
    codes: list[str] = []
    if column.words == 0 and not _is_flag(column):
        kind = "integer" if column.whole == column.numbers else "number"
        lines += [
            f'type = "{kind}"',
            'unit = ""                     # fill in, such as "mmol/l"; "" where there is none',
        ]
        open_.append(f"'{column.name}': its unit")
        codes = column.suspected()
        if codes:
            lines.append(f"missing_markers = {_list(codes)}   # suspected: far from all other values; else remove")
            open_.append(f"'{column.name}': does {', '.join(codes)} mean missing?")
        word = kind
    elif (pair := _pair(column)) is not None:
        lines += ['type = "boolean"', f"true = {_quoted(pair[0])}", f"false = {_quoted(pair[1])}"]
        word = "boolean"
    else:
        lines.append('type = "category"')
        lines.append(f"levels = {_list(column.levels())}   # others are compared with the first one")
        if column.rare:
            lines.append(f"# {_rare(column)}: add each that may occur, or give it an alias")
            open_.append(f"'{column.name}': {_rare(column)}")
        word = f"category of {len(column.levels())} levels"
    if column.missing or codes:
        lines.append('missing = "drop"              # leaves out the row; "fill" with fill = … keeps it')
    return "\n".join([*lines, ""]), word + (f", {column.missing} missing" if column.missing else "")


def _left_out(column: Seen) -> str:
    """Why a column is no feature as it is; empty if it is one."""
    if not column.rows:
        return "it is empty"
    if len(column.values) == 1:
        return "all rows have the same value"
    if column.dates and column.dates >= 0.9 * column.rows:
        return "it holds dates; write days since a public date into the file"
    if column.words and column.numbers:
        return "it holds numbers and words; list the words as missing_markers of a number, or make it a category"
    if column.words and (len(column.levels()) < 2 or len(column.levels()) > _MOST_LEVELS):
        return f"it holds names or free text (fewer than 2 or more than {_MOST_LEVELS} values are shared by {FEW} rows)"
    return ""


def _is_flag(column: Seen) -> bool:
    return not column.words and set(column.values) == {"0", "1"}


def _pair(column: Seen) -> tuple[str, str] | None:
    """(true, false) of a column of two values; None if it has others."""
    if len(column.values) != 2 or column.rare:
        return None
    if _is_flag(column):
        return ("1", "0")
    by_case = {value.casefold(): value for value in column.values}
    for true, false in _TRUE_FALSE:
        if set(by_case) == {true, false}:
            return by_case[true], by_case[false]
    return None


def _label(column: Seen, open_: list[str]) -> tuple[str, str]:
    lines = ["[label]", f"column = {_quoted(column.name)}"]
    levels = column.levels()
    if column.words == 0 and set(column.values) == {"0", "1"}:
        word = "0 or 1"
        lines.append("range = [0, 1]")
    elif column.words and 2 <= len(levels) <= _MOST_CLASSES:
        pair = _pair(column)
        ordered = [pair[1], pair[0]] if pair else levels
        named = ", ".join(f"{_quoted(level)} = {number}" for number, level in enumerate(ordered))
        lines.append(f"classes = {{ {named} }}")
        if column.rare:
            open_.append(f"[label]: {_rare(column)}")
        word = f"{len(ordered)} classes"
    elif column.words == 0 and column.whole == column.numbers and len(column.values) <= _MOST_CLASSES:
        lines.append("# above = 0                   # 1 where it is larger, else 0; without it each number is a class")
        word = f"whole numbers, {len(column.values)} of them"
        open_.append("[label]: does every number stand for a class of its own, or is it ill above some number?")
    elif column.words == 0:
        lines.append('type = "number"               # a task of your own predicts it')
        word = "a number"
    else:
        lines.append("# its values are names or free text: choose another column")
        word = "unclear"
        open_.append(f"[label]: '{column.name}' holds names or free text")
    codes = column.suspected()
    if codes:
        lines.append(f"missing_markers = {_list(codes)}   # suspected: far from all other values; else remove")
        open_.append(f"[label]: does {', '.join(codes)} mean missing?")
    if column.missing or codes:
        lines.append('missing = "drop"')
    return "\n".join([*lines, ""]), word


def _rare(column: Seen) -> str:
    more = " or more" if len(column.values) >= _MOST_DISTINCT else ""
    plural = "s" if column.rare > 1 else ""
    return (
        f"{column.rare}{more} more value{plural} that fewer than {FEW} rows have {'are' if plural else 'is'} not listed"
    )


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    """As a TOML basic string, which JSON's is but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
