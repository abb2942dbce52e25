"""How a test's process stops at a named place, so that the test can kill it there: nothing of this is in the product.

It writes its number to the file FEDHPC_TEST_FROZEN and then does what FEDHPC_TEST_ACTION says:

    (nothing)  sleeps for good; the test kills it
    stop       stops as with SIGSTOP, all threads; the test lets it go on
    full       goes on, but can write no file beyond 1 MB: a full disk
    tiny       the same with 100 bytes
"""

from __future__ import annotations

import datetime
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Place = Callable[..., bool]
"""Whether a call with these arguments is the place."""

_once = threading.Lock()
_LIMITS = {"full": 1_000_000, "tiny": 100}


def freeze() -> None:
    """Say so and stop for good; only the first call of a process, whichever thread makes it."""
    if _once.acquire(blocking=False):
        marker = Path(os.environ["FEDHPC_TEST_FROZEN"])
        marker.with_name(marker.name + ".new").write_text(str(os.getpid()))
        marker.with_name(marker.name + ".new").rename(marker)
        action = os.environ.get("FEDHPC_TEST_ACTION", "")
        if action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action in _LIMITS:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMITS[action], resource.RLIM_INFINITY))
        else:
            while True:
                time.sleep(3600)


def around(owner: Any, name: str, when: str, here: Place) -> None:
    """Freeze `before` or `after` the function `name` of a class or module, where `here(*arguments)`."""
    real = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        stop = here(*arguments, **options)
        if stop and when == "before":
            freeze()
        result = real(*arguments, **options)
        if stop and when == "after":
            freeze()
        return result

    setattr(owner, name, call)


def shift_clock(*modules: Any) -> None:
    """The clock of this process is wrong by FEDHPC_TEST_SKEW seconds, as far as `modules` look at it."""
    skew = float(os.environ.get("FEDHPC_TEST_SKEW", "0"))
    if not skew:
        return
    real = time.time
    time.time = lambda: real() + skew

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=skew)

    class Module:
        datetime, timedelta, UTC = Shifted, datetime.timedelta, datetime.UTC

    for module in modules:
        module.datetime = Module


def nth(count: int, here: Place) -> Place:
    """The `count`-th time that `here` is so."""
    seen = 0
    lock = threading.Lock()

    def place(*arguments: Any, **options: Any) -> bool:
        nonlocal seen
        if not here(*arguments, **options):
            return False
        with lock:
            seen += 1
            return seen == count

    return place
