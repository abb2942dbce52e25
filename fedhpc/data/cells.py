"""Turns the text of one CSV cell into the numbers of one row. Pure: text in, floats out; CellError says what is wrong.

Messages never repeat the cell, because it is personal data: they say what was expected there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from fedhpc.data.decimals import LARGEST_LABEL, CellError, Decimals
from fedhpc.data.lookup import Lookup, are_numbers
from fedhpc.data.recipe import Column, LabelColumn, Source
from fedhpc.errors import ConfigError

Values = tuple[float, ...]
Reader = Callable[[str], Values | None]
LabelReader = Callable[[str], float | None]
_MOST_REMEMBERED = 256


def decimals_of(source: Source) -> Decimals:
    """How the file of `source` writes its numbers."""
    return Decimals(source.decimal or ".", said=source.decimal is not None, semicolons=source.delimiter == ";")


def column_reader(column: Column, source: Source) -> Reader:
    """What turns a stripped cell of `column` into its features' values, or None if it is missing.

    Raises ConfigError if a value is given a meaning and is a code for missing too.
    """
    decimals = decimals_of(source)
    numeric = column.type in ("number", "integer")
    table: dict[str, Values] = {}
    if column.type == "boolean":
        table = {column.true: (1.0,), column.false: (0.0,)}
        numeric = are_numbers(table, decimals)
    elif column.type == "category":
        table = _codings(column)
    spelled = decimals if numeric else None
    known = Lookup(table, spelled, case=column.type != "boolean")
    read: Callable[[str], Values] = known.known
    if column.type == "number":
        read = lambda text: (decimals.number(text, column.rounding),)  # noqa: E731
    elif column.type == "integer":
        read = lambda text: (float(decimals.integer(text)),)  # noqa: E731
    markers = (*source.missing_markers, *column.missing_markers)
    return _with_missing(read, markers, column.aliases, table, spelled, f"feature '{column.column}'")


def numeric_codes(column: Column, source: Source) -> list[float]:
    """The numbers that mean something else in a column of numbers: codes for missing, and what has an alias."""
    texts = dict.fromkeys((*source.missing_markers, *column.missing_markers, *column.aliases), True)
    return list(Lookup(texts, decimals_of(source), float32=True).numbers)


def fill_values(column: Column, source: Source) -> Values | None:
    """The features' values where the column is missing, if its policy is to fill. Raises ConfigError."""
    value = column.fill
    if value is None:
        return None
    if isinstance(value, bool):
        value = column.true if value else column.false
    try:
        if isinstance(value, float):  # TOML writes a point, whatever the file does
            plain = Decimals()
            text = repr(value)
            if column.type == "number":
                return (plain.number(text, column.rounding),)
            if column.type == "integer":
                return (float(plain.integer(text)),)
            value = text.removesuffix(".0")
        filled = column_reader(column, source)(value)
    except CellError as error:
        raise ConfigError(f"feature '{column.column}': fill cannot be used: {error}", error.hint) from None
    if filled is None:
        raise ConfigError(f"feature '{column.column}': fill is itself a code for missing", "fill with a value")
    return filled


def label_reader(column: LabelColumn, source: Source) -> LabelReader:
    """What turns a stripped cell of the label's column into the label, or None if it is missing. Raises ConfigError."""
    decimals = decimals_of(source)
    table: dict[str, Values] = {text: (float(number),) for text, number in column.classes.items()}
    numeric = not table or are_numbers(table, decimals)
    spelled = decimals if numeric else None
    known = Lookup(table, spelled)
    read: Callable[[str], Values] = known.known
    if column.above is not None:
        above = column.above
        read = lambda text: (float(_within(decimals.measured(text), column) > above),)  # noqa: E731
    elif not table and column.type == "integer":
        read = lambda text: (_within(float(decimals.integer(text, LARGEST_LABEL)), column),)  # noqa: E731
    elif not table:
        read = lambda text: (_within(decimals.number(text, column.rounding), column),)  # noqa: E731
    markers = (*source.missing_markers, *column.missing_markers)
    float32 = column.type == "number"
    reader = _with_missing(read, markers, column.aliases, table, spelled, "label", float32=float32)
    return lambda text: None if (values := reader(text)) is None else values[0]


def _with_missing(
    read: Callable[[str], Values],
    markers: tuple[str, ...],
    aliases: dict[str, str],
    table: dict[str, Values],
    spelled: Decimals | None,
    where: str,
    *,
    float32: bool = True,
) -> Reader:
    """`read` after missing codes and aliases. An alias may lead to a code for missing."""
    missing = Lookup(dict.fromkeys(markers, True), spelled, float32=float32)
    renamed = Lookup(aliases, spelled, float32=float32)
    for text in table:
        if missing.get(text):
            raise ConfigError(
                f"{where}: {text!r} is a value and a missing marker",
                "take it out of missing_markers ([source] has defaults), or write that value otherwise",
            )

    @functools.lru_cache(_MOST_REMEMBERED)  # a column has few different levels, codes and grades
    def reader(text: str) -> Values | None:
        if missing.get(text):
            return None
        other = renamed.get(text)
        if other is None:
            return read(text)
        return None if missing.get(other) else read(other)

    return reader


def _within(value: float, column: LabelColumn) -> float:
    """`value` if the recipe lets it occur. Raises CellError."""
    if column.range:
        low, high = column.range
        if not low <= value <= high:
            raise CellError(
                f"it is outside the label's range, {low:g} to {high:g}",
                "a code for missing goes into missing_markers of [label]; else widen the range",
            )
    elif column.above is not None and value < column.above:
        raise CellError(
            f"it is smaller than above = {column.above:g}, and the recipe does not say that such values occur",
            "a code for missing goes into missing_markers of [label]; else give range = [smallest, largest] there",
        )
    return value


def _codings(column: Column) -> dict[str, Values]:
    """What each level of a category becomes."""
    if column.coding == "ordinal":
        return {level: (float(i),) for i, level in enumerate(column.levels)}
    first = 1 if column.coding == "dummy" else 0
    return {level: tuple(float(level == other) for other in column.levels[first:]) for level in column.levels}
