"""Which sites a set of opened sums would isolate: linear algebra over sets of sites, exact.

The same numbers x of this site in sums over the sets S1, S2, … tell those who hold them
Σ c_i (x + Σ_{v in S_i} x_v) for any coefficients c_i. A site knows its own numbers; so what counts is on which others a
combination of two or more different sets rests. One set alone is what a single sum shows anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction

MOST_SETS = 16  # that hang together by sites they share; more are refused unseen
_MOST_STEPS = 20_000

_Row = tuple[Fraction, ...]


class UnclearError(Exception):
    """There are too many different sets to rule an isolation out."""


def isolated(opened: Collection[frozenset[bytes]], new: frozenset[bytes], at_most: int) -> frozenset[bytes] | None:
    """The sites that `new` isolates together with sets that were `opened`; None if there are none.

    All sets are without this site itself. Isolated are sites that carry a combination of at least two different sets
    and are `at_most` many, or none at all while this site's own numbers stay. What the sets opened before isolate by
    themselves does not count: that is known. Raises UnclearError.
    """
    if new in opened:
        return None
    sets = _linked(set(opened) | {new}, new)
    if len(sets) < 2:
        return None
    if len(sets) > MOST_SETS:
        raise UnclearError
    patterns = _patterns(sets)
    sizes = [len(sites) for sites in patterns.values()]
    rows = [tuple(Fraction(i in p) for p in patterns) for i in range(len(sets))]
    before = [row for row, s in zip(rows, sets, strict=True) if s != new]
    if _own_alone(rows) > _own_alone(before):
        return frozenset()  # a combination without any other site: this site's own numbers
    search = _Search(rows, before, sizes, at_most)
    search.run(0, _basis(rows), 0)
    if search.found is None:
        return None
    names = list(patterns.values())
    return frozenset(site for j, used in enumerate(search.found) if used for site in names[j])


def _linked(sets: set[frozenset[bytes]], new: frozenset[bytes]) -> list[frozenset[bytes]]:
    """Those of `sets` that are linked with `new` through shared sites: others add sites of their own to any sum."""
    linked, reached = [new], set(new)
    rest = sets - {new}
    while near := [s for s in rest if s & reached]:
        linked += near
        reached |= set().union(*near)
        rest -= set(near)
    return sorted(linked, key=sorted)


def _patterns(sets: Sequence[frozenset[bytes]]) -> dict[frozenset[int], list[bytes]]:
    """The sites by which of the sets they are in: sites that are always together are told apart by no combination."""
    patterns: dict[frozenset[int], list[bytes]] = {}
    for site in sorted(frozenset().union(*sets)):
        patterns.setdefault(frozenset(i for i, s in enumerate(sets) if site in s), []).append(site)
    return patterns


class _Search:
    """Looks for the elementary vector of the sets' span, no multiple of one set, that rests on the fewest sites.

    Column by column, either all vectors vanish there (one dimension less) or the column's sites count.
    """

    def __init__(self, rows: list[_Row], before: list[_Row], sizes: list[int], at_most: int) -> None:
        self._sizes, self._most, self._steps = sizes, at_most, 0
        self._single = {_scaled(row) for row in rows}
        self._before = _basis(before)
        self.found: _Row | None = None

    def run(self, column: int, basis: list[_Row], weight: int) -> None:
        """From `column` on, within the span of `basis`; `weight` sites count already."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise UnclearError
        if not basis or weight > self._most:
            return
        if column == len(self._sizes):
            if len(basis) == 1 and _scaled(basis[0]) not in self._single and not self._is_known(basis[0]):
                self.found, self._most = basis[0], weight - 1
            return
        here = [row for row in basis if row[column]]
        if not here:
            self.run(column + 1, basis, weight)
            return
        pivot, *others = here
        cleared = [_less(row, row[column] / pivot[column], pivot) for row in others]
        self.run(column + 1, [row for row in basis if not row[column]] + cleared, weight)
        self.run(column + 1, basis, weight + self._sizes[column])

    def _is_known(self, row: _Row) -> bool:
        return len(_basis([*self._before, row])) == len(self._before)


def _own_alone(rows: Sequence[_Row]) -> int:
    """How many independent combinations rest on no other site, and on this one: 0 or 1."""
    return len(_basis([(Fraction(1), *row) for row in rows])) - len(_basis(rows))


def _less(row: _Row, ratio: Fraction, other: _Row) -> _Row:
    return tuple(x - ratio * y for x, y in zip(row, other, strict=True))


def _scaled(row: _Row) -> _Row:
    """The row divided by its first value that is not 0."""
    first = next(value for value in row if value)
    return tuple(value / first for value in row)


def _basis(rows: Sequence[_Row]) -> list[_Row]:
    """Rows that span the same and do not depend on each other."""
    basis: list[_Row] = []
    for row in rows:
        for known in basis:
            at = next(j for j, value in enumerate(known) if value)
            row = _less(row, row[at] / known[at], known)
        if any(row):
            basis.append(row)
    return basis
