"""Waiting for other sites, and saying for whom: a silent wait looks like a program that hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from fedhpc.sums.over_relay.exchange import RelayExchange, Until, Watch, objects_of
from fedhpc.transport.link_problems import RelayProblem

_log = logging.getLogger("fedhpc.federation")
_FIRST_S = 60.0
_RAREST_S = 600.0


def wait_telling(
    watch: Watch,
    seen: Callable[[Watch], bool],
    deadline: float,
    what: Callable[[], str],
    until: Until | None = None,
    first_s: float = _FIRST_S,
) -> bool:
    """As `Watch.wait`. After `first_s`, and then ever more rarely, a warning says `what()` this site waits for."""
    pause = first_s
    while not watch.wait(seen, min(deadline, time.monotonic() + pause), until=until):
        if time.monotonic() >= deadline:
            return False
        _log.warning("waiting: %s", what())
        pause = min(2 * pause, _RAREST_S)
    return True


def late_sites(exchange: RelayExchange, names: Sequence[str], round_: int) -> str:
    """Whom the relay waits for in a round, in words. `names`: of the sites, in roster order.

    A relay that does not answer this costs a name in a warning, and not the round.
    """
    try:
        standing = exchange.standing()
    except RelayProblem as problem:
        return f"the relay does not say for whom it waits ({problem.what})"
    for entry in objects_of(standing, "sums"):
        late = entry.get("late")
        if entry.get("sum") == round_ and isinstance(late, list):
            named = [name for u, name in enumerate(names, start=1) if u in late]
            return f"the relay waits for site {', '.join(named)}" if named else "the relay waits for no site"
    return "the relay knows nothing of it"
