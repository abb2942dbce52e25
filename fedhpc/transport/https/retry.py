"""Carries on after failures: connections to the relay, and requests that are tried until patience ends.

A failure of the network is retried with growing pauses until nothing has moved for `total_s`; then the site ends with
exit code 69. A waiting caller hears of it once a second through `on_retry`, which may end the wait.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fedhpc.errors import PeersError
from fedhpc.transport.https.link import Link, RelayAccess, site_context
from fedhpc.transport.link_problems import LinkDown
from fedhpc.transport.transport import Traffic

_MOST_ASKED_S = 60.0
_T = TypeVar("_T")
_Piece = TypeVar("_Piece")


@dataclass(frozen=True)
class Patience:
    """How long to keep trying. Pauses double from `first_s` to `longest_s`; nothing moved for `total_s`: give up."""

    total_s: float = 300.0
    first_s: float = 0.25
    longest_s: float = 30.0


@dataclass(frozen=True)
class Retry:
    """The argument of `on_retry`, about once a second while the client pauses, and with 0 s left before it gives up."""

    what: str
    reason: str  # begins with the relay's host:port
    seconds_left: float  # until the next try
    patience_left_s: float  # until PeersError


def pause_s(patience: Patience, failures: int, asked_s: float, left_s: float) -> float:
    """How long to pause after so many `failures` before this one; longer than `left_s`: give up.

    `asked_s`: what the other end asked for. It is heeded up to a minute, and not beyond the last try.
    """
    own: float = min(patience.longest_s, patience.first_s * 2 ** min(failures, 20))
    spread = random.uniform(0.5, 1.0)  # noqa: S311 - keeps sites from returning all at once
    own *= spread
    if own > left_s:
        return own
    return min(max(own, min(asked_s, _MOST_ASKED_S) * (0.5 + spread)), left_s)


class Clock:
    """When something last moved, and whether the transfer goes on; shared by the connections of one transfer."""

    def __init__(self) -> None:
        self.moved = time.monotonic()
        self.failures = 0
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._using: set[Link] = set()

    def tick(self) -> None:
        """Something has moved."""
        with self._lock:
            self.moved, self.failures = time.monotonic(), 0

    def failed(self) -> int:
        """Count one more failure since something moved; returns how many there were before."""
        with self._lock:
            self.failures += 1
            return self.failures - 1

    def go_on(self) -> None:
        """Raises Ended if the transfer has been ended. Called before each block."""
        if self.ended.is_set():
            raise Ended

    def end(self) -> None:
        """End the transfer: its connections are cut, so that no thread waits for a slow peer."""
        with self._lock:
            self.ended.set()
            for link in self._using:
                link.interrupt()

    @contextlib.contextmanager
    def using(self, link: Link) -> Iterator[None]:
        """Inside the block, `end` cuts `link`."""
        with self._lock:
            self.go_on()
            self._using.add(link)
        try:
            yield
        finally:
            with self._lock:
                self._using.discard(link)


class Ended(Exception):  # noqa: N818 - no error of its own: the first failure is the one that is raised
    """A part of a transfer was given up because the transfer has ended."""


class Links:
    """Connections to one relay: `count` for transfers, and one more for each other call that is under way. Thread-safe.

    So a call that waits at the relay never keeps a transfer waiting, nor the other way round.
    """

    def __init__(self, access: RelayAccess, count: int, patience: Patience, on_retry: Callable[[Retry], None]) -> None:
        self.count, self.traffic = count, Traffic()
        self._access, self._context = access, site_context(access)
        self.suite = access.suite
        """What Trees of the federation's objects are made of."""
        self._patience, self._on_retry = patience, on_retry
        self.met = threading.Event()
        self._lock = threading.Lock()
        self._all: list[Link] = []
        self._free: list[Link] = []  # the last one used comes first: it is most likely still open
        self._transfers = threading.BoundedSemaphore(count)
        self._closed = threading.Event()

    def persist(
        self, what: str, act: Callable[[Link], _T], clock: Clock | None = None, *, transfer: bool = False
    ) -> _T:
        """Call `act` on a connection, again after every LinkDown; PeersError once nothing moved for the patience."""
        clock = clock or Clock()
        while True:
            stale = False
            try:
                slot = self._transfers if transfer else contextlib.nullcontext()
                with slot, self._one() as link, clock.using(link):
                    stale = link.used
                    return act(link)
            except LinkDown as down:
                reason, asked_s = str(down), down.retry_after_s
            clock.go_on()
            if self._closed.is_set():
                raise _closed()
            failures = clock.failed()
            if stale and failures == 0:
                continue  # an idle connection that the relay had closed: open another at once
            left = clock.moved + self._patience.total_s - time.monotonic()
            pause = pause_s(self._patience, failures, asked_s, left)
            placed = f"{self._access.place}: {reason}"
            if pause > left:
                self._on_retry(Retry(what, placed, 0.0, 0.0))
                raise PeersError(
                    f"the relay {self._access.url} cannot be reached: {reason}",
                    f"tried to {what} for {self._patience.total_s:.0f} s; is it running, and may this host dial out?",
                )
            self._pause(what, placed, pause, clock)

    def each(self, pieces: Sequence[_Piece], work: Callable[[_Piece], None], clock: Clock, ways: int = 0) -> None:
        """Call `work` on all pieces in order, `ways` (default: as many as connections) at once.

        The first failure ends the clock's transfer and is raised once the others have stopped.
        """
        failures: list[BaseException] = []

        def guarded(piece: _Piece) -> None:
            if clock.ended.is_set():
                return
            try:
                work(piece)
            except Ended:
                pass
            except BaseException as error:
                failures.append(error)
                clock.end()

        if pieces:
            with ThreadPoolExecutor(min(ways or self.count, len(pieces))) as pool:
                try:
                    for future in [pool.submit(guarded, piece) for piece in pieces]:
                        future.result()
                except BaseException:  # this thread was interrupted
                    clock.end()
                    raise
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Close all connections; calls that wait or pause end with PeersError."""
        self._closed.set()
        with self._lock:
            for link in self._all:
                link.abort()
            for link in self._free:
                link.close()

    def _pause(self, what: str, reason: str, seconds: float, clock: Clock) -> None:
        until, end = time.monotonic() + seconds, clock.moved + self._patience.total_s
        while (left := until - time.monotonic()) > 0:
            self._on_retry(Retry(what, reason, left, max(0.0, end - time.monotonic())))
            if self._closed.wait(min(left, 1.0)):
                return
            clock.go_on()

    @contextlib.contextmanager
    def _one(self) -> Iterator[Link]:
        with self._lock:
            if self._closed.is_set():
                raise _closed()
            if not self._free:
                self._free.append(Link(self._access, self._context, self.traffic, self.met))
                self._all.append(self._free[-1])
            link = self._free.pop()
        try:
            yield link
        except BaseException:
            link.close()  # a half-sent request or half-read answer must not meet the next one
            raise
        finally:
            with self._lock:
                self._free.append(link)
                if self._closed.is_set():
                    link.close()


def _closed() -> PeersError:
    return PeersError("the connection to the relay was closed by this program")
