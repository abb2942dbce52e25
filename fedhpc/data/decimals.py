"""Numbers written in decimal: which texts are one, and which of them float32 can hold as they are written.

A fraction that rounds (0.1) is a measurement and is taken. A whole number whose digits would change, a number that
would become 0, and one whose point may separate thousands are refused: they would be other numbers in the store.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np

LARGEST_EXACT = 1 << 24  # beyond this, float32 skips whole numbers
LARGEST_LABEL = 1 << 53  # labels pass through float64
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).smallest_normal)  # below it digits are lost, down to 0
_LONGEST = 64
_HINT = "docs/data.md says what a column may hold"
_FEWER_DIGITS = (
    "write it in a larger unit, or counted from a nearer start (days, not seconds or YYYYMMDD), in the file; if its "
    "last digits do not matter, type = 'number' and rounding = 'allow' for this column"
)

# Python's float() also takes "nan", "infinity" and "1_000", none of which a data file should mean.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)  # a comma is refused before, or said to be decimal
_SEVERAL_MARKS = re.compile(r"[+-]?[\d., '\u00a0\u2009\u202f]*\d", re.ASCII)


class CellError(ValueError):
    """A cell that does not fit: what was expected, never the cell, which is personal data; and what would help."""

    def __init__(self, what: str, hint: str = _HINT) -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True)
class Decimals:
    """How a file writes its numbers."""

    mark: Literal[".", ","] = "."  # before the fraction
    said: bool = True  # the recipe says that a mark before three digits is the decimal one
    semicolons: bool = False  # the file's delimiter is ';', so its country may write thousands with a point

    def value(self, text: str) -> float | None:
        """The number that `text` spells; None if it is none or two, or float64 would hold 0 or infinity for it."""
        plain = None if self._has_two_readings(text) else self._with_point(text)
        value = None if plain is None else float(plain)
        return None if value is None or math.isinf(value) or (not value and _has_digits(str(plain))) else value

    def number(self, text: str, rounding: Literal["refuse", "allow"] = "refuse") -> float:
        """The number, which float32 can hold; with `rounding` its last digits may go. Raises CellError."""
        plain = self._number(text)
        value = float(plain)
        if abs(value) > _LARGEST:
            raise CellError("it is too large for float32", "choose a larger unit")
        if abs(value) < _SMALLEST and (value or _has_digits(plain)):
            raise CellError(
                "it is so small that float32 would hold 0 or lose digits",
                "write its logarithm, or a smaller unit, in the file",
            )
        if abs(value) > LARGEST_EXACT and rounding == "refuse" and _loses_digits(plain, value):
            raise CellError("float32 does not hold all digits of this whole number", _FEWER_DIGITS)
        return value

    def measured(self, text: str) -> float:
        """The number as float64, for a comparison. Raises CellError."""
        plain = self._number(text)
        value = float(plain)
        if math.isinf(value):
            raise CellError("it is too large", "choose a larger unit")
        if not value and _has_digits(plain):
            raise CellError("it is so small that float64 would hold 0", "choose a smaller unit")
        return value

    def integer(self, text: str, largest: int = LARGEST_EXACT) -> int:
        """A whole number of at most `largest`, also written as 63.0. Raises CellError."""
        if not self.said and _THOUSANDS.fullmatch(text) and text.endswith(".000"):
            raise CellError(
                "a point before three zeros: does it separate thousands?",
                "take it out of the file; or, in [source], decimal = '.' if it is the decimal one",
            )
        plain = self._number(text)
        value = float(plain)
        exact = Decimal(plain) if value and math.isfinite(value) else Decimal(0)  # Decimal has limits for exponents
        if math.isinf(value) or abs(exact) > largest:
            raise CellError(
                f"it is larger than {largest}, the largest whole number held exactly",
                _FEWER_DIGITS if largest == LARGEST_EXACT else "labels are classes or counts; is this an identifier?",
            )
        whole = int(exact)
        if exact != whole or (not value and _has_digits(plain)):
            raise CellError("it is not a whole number", "type = 'number' takes fractions, at every site")
        return whole

    def _number(self, text: str) -> str:
        if self._has_two_readings(text):
            raise CellError(
                "one point and three digits after it, in a file with semicolons: is it a fraction, or thousands?",
                "in [source], decimal = '.' if the point is the decimal one; else take the points out of the file",
            )
        plain = self._with_point(text)
        if plain is not None:
            return plain
        other = "," if self.mark == "." else "."
        if len(text) <= _LONGEST and _SEVERAL_MARKS.fullmatch(text):
            if text.count(other) == 1 and self.mark not in text:
                word = "comma" if other == "," else "point"
                raise CellError(
                    f"it is not a number (there is a {word} in it)",
                    f"in [source], decimal = '{other}' if the {word} is the decimal one; else take it out of the file",
                )
            raise CellError("it is not a number (points, commas or blanks in it)", "take out what separates thousands")
        example = "-12.5 or 1e3, with a point" if self.mark == "." else "-12,5 or 1e3, with a comma"
        raise CellError(f"it is not a number (write it like {example} and no units)")

    def _has_two_readings(self, text: str) -> bool:
        return self.semicolons and not self.said and _THOUSANDS.fullmatch(text) is not None

    def _with_point(self, text: str) -> str | None:
        if len(text) > _LONGEST:
            return None
        if self.mark == ",":
            if "." in text:
                return None
            text = text.replace(",", ".")
        return text if _NUMBER.fullmatch(text) else None


def as_stored(value: float) -> float:
    """A fraction as float32 will hold it, to compare it with one of a store; anything else unchanged."""
    with np.errstate(over="ignore"):
        held = float(np.float32(value))
    return held if not value.is_integer() and held != 0 else value


def _has_digits(plain: str) -> bool:
    """Whether the number is not 0, even where a float would be."""
    return any(digit in "123456789" for digit in plain.lower().partition("e")[0])


def _loses_digits(plain: str, value: float) -> bool:
    """Whether float32 has other digits before the point than were written. Zeros at the end are a unit, not digits."""
    whole = abs(int(Decimal(plain)))
    digits = len(str(whole).rstrip("0"))
    return Decimal(f"{abs(float(np.float32(value))):.{digits - 1}e}") != whole
