"""Going on after failures: a few connections to the relay, and requests that are tried until patience ends.

A failure of the network is retried with growing pauses until nothing has moved for `total_s`; then the site ends with
exit code 69. Whoever waits is told once a second through `on_retry`.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from fedhpc.errors import PeersError
from fedhpc.exchange.http_link import Link, LinkDown, RelayAccess, site_context

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How long to go on. Pauses double from `first_s` to `longest_s`; nothing moved for `total_s`: give up."""

    total_s: float = 300.0
    first_s: float = 0.25
    longest_s: float = 30.0


@dataclass(frozen=True)
class Retry:
    """What `on_retry` is told, about once a second while the client pauses."""

    what: str
    reason: str
    seconds_left: float  # until the next try
    patience_left_s: float  # until PeersError


@dataclass
class Clock:
    """When something last moved; shared by the connections of one transfer."""

    moved: float = field(default_factory=time.monotonic)
    failures: int = 0

    def tick(self) -> None:
        """Something has moved."""
        self.moved, self.failures = time.monotonic(), 0


class Links:
    """At most `count` connections to one relay. Thread-safe."""

    def __init__(self, access: RelayAccess, count: int, patience: Patience, on_retry: Callable[[Retry], None]) -> None:
        self.count = count
        self._url, self._patience, self._on_retry = access.url, patience, on_retry
        context = site_context(access)
        self._free: queue.LifoQueue[Link] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(Link(access, context))
        self._closed = threading.Event()

    def persist(self, what: str, act: Callable[[Link], _T], clock: Clock | None = None) -> _T:
        """`act` on a connection, again after every LinkDown, until nothing has moved for the patience (PeersError)."""
        clock = clock or Clock()
        while True:
            stale = False
            try:
                with self._one() as link:
                    stale = link.used
                    return act(link)
            except LinkDown as down:
                reason = str(down)
            if stale and clock.failures == 0:
                clock.failures = 1  # an idle connection that the relay had closed: open another at once
                continue
            pause = min(self._patience.longest_s, self._patience.first_s * 2 ** min(clock.failures, 20))
            pause *= random.uniform(0.5, 1.0)  # noqa: S311 - keeps sites from returning all at once
            clock.failures += 1
            if self._closed.is_set() or time.monotonic() + pause > clock.moved + self._patience.total_s:
                raise PeersError(
                    f"the relay {self._url} cannot be reached: {reason}",
                    f"tried to {what} for {self._patience.total_s:.0f} s; is it running, and may this host dial out?",
                )
            self._pause(what, reason, pause, clock.moved + self._patience.total_s)

    def each(self, pieces: list[tuple[int, int]], work: Callable[[tuple[int, int]], None]) -> None:
        """`work` on all pieces, several at once; the first failure ends it."""
        if not pieces:
            return
        with ThreadPoolExecutor(min(self.count, len(pieces))) as pool:
            futures = [pool.submit(work, piece) for piece in pieces]
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            for future in done:
                future.result()

    def close(self) -> None:
        """Close all connections; a thread that pauses gives up."""
        self._closed.set()
        while True:
            try:
                self._free.get_nowait().close()
            except queue.Empty:
                return

    def _pause(self, what: str, reason: str, seconds: float, end: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._on_retry(Retry(what, reason, left, max(0.0, end - time.monotonic())))
            if self._closed.wait(min(left, 1.0)):
                return

    @contextlib.contextmanager
    def _one(self) -> Iterator[Link]:
        link = self._free.get()
        try:
            yield link
        except BaseException:
            link.close()  # a half-sent request or half-read answer must not meet the next one
            raise
        finally:
            self._free.put(link)
