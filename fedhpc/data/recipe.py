"""The recipe: how the columns of a CSV file become features and a label. One TOML file, agreed between the sites.

[source]    where the rows and their identifiers are, how the file is written, what counts as missing, licence
[[feature]] one column of the CSV, in the order of the features; or all that fit a pattern or stand in a list
[label]     the column to predict
[[move]]    a correction of one cell of one row, made before rows are picked
"""

from __future__ import annotations

import contextlib
import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fedhpc.config import parse_toml, read_bytes, read_section, refuse_unknown
from fedhpc.data.column_lists import fitting, read_list
from fedhpc.data.decimals import LARGEST_LABEL
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.spelling import visible
from fedhpc.errors import ConfigError

MISSING_MARKERS = ("", "NA", "NaN", "nan", "N/A", "null", "?")
ROW_NUMBER = "row number"  # stands for an identifier's column: rows are numbered in the order of the file
WHITESPACE = "whitespace"  # stands for a delimiter: any run of blanks and tabs
LARGEST_RECIPE_BYTES = 64 << 20  # a table for each of a million columns


@dataclass(frozen=True)
class Source:
    """Section `[source]`: the CSV file as a whole."""

    id: str  # column that names a row: unique, and never stored; or ROW_NUMBER
    where: dict[str, str] = field(default_factory=dict)  # only rows with these values, after the moves
    missing_markers: tuple[str, ...] = MISSING_MARKERS  # in every column; a column may have more of its own
    delimiter: str = ","  # one character, or WHITESPACE
    decimal: Literal[".", ","] | None = None  # before the fraction; None: a point, if it cannot separate thousands
    header: tuple[str, ...] = ()  # the columns' names, for a file that has no header
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        if self.delimiter != WHITESPACE and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            hint = f"one character, such as ';', or '{WHITESPACE}' for any run of blanks and tabs"
            raise ConfigError(f"source.delimiter = {self.delimiter!r} cannot be used", hint)
        if len(set(self.missing_markers)) != len(self.missing_markers):
            raise ConfigError("source.missing_markers has an entry twice", "remove it")

    @property
    def numbers_rows(self) -> bool:
        """Whether rows have no identifier and are numbered, from 1, in the order of the file."""
        return self.id == ROW_NUMBER


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Section `[[feature]]`: one column of the CSV, which gives one feature, or several for a category.

    With `pattern` or `columns` in place of `column` it describes many columns; `Recipe.for_header` and
    `read_recipe` put one entry for each in its place.
    """

    column: str = ""  # as in the header of the CSV
    pattern: str = ""  # all columns that fit and that nothing else in the recipe names: *, ?, [a-z]; sorted
    columns: str = ""  # a text file beside the recipe, one column on a line, in this order
    type: Literal["number", "integer", "boolean", "category"]
    name: str = ""  # of the feature; the column's unless given
    unit: str = ""
    true: str = "true"  # booleans: what 1 means, and what 0 means (case does not matter)
    false: str = "false"
    levels: tuple[str, ...] = ()  # categories: all values, in an order every site shares
    coding: Literal["dummy", "one-hot", "ordinal"] = "dummy"  # dummy: one-hot without the first level
    aliases: dict[str, str] = field(default_factory=dict)  # this site's spelling = the shared one
    missing_markers: tuple[str, ...] = ()  # of this column, beside the source's
    rounding: Literal["refuse", "allow"] = "refuse"  # numbers: whole ones whose last digits float32 does not hold
    missing: Literal["drop", "refuse", "fill"] = "refuse"  # drop the row, refuse the file, or use `fill`
    fill: str | float | bool | None = None  # a value of the column's type, as the source would write it

    def __post_init__(self) -> None:
        where = f"feature '{self.column or self.pattern or self.columns}'"
        if sum(map(bool, (self.column, self.pattern, self.columns))) != 1:
            raise ConfigError(f"{where}: give exactly one of column, pattern and columns", 'column = "age"')
        if self.name and not self.column:
            raise ConfigError(f"{where}: name belongs to a single column", "remove it: features get the columns' names")
        if self.rounding != "refuse" and self.type != "number":
            raise ConfigError(f"{where}: rounding belongs to type = 'number'", "remove it")
        if (self.missing == "fill") != (self.fill is not None):
            raise ConfigError(f"{where}: missing = 'fill' and fill = … go together", "give both or neither")
        if self.type == "category":
            if len(self.levels) < 2 or len(set(self.levels)) != len(self.levels):
                raise ConfigError(f"{where}: a category needs at least two different levels", 'levels = ["a", "b"]')
        elif self.levels or self.coding != "dummy":
            raise ConfigError(f"{where}: levels and coding belong to type = 'category'", "remove them")
        if self.type == "boolean":
            if self.true.casefold() == self.false.casefold():
                raise ConfigError(f"{where}: true and false are the same value", 'true = "yes", false = "no"')
        elif (self.true, self.false) != ("true", "false"):
            raise ConfigError(f"{where}: true and false belong to type = 'boolean'", "remove them")

    @property
    def feature_name(self) -> str:
        """The feature's name."""
        return self.name or self.column

    def features(self) -> tuple[Feature, ...]:
        """The features this column gives."""
        if self.type == "boolean":
            return (Feature(self.feature_name, self.unit, f"boolean 1={self.true} 0={self.false}"),)
        if self.type == "category":
            coding = f"{self.coding} {json.dumps(self.levels, ensure_ascii=False)}"
            if self.coding == "ordinal":
                return (Feature(self.feature_name, self.unit, coding),)
            levels = self.levels[1:] if self.coding == "dummy" else self.levels
            return tuple(Feature(f"{self.feature_name}={level}", self.unit, coding) for level in levels)
        return (Feature(self.feature_name, self.unit, self.type),)


@dataclass(frozen=True)
class LabelColumn:
    """Section `[label]`: at most one of `above` and `classes`; neither takes the column's number as it is."""

    column: str
    name: str = ""
    type: Literal["integer", "number"] = "integer"
    unit: str = ""
    above: float | None = None  # the label is 1 where the column is larger than this, else 0
    classes: dict[str, int] = field(default_factory=dict)  # value of the column = class
    range: tuple[float, ...] = ()  # smallest and largest value of the column that can occur; others are refused
    aliases: dict[str, str] = field(default_factory=dict)  # this site's spelling = the shared one
    missing_markers: tuple[str, ...] = ()  # of the label, beside the source's
    rounding: Literal["refuse", "allow"] = "refuse"  # type number: whole ones whose last digits float32 does not hold
    missing: Literal["drop", "refuse"] = "refuse"

    def __post_init__(self) -> None:
        if self.range:
            low, high = self.range if len(self.range) == 2 else (0.0, 0.0)
            if not low < high or self.classes:
                raise ConfigError("label: range = [smallest, largest], and not with classes", "such as range = [0, 4]")
            if self.above is not None and not low <= self.above < high:
                raise ConfigError("label: above is not inside range, so all labels would be the same", "change one")
        if any(abs(number) > LARGEST_LABEL for number in self.classes.values()):
            raise ConfigError(f"label: a class is larger than {LARGEST_LABEL}", "number classes from 0")
        if self.rounding != "refuse" and self.type != "number":
            raise ConfigError("label: rounding belongs to type = 'number'", "remove it")
        if self.above is not None and (self.classes or not math.isfinite(self.above)):
            raise ConfigError("label: above must be a number, without classes", "give one of the two")
        if self.type == "number" and (self.above is not None or self.classes):
            raise ConfigError("label: above and classes give whole numbers", "remove type = 'number'")

    def label(self) -> Label:
        """The label as a store describes it."""
        name = self.name or self.column
        if self.above is not None:
            return Label(name, "int64", self.unit, f"1 above {self.above!r}, else 0")
        if self.classes:
            classes = json.dumps(self.classes, sort_keys=True, ensure_ascii=False)
            return Label(name, "int64", self.unit, f"classes {classes}")
        return Label(name, "int64" if self.type == "integer" else "float32", self.unit, self.type)


@dataclass(frozen=True)
class Move:
    """Section `[[move]]`: in the row `id`, the cell of `column` is really `value`."""

    id: str
    column: str
    value: str


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Hand-made ones validate like those from files."""

    source: Source
    features: tuple[Column, ...]
    label: LabelColumn
    moves: tuple[Move, ...] = ()

    def __post_init__(self) -> None:
        if not self.features:
            raise ConfigError("the recipe has no [[feature]]", "give at least one")
        cells = [(move.id, move.column) for move in self.moves]
        if len(set(cells)) != len(cells):
            raise ConfigError("two [[move]] change the same cell", "keep one")
        named = {feature.column for feature in self.features}
        for what, column in (("label", self.label.column), ("identifier", self.source.id)):
            if column in named:
                raise ConfigError(f"column '{column}' is the {what} and a feature", "remove that [[feature]]")

    def for_header(self, header: Sequence[str], where: Iterable[str] = ()) -> tuple[Column, ...]:
        """The features with each pattern replaced by the columns of `header` that fit it. Raises DataError.

        `where`: columns that pick rows without the recipe's saying so, which are not features.
        """
        taken = {visible(name) for name in (*self.columns(), *where)}
        columns: list[Column] = []
        for feature in self.features:
            if feature.pattern:
                names = fitting(feature.pattern, [name for name in header if name not in taken])
                taken.update(names)
                columns += _each(feature, names)
            else:
                columns.append(feature)
        return tuple(columns)

    def feature_set(self, columns: Sequence[Column] = ()) -> FeatureSet:
        """What a store made with this recipe holds, from `for_header` if there are patterns.

        Raises DataError for names that cannot be used.
        """
        features = tuple(feature for column in columns or self.features for feature in column.features())
        return FeatureSet(features, self.label.label(), (len(features),))

    def columns(self) -> list[str]:
        """Every column of the CSV that the recipe names, each once."""
        named = [*self.source.where, *(f.column for f in self.features if f.column), self.label.column]
        named += [move.column for move in self.moves]
        return list(dict.fromkeys(named if self.source.numbers_rows else [self.source.id, *named]))


def read_recipe(path: Path) -> Recipe:
    """The recipe in the TOML file `path`, in NFC, with the lists of columns beside it. Raises ConfigError."""
    data = read_bytes(path, LARGEST_RECIPE_BYTES)
    with contextlib.suppress(UnicodeDecodeError):  # which `parse_toml` tells
        data = unicodedata.normalize("NFC", data.decode()).encode()
    table = parse_toml(data, str(path))
    refuse_unknown(table, ("source", "feature", "label", "move"), str(path))
    for name in ("source", "feature", "label"):
        if name not in table:
            raise ConfigError(f"{path}: '{name}' is missing", "see docs/data.md for a recipe")
    for name in ("feature", "move"):
        if not isinstance(table.get(name, []), list):
            raise ConfigError(f"{path}: '{name}' must be a list of tables", f"write it as [[{name}]]")
    columns: list[Column] = []
    for i, section in enumerate(table["feature"]):
        column = read_section(Column, section, f"feature[{i}]")
        columns += _each(column, read_list(path.parent / column.columns)) if column.columns else [column]
    return Recipe(
        source=read_section(Source, table["source"], "source"),
        features=tuple(columns),
        label=read_section(LabelColumn, table["label"], "label"),
        moves=tuple(read_section(Move, m, f"move[{i}]") for i, m in enumerate(table.get("move", []))),
    )


def _each(column: Column, names: Sequence[str]) -> list[Column]:
    """The section `column` for each of `names`."""
    return [replace(column, column=name, pattern="", columns="") for name in names]
