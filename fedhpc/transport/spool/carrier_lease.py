"""One carrier for a spool directory: its sign of life is its lease, on whichever host it runs.

Locks of shared file systems cannot be relied on, and process numbers mean nothing on another host, so a second
carrier looks whether the first one's file changes. If both ran, nothing would break: they do the same.
"""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from fedhpc.errors import PeersError, StorageError
from fedhpc.transport.spool.folder import MOST_NOTE_BYTES, SpoolFolder, read_file, write_file
from fedhpc.transport.spool.notes import CarrierLife, read_note, to_bytes

BEAT_S = 2.0
STALE_S = 60.0  # other hosts may see a new file that late


class Lease:
    """This carrier's place in a spool directory, from `take` to `end`."""

    def __init__(self, folder: SpoolFolder, moved: Callable[[], int]) -> None:
        """`moved`: a number that grows when the relay answers."""
        self._folder, self._moved = folder, moved
        self._life = CarrierLife(secrets.token_hex(8), socket.gethostname(), os.getpid(), _place())
        self._lock = threading.Lock()

    def take(self, say: Callable[[str], None], stopping: threading.Event, stale_s: float = STALE_S) -> None:
        """Become the carrier. Raises PeersError if there is one, StorageError if nothing can be written here."""
        first = self._read()
        if first is not None and not first.ended and not _has_died(first):
            say(f"looking whether the carrier on {first.host} (process {first.pid}) still runs")
            end = time.monotonic() + stale_s
            while time.monotonic() < end and not stopping.is_set():
                now = self._read()
                if now is not None and now != first and not now.ended:
                    raise PeersError(
                        f"{self._folder.root} is carried already, on {now.host} by process {now.pid}, "
                        f"last sign of life {now.at}",
                        "one carrier is enough; end that one first, or wait until its pass is over",
                    )
                if now is None or now.ended or _has_died(now):
                    break
                stopping.wait(0.2)
        self.beat("")

    def beat(self, trouble: str) -> None:
        """Show that this carrier lives. Raises PeersError if another one has taken its place."""
        with self._lock:
            if self._life.ended:
                return
            self._require()
            at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._life = replace(
                self._life, beats=self._life.beats + 1, moved=self._moved(), at=at, trouble=trouble[:300]
            )
            write_file(self._folder.carrier, to_bytes(self._life))

    def end(self) -> None:
        """Give up the place, if it is still this carrier's."""
        with self._lock, suppress(PeersError, StorageError):
            self._require()
            self._life = replace(self._life, beats=self._life.beats + 1, ended=True)
            write_file(self._folder.carrier, to_bytes(self._life))

    def _require(self) -> None:
        if not self._life.beats:
            return
        there = self._read()
        if there is not None and there.carrier != self._life.carrier:
            raise PeersError(
                f"{self._folder.root} is now carried by another carrier, on {there.host} by process {there.pid}",
                "this carrier had shown no sign of life for a while; one is enough",
            )

    def _read(self) -> CarrierLife | None:
        return read_note(CarrierLife, read_file(self._folder.carrier, MOST_NOTE_BYTES))


def _place() -> str:
    """Equal for processes that see each other's numbers: the host since its start, and the container."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _has_died(life: CarrierLife) -> bool:
    """Whether that carrier has certainly ended; unknown on another host."""
    if not life.place or life.place != _place() or life.pid < 1:
        return False
    try:
        os.kill(life.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
