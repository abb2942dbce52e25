"""Every process that comes of this one ends with it: daemons, what left its session, and what minds no signal.

An orphan below a process that has called `adopt` becomes its child, so it stays a descendant. Scripts of peers have
this file beside them; it needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOOK_S = 0.05
_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER in <linux/prctl.h>


def adopt(on: bool = True) -> None:
    """From now on orphans below this process come to it, and not to the machine's first process; or no longer."""
    if ctypes.CDLL(None, use_errno=True).prctl(_CHILD_SUBREAPER, int(on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def parents() -> dict[int, int]:
    """Each process of the machine, with its parent; zombies are left out."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def children(of: int) -> list[int]:
    """The living children of a process."""
    return [pid for pid, parent in parents().items() if parent == of]


def descendants(of: int) -> list[int]:
    """The living descendants of a process, children before theirs."""
    above = parents()
    found: list[int] = []
    news = [of]
    while news:
        news = [pid for pid, parent in above.items() if parent in news]
        found += news
    return found


def reap() -> bool:
    """Take leave of the children that have ended, as nobody else may; whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def gone_within(seconds: float) -> bool:
    """Wait so long at most for all children to end; whether they have."""
    until = time.monotonic() + seconds
    while reap():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return True


def tell(pids: list[int], number: int) -> None:
    """Send a signal to processes, of which some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_descendants(patience_s: float = 30) -> None:
    """Until no child is left, also none that is started meanwhile; one that the kernel keeps is not waited for long."""
    until = time.monotonic() + patience_s
    while reap() and time.monotonic() < until:
        tell(descendants(os.getpid()), signal.SIGKILL)
        time.sleep(LOOK_S)


def end_descendants(patience_s: float = 5) -> None:
    """Ask every descendant once, also one that is started meanwhile, and kill what is left after `patience_s`."""
    until, asked = time.monotonic() + patience_s, set[int]()
    while reap() and time.monotonic() < until:
        news = [pid for pid in descendants(os.getpid()) if pid not in asked]
        asked.update(news)
        tell(news, signal.SIGTERM)
        time.sleep(LOOK_S)
    kill_descendants()


@contextlib.contextmanager
def none_left(patience_s: float = 5) -> Iterator[None]:
    """On the way out, whatever the reason, no descendant is left; SIGTERM and SIGINT lead out too.

    A second signal changes nothing: what is being ended is ended.
    """
    adopt()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def leave(number: int, _: Any) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        end_descendants(patience_s)
