"""What the columns of a site store mean, and the hash by which sites see that they mean the same.

Two sites may train together when their names, units, codings, label and row shape are equal, in this order. All of
it goes into one canonical JSON text; its SHA-256 is `feature_sha256`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from fedhpc.errors import DataError

LARGEST_NAME = 256  # characters of a feature's name or unit
LARGEST_CODING = 1 << 16
_MOST_LINES = 20
_DOMAIN = "fedhpc feature set v1"  # never the hash of another kind of document


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: its name, its unit (empty: none), and how its number came from the source."""

    name: str
    unit: str = ""
    coding: str = "number"

    def __post_init__(self) -> None:
        _check_text("feature name", self.name, 1, LARGEST_NAME)
        _check_text(f"unit of '{self.name}'", self.unit, 0, LARGEST_NAME)
        _check_text(f"coding of '{self.name}'", self.coding, 1, LARGEST_CODING)


@dataclass(frozen=True)
class Label:
    """What is predicted. int64 labels are classes or counts, float32 labels are quantities."""

    name: str
    dtype: Literal["int64", "float32"] = "int64"
    unit: str = ""
    coding: str = "integer"

    def __post_init__(self) -> None:
        _check_text("label name", self.name, 1, LARGEST_NAME)
        _check_text(f"unit of '{self.name}'", self.unit, 0, LARGEST_NAME)
        _check_text(f"coding of '{self.name}'", self.coding, 1, LARGEST_CODING)
        if self.dtype not in ("int64", "float32"):
            raise DataError(f"label '{self.name}' has dtype {self.dtype}", "labels are int64 or float32")


@dataclass(frozen=True)
class FeatureSet:
    """The columns of a store. `row_shape` is the shape of one row: (F,), or (channels, height, width), …

    Its first axis counts the features: a table has one per column, an image one per channel.
    """

    features: tuple[Feature, ...]
    label: Label
    row_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.row_shape or any(size < 1 for size in self.row_shape):
            raise DataError(f"a row of shape {self.row_shape} holds nothing", "give at least one feature")
        if len(self.features) != self.row_shape[0]:
            raise DataError(
                f"{len(self.features)} feature names for rows of shape {self.row_shape}",
                "one name for each index of the first axis of a row",
            )
        seen: set[str] = set()
        for feature in self.features:
            if feature.name in seen:
                raise DataError(f"feature '{feature.name}' is there twice", "names must be unique")
            seen.add(feature.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names, in the order of the columns."""
        return tuple(feature.name for feature in self.features)

    def canonical(self) -> bytes:
        """The JSON that is hashed: sorted keys, no spaces, ASCII."""
        label = self.label
        document = {
            "domain": _DOMAIN,
            "names": [f.name for f in self.features],
            "units": [f.unit for f in self.features],
            "codings": [f.coding for f in self.features],
            "label": {"name": label.name, "dtype": label.dtype, "unit": label.unit, "coding": label.coding},
            "row_shape": list(self.row_shape),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def sha256(self) -> str:
        """SHA-256 of `canonical()` in hex."""
        return hashlib.sha256(self.canonical()).hexdigest()


def compare_features(mine: FeatureSet, theirs: FeatureSet) -> list[str]:
    """One line for each difference between two feature sets; empty if and only if their hashes are equal.

    More than 20 lines of a kind are only counted.
    """
    lines = []
    here, there = ({f.name: f for f in side.features} for side in (mine, theirs))
    lines += _some([f"'{name}' is only in the first" for name in here if name not in there])
    lines += _some([f"'{name}' is only in the second" for name in there if name not in here])
    changed = []
    for name in here:
        if name in there:
            for part in ("unit", "coding"):
                first, second = getattr(here[name], part), getattr(there[name], part)
                if first != second:
                    changed.append(f"'{name}': {part} {_quote(first)} in the first, {_quote(second)} in the second")
    lines += _some(changed)
    if set(here) == set(there):
        for index, (first, second) in enumerate(zip(mine.names, theirs.names, strict=True)):
            if first != second:
                lines.append(f"the order differs from column {index}: '{first}' and '{second}'")
                break
    for part in ("name", "dtype", "unit", "coding"):
        first, second = getattr(mine.label, part), getattr(theirs.label, part)
        if first != second:
            lines.append(f"label: {part} {_quote(first)} in the first, {_quote(second)} in the second")
    if mine.row_shape[1:] != theirs.row_shape[1:]:
        lines.append(f"rows have shape {mine.row_shape} in the first, {theirs.row_shape} in the second")
    return lines


def texts(name: str, text: str) -> list[str]:
    """The list of texts in the JSON `text` of attribute `name`. Raises DataError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"attribute '{name}' is not a JSON list of texts", "make the file again")
    return value


def parse_label(text: str) -> Label:
    """The label in the JSON `text` of attribute `label`. Raises DataError."""
    try:
        value = json.loads(text)
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return Label(**value)
    except (ValueError, TypeError, RecursionError):
        pass
    raise DataError("attribute 'label' is not the JSON of a label", "make the file again")


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"and {more} more like this"]


def _quote(text: str) -> str:
    return f"'{text}'" if text else "none"


def _check_text(what: str, text: str, shortest: int, longest: int) -> None:
    if not isinstance(text, str) or not shortest <= len(text) <= longest or not text.isprintable():
        raise DataError(f"{what} must be {shortest} to {longest} printable characters", "rename it")
