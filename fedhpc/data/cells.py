"""From the text of one CSV cell to the numbers of one row. Pure: text in, floats out, ValueError says what is wrong.

Messages never repeat the cell, because it is somebody's data: they say what was expected there.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from fedhpc.data.recipe import Column, LabelColumn
from fedhpc.errors import ConfigError

# Python's float() also takes "nan", "infinity" and "1_000", none of which a data file should mean.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST_EXACT = 1 << 24  # beyond this, float32 skips whole numbers
_LARGEST_LABEL = 1 << 53  # labels pass through float64
_LONGEST_NUMBER = 64

Reader = Callable[[str], tuple[float, ...]]


def number(text: str) -> float:
    """A decimal number. Raises ValueError for anything else, also for values float32 cannot hold."""
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        raise ValueError("it is not a number (write it like -12.5 or 1e3, with a point and no units)")
    value = float(text)
    if abs(value) > float(np.finfo(np.float32).max):
        raise ValueError("it is too large for float32 (choose a larger unit)")
    return value


def integer(text: str, largest: int = _LARGEST_EXACT) -> int:
    """A whole number of at most `largest`, also written as 63.0. Raises ValueError for anything else."""
    value = number(text)
    if value != math.floor(value):
        raise ValueError("it is not a whole number (or the type should be 'number')")
    if abs(value) > largest:
        raise ValueError(f"it is larger than {largest}, the largest whole number held exactly")
    return int(value)


def column_reader(column: Column) -> Reader:
    """What turns a cell of `column`, not missing and stripped, into its features' values."""
    read = _plain_reader(column)
    return lambda text: read(column.aliases.get(text, text))


def fill_values(column: Column) -> tuple[float, ...] | None:
    """The features' values where the column is missing, if its policy is to fill. Raises ConfigError."""
    if column.fill is None:
        return None
    value = column.fill
    if isinstance(value, bool):
        value = column.true if value else column.false
    try:
        return column_reader(column)(str(value))
    except ValueError as error:
        raise ConfigError(f"feature '{column.column}': fill cannot be used: {error}", "see docs/data.md") from None


def label_reader(column: LabelColumn) -> Callable[[str], float]:
    """What turns a cell of the label's column, not missing and stripped, into the label."""
    read: Callable[[str], float] = number
    if column.above is not None:
        limit = column.above
        read = lambda text: float(number(text) > limit)  # noqa: E731
    elif column.classes:
        classes = column.classes
        read = lambda text: float(classes[_known(text, classes)])  # noqa: E731
    elif column.type == "integer":
        read = lambda text: float(integer(text, _LARGEST_LABEL))  # noqa: E731
    return lambda text: read(column.aliases.get(text, text))


def _plain_reader(column: Column) -> Reader:
    if column.type == "number":
        return lambda text: (number(text),)
    if column.type == "integer":
        return lambda text: (float(integer(text)),)
    if column.type == "boolean":
        values = {column.true.casefold(): (1.0,), column.false.casefold(): (0.0,)}
        return lambda text: values[_known(text.casefold(), values)]
    if column.coding == "ordinal":
        ordinals = {level: (float(i),) for i, level in enumerate(column.levels)}
        return lambda text: ordinals[_known(text, ordinals)]
    first = 1 if column.coding == "dummy" else 0
    vectors = {level: tuple(float(level == other) for other in column.levels[first:]) for level in column.levels}
    return lambda text: vectors[_known(text, vectors)]


def _known(text: str, levels: Mapping[str, object]) -> str:
    if text not in levels:
        names = list(levels)
        near = difflib.get_close_matches(text[:256], names, n=1)
        guess = f"; nearest: '{near[0]}'" if near else ""
        raise ValueError(f"it is not one of {', '.join(repr(name) for name in names[:20])}{guess}")
    return text
