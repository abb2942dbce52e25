"""The Life of a process in a batch job: told to stop by a signal, or by the clock.

Ranks look at it at step boundaries and agree (rounds/local_round.py); leaders look at it while they wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from typing_extensions import override

from fedhpc.app.life.settings import LifeSettings
from fedhpc.app.life.stop_signals import Told
from fedhpc.federation.life import Life, Stage

_AFTER_TERM_S = 10.0  # Slurm's KillWait is 30 s, and a checkpoint has to fit into it
_AFTER_USR2_S = 60.0  # where nobody knows when the job ends
_KEPT_TIMES = 100


class JobLife(Life):
    """Decides when a process in a batch job begins a round, keeps a checkpoint and stops."""

    def __init__(
        self,
        settings: LifeSettings,
        told: Told,
        stage: Stage = "all",
        end: float | None = None,
        earlier: Iterable[float] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`end`: Unix time of the job's end, if known. `earlier`: seconds that rounds took in earlier jobs."""
        self.stage: Stage = stage
        # A link of a chain that has waited in vain makes room for the next one; an inline job has failed.
        self.wait_s = math.inf if settings.wait_s is None and settings.kind != "inline" else settings.wait_s
        self._settings, self._end, self._clock = settings, end, clock
        self._told = told
        self._times = list(earlier)[-_KEPT_TIMES:]
        self._rounds = 0
        self._has_trained = False
        self._kept_at = clock()

    @override
    def leaves(self) -> str:
        if self._told.by:
            return f"told to by {self._told.by}"
        left = self._left()
        return f"the job ends in {max(0.0, left):.0f} s" if left <= self._settings.margin_s else ""

    @override
    def must_leave(self) -> str:
        name = self._told.by
        if name:
            patience = _AFTER_TERM_S if name == "SIGTERM" else _AFTER_USR2_S if self._end is None else math.inf
            if self._clock() - self._told.since >= patience:
                return f"told to by {name}, {patience:.0f} s ago"
        left = self._left()
        return f"the job ends in {max(0.0, left):.0f} s" if left <= self._settings.margin_s else ""

    @override
    def may_begin(self) -> str:
        """The first round of a job always begins: work that is cut short is kept.

        A later one needs twice the 95th percentile of the rounds so far, checkpoint included.
        """
        if not self._rounds or not self._times or self._end is None:
            return ""
        likely = percentile_95(self._times)
        left = self._left() - self._settings.margin_s
        if 2 * likely <= left:
            return ""
        return f"{max(0.0, left):.0f} s are left, and a round takes up to {likely:.0f} s"

    @override
    def hands_on(self) -> bool:
        """True for a job that only exchanges, since it holds no GPU. Of a chain, one link at most waits."""
        return self._settings.kind != "inline" and (self.stage == "exchange" or self._has_trained)

    @override
    def trained(self) -> None:
        self._has_trained = True

    @override
    def round_took(self, seconds: float) -> None:
        self._rounds += 1
        self._times = [*self._times, seconds][-_KEPT_TIMES:]

    @override
    def keeps_now(self) -> bool:
        return 0 < self._settings.checkpoint_s <= self._clock() - self._kept_at

    @override
    def kept(self) -> None:
        self._kept_at = self._clock()

    def _left(self) -> float:
        return math.inf if self._end is None else self._end - self._clock()


def percentile_95(values: Iterable[float]) -> float:
    """The smallest of `values` that 95 % of them do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1]
