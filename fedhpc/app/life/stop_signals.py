"""Signals that tell this process to stop. Handlers only remember; ranks look at what they remember between steps.

Our batch scripts send SIGUSR2 some minutes before the end; other scripts send SIGUSR1, which NCCL may catch. SIGTERM
comes with `scancel` and preemption and leaves about half a minute; from mpirun it leaves half a second.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_STOP = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM)


class Told:
    """The signal that came, and when."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.by = ""
        """The signal's name; "" before one has come."""
        self.since = 0.0
        self.ignored = False
        """Whether signals no longer count."""
        self.site_directory: Path | None = None
        """Where this rank's site keeps its checkpoints, once that is known."""

    def listen(self) -> None:
        """Install the handlers, as early as possible: until then each of the signals kills. In the main thread."""
        for number in _STOP:
            signal.signal(number, self.hear)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)  # a launcher may block them

    def ignore(self) -> None:
        """From now on no signal counts: this process ends anyway, and being killed at its exit would spoil its code."""
        self.ignored = True
        for number in _STOP:
            signal.signal(number, signal.SIG_IGN)

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """A signal came. SIGTERM after another is more urgent; the other way round nothing changes."""
        if not self.by or (number == signal.SIGTERM and self.by != "SIGTERM"):
            self.by, self.since = signal.Signals(number).name, self._clock()
