"""Containers and numbers that another thread changes just while they are looked at: no race is left to chance."""

from __future__ import annotations

import threading
from collections.abc import Callable, ItemsView, Iterator, ValuesView
from typing import Any

_A_MOMENT_S = 0.3  # what another thread gets to come in between; where a lock keeps it out it comes in later
PATIENCE_S = 120.0  # a test that needs it hangs


class Meddler:
    """Another thread's `work`, begun once, in the middle of something. `with`: at the end it must have succeeded."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._failures: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def come_in(self) -> None:
        """Begin the work, if that was not done, and give it a moment."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            self._thread.join(_A_MOMENT_S)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failures.append(error)

    def __enter__(self) -> Meddler:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            return
        assert self._thread is not None, "nobody looked at it"
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it hangs"
        if self._failures:
            raise self._failures[0]


def _meddled(them: Iterator[Any], meddler: Meddler) -> Iterator[Any]:
    for each in them:
        meddler.come_in()
        yield each


class MeddledSet(set[Any]):
    """A set that is changed after the first element of a loop over it."""

    meddler: Meddler

    def __iter__(self) -> Iterator[Any]:
        return _meddled(super().__iter__(), self.meddler)


class MeddledDict(dict[Any, Any]):
    """A dict that is changed after the first key of a loop over it, and between a look for a key and its setting."""

    meddler: Meddler

    def __iter__(self) -> Iterator[Any]:
        return _meddled(super().__iter__(), self.meddler)

    def keys(self) -> Any:
        return list(iter(self))

    def items(self) -> ItemsView[Any, Any]:
        found: Any = _meddled(iter(super().items()), self.meddler)
        return found  # type: ignore[no-any-return]

    def values(self) -> ValuesView[Any]:
        found: Any = _meddled(iter(super().values()), self.meddler)
        return found  # type: ignore[no-any-return]

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:  # as CPython does where a key's hash is computed by Python
            self.meddler.come_in()
            self[key] = default
        return self[key]


class MeddledList(list[Any]):
    """A list from which something is taken just before something is taken."""

    meddler: Meddler

    def pop(self, at: Any = -1) -> Any:
        self.meddler.come_in()
        return super().pop(at)


class MeddledNumber:
    """An attribute of a class that is changed between being read and being written."""

    def __init__(self) -> None:
        self.meddler: Meddler | None = None
        self._value = 0

    def __get__(self, owner: object, kind: object = None) -> int:
        value = self._value
        if self.meddler is not None:
            self.meddler.come_in()
        return value

    def __set__(self, owner: object, value: int) -> None:
        self._value = value
