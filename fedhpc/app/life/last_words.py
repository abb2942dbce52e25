"""What a rank says at once when the launcher above it is ending it.

mpirun leaves its ranks about half a second, which is too short for a checkpoint, and shows nothing that they write in
it. So the first rank writes where mpirun itself writes, from a thread that a signal wakes even while the main thread
is busy in a step.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from fedhpc.agreement import run_folder
from fedhpc.app.life.stop_signals import Told
from fedhpc.mpi import above


def listen(told: Told) -> None:
    """Be ready to speak, if mpirun started this rank. Called in the main thread, after `told` has its handlers."""
    found = above.launcher()
    if found is None:
        return
    process, name = found
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(wake, True)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)

    def speak() -> None:
        while True:
            if signal.SIGTERM in os.read(wake, 64) and not told.ignored:
                above.tell(process, last_words(name, told.site_directory))
                return

    threading.Thread(target=speak, daemon=True, name="last words").start()


def last_words(launcher: str, site_directory: Path | None) -> str:
    """Where the run stands, and what keeps a round's work; two lines. `site_directory`: None before it is known."""
    done = newest_round(site_directory)
    where = "before its first round was done" if done is None else f"in the middle of round {done + 1}"
    if site_directory is not None and any(site_directory.glob("outbox/*.work")):
        after = "from the work that was kept last"
    else:
        after = "from the beginning" if done is None else f"after round {done}"
    return (
        f"stopped {where}: {launcher} leaves its ranks half a second, which may be too short to keep the round's work\n"
        f"hint: run it again: it goes on {after}, to the same model; SIGUSR2 to {launcher} keeps the round's work\n"
    )


def newest_round(site_directory: Path | None) -> int | None:
    """The round of the newest checkpoint; None without any."""
    if site_directory is None:
        return None
    return max(run_folder.checkpoints(site_directory / "checkpoints"), default=None)
