"""Waits in a spool directory: looks again and again, and gives up when the carrier shows no sign of life.

Looking is the only way: file systems that several machines share do not notify of a change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from fedhpc.errors import PeersError
from fedhpc.transport.https.retry import Retry
from fedhpc.transport.spool.folder import MOST_NOTE_BYTES, SpoolFolder, read_file, write_file
from fedhpc.transport.spool.notes import CarrierLife, SiteLife, read_note, to_bytes

COMMAND = "fedhpc spool carry FEDERATION.TOML --site SITE.TOML --watch"
_FIRST_S, _LONGEST_S = 0.02, 1.0
_LOOK_S = 1.0  # between looks at the carrier's sign of life
_BEAT_S = 5.0  # between the site's own
_QUIET_S = 10.0  # without a sign before people are told
_TIMES_TOLD = 60  # at most; between two passes of a carrier that cron starts nothing is wrong
_T = TypeVar("_T")


class SpoolPatience:
    """One process's waiting in one spool directory. Thread-safe."""

    def __init__(self, folder: SpoolFolder, total_s: float, on_retry: Callable[[Retry], None], *, speaks: bool) -> None:
        """`total_s` without a sign of the carrier, or of the relay through it: give up. `speaks`: for the site."""
        self._folder, self._total_s, self._on_retry, self._speaks = folder, total_s, on_retry, speaks
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._seen: CarrierLife | None = None
        now = time.monotonic()
        self._changed, self._looked, self._beaten = now, now - _LOOK_S, now - _BEAT_S
        self._told = now - total_s
        self._beats = time.time_ns() // 1_000_000  # a site that starts again counts on from what it wrote before

    def poll(self, what: str, look: Callable[[], _T | None], wait_s: float | None = None) -> _T | None:
        """Call `look()` again and again until it gives something; None after `wait_s`.

        Raises PeersError if the carrier gives no sign of life for too long, or after `close`.
        """
        end = None if wait_s is None else time.monotonic() + wait_s
        pause = _FIRST_S
        while True:
            if self.closed.is_set():
                raise PeersError("the spool was closed by this program")
            self._beat()
            found = look()
            now = time.monotonic()
            if found is not None:
                return found
            if end is not None and now >= end:
                return None
            self._check(what, now)
            self.closed.wait(pause if end is None else min(pause, end - now))
            pause = min(1.5 * pause, _LONGEST_S)

    def close(self) -> None:
        """End all polls, and tell the carrier that this site waits for nothing."""
        if not self.closed.is_set():
            self.closed.set()
            if self._speaks and self._folder.spool.is_dir():
                write_file(self._folder.runs, to_bytes(SiteLife(self._beats + 1, ended=True)))

    def _beat(self) -> None:
        if not self._speaks:
            return
        with self._lock:
            now = time.monotonic()
            if now - self._beaten < _BEAT_S:
                return
            self._beaten = now
            self._beats += 1
            write_file(self._folder.runs, to_bytes(SiteLife(self._beats)))

    def _check(self, what: str, now: float) -> None:
        with self._lock:
            since = now - self._looked
            if since < _LOOK_S:
                return
            self._looked = now
            life = read_note(CarrierLife, read_file(self._folder.carrier, MOST_NOTE_BYTES))
            before, self._seen = self._seen, life or self._seen
            if since > _QUIET_S or (life and (before is None or _sign(before) != _sign(life))):
                self._changed = now  # it moves, or no poll has looked for it lately
            quiet = now - self._changed
        if quiet > self._total_s:
            self._on_retry(Retry(what, f"spool: {self._last_sign()}", 0.0, 0.0))
            raise PeersError(
                f"the spool {self._folder.root} is not carried: {self._last_sign()}",
                f"tried to {what} for {self._total_s:.0f} s; on a machine with a route: {COMMAND}",
            )
        if quiet > _QUIET_S and now - self._told > max(_LOOK_S, self._total_s / _TIMES_TOLD):
            self._told = now
            self._on_retry(Retry(what, f"spool: {self._last_sign()}", _LOOK_S, self._total_s - quiet))

    def _last_sign(self) -> str:
        life = self._seen
        if life is None:
            return "no carrier has been seen"
        words = f"the carrier on {life.host} (process {life.pid})"
        if life.ended:
            return f"{words} ended at {life.at}"
        return f"{words} gave its last sign of life at {life.at}" + (f": {life.trouble}" if life.trouble else "")


def _sign(life: CarrierLife) -> tuple[str, int]:
    """The sign that the relay is reached: a carrier that merely runs does not help."""
    return life.carrier, life.moved
