"""Waiting for other sites, and saying for whom: a silent wait looks like a program that hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from fedhpc.exchange.https import Until, Watch

_log = logging.getLogger("fedhpc.federation")
_FIRST_S = 10.0
_RAREST_S = 600.0


def wait_telling(
    watch: Watch, seen: Callable[[Watch], bool], deadline: float, what: Callable[[], str], until: Until | None = None
) -> bool:
    """As `Watch.wait`. After 10 s, and then ever more rarely, a warning says `what()` this site waits for."""
    pause = _FIRST_S
    while not watch.wait(seen, min(deadline, time.monotonic() + pause), until=until):
        if time.monotonic() >= deadline:
            return False
        _log.warning("waiting: %s", what())
        pause = min(2 * pause, _RAREST_S)
    return True
