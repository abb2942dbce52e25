"""A recipe's lists of values (missing codes, aliases, classes), in which a number is found in every spelling.

-9, "-9.0", "-09" and "-9e0" are one code in a column of numbers: programs that met a blank write -9.0 for -9. In a
column of text they are different texts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Generic, TypeVar

from fedhpc.data.decimals import CellError, Decimals, as_stored
from fedhpc.data.spelling import visible

Value = TypeVar("Value")


class Lookup(Generic[Value]):
    """A table from texts to values."""

    def __init__(
        self, table: Mapping[str, Value], decimals: Decimals | None = None, *, float32: bool = False, case: bool = True
    ) -> None:
        """`decimals`: numbers are compared as numbers, with `float32` as the store holds them.

        Without `case`, capital and small letters are the same.
        """
        self._decimals, self._float32, self._case = decimals, float32, case
        self._names = list(table)
        self._texts = {self._text(text): value for text, value in table.items()}
        self.numbers: dict[float, Value] = {}
        for text, value in table.items():
            number = self._number(text)
            if number is None and decimals is not None:  # TOML and its readers write a point
                number = self._keyed(Decimals().value(text))
            if number is not None:
                self.numbers.setdefault(number, value)

    def get(self, text: str) -> Value | None:
        """The value of `text`, or None."""
        found = self._texts.get(self._text(text))
        if found is None and self.numbers and (number := self._number(text)) is not None:
            found = self.numbers.get(number)
        return found

    def known(self, text: str) -> Value:
        """The value of `text`. Raises CellError that names the texts there are."""
        found = self.get(text)
        if found is None:
            near = difflib.get_close_matches(text[:256], self._names, n=1)
            guess = f"; nearest: '{near[0]}'" if near else ""
            raise CellError(
                f"it is not one of {', '.join(repr(name) for name in self._names[:20])}{guess}",
                'aliases = { theirs = "ours" } in the recipe, or missing_markers if it means that nothing is known',
            )
        return found

    def _text(self, text: str) -> str:
        text = visible(text)
        return text if self._case else text.casefold()

    def _number(self, text: str) -> float | None:
        return None if self._decimals is None else self._keyed(self._decimals.value(text))

    def _keyed(self, number: float | None) -> float | None:
        return number if number is None or not self._float32 else as_stored(number)


def are_numbers(texts: Mapping[str, object], decimals: Decimals) -> bool:
    """Whether all `texts` are different numbers, so that a cell may be compared with them as a number."""
    values = [decimals.value(text) for text in texts]
    return None not in values and len(set(values)) == len(values)
