"""Every process that a script starts ends with it, also one that left its session, and also where it is told to end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def parents() -> dict[int, int]:
    """Each process of the machine, with its parent; zombies are left out."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def descendants(of: int) -> list[int]:
    """The living descendants of a process."""
    above = parents()
    found: list[int] = []
    news = [of]
    while news:
        news = [pid for pid, parent in above.items() if parent in news]
        found += news
    return found


def end_descendants(patience_s: float = 5) -> None:
    """Ask all, then make them, until no child is left; one that comes meanwhile is in the next look."""
    begin = time.monotonic()
    asked: set[int] = set()
    while reap():
        late = time.monotonic() - begin > patience_s
        for pid in descendants(os.getpid()):
            if late or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)


def reap() -> bool:
    """Take leave of the children that have ended, as nobody else may; whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """On the way out, whatever the reason, no descendant is left."""
    # An orphan comes to this process, not to the machine's first one, so it stays a descendant.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()
