"""Signals that tell this process to stop. Handlers only remember; ranks look at it at step boundaries.

SIGUSR2 is what our batch scripts send some minutes before the end (NCCL catches SIGUSR1). SIGTERM comes with `scancel`
and preemption, and leaves about half a minute.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType


class Told:
    """The signal that came, and when."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.by = ""
        """The signal's name; "" while none came."""
        self.since = 0.0

    def listen(self) -> None:
        """Install the handlers, as early as possible: until then either signal kills. In the main thread."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self.hear)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR2, signal.SIGTERM))  # a launcher may block them

    def ignore(self) -> None:
        """From now on no signal counts: this process ends anyway, and being killed at its exit would spoil its code."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """A signal came. SIGTERM after SIGUSR2 is more urgent; the other way round nothing changes."""
        if not self.by or (number == signal.SIGTERM and self.by != "SIGTERM"):
            self.by, self.since = signal.Signals(number).name, self._clock()
