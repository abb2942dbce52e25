"""Whom a round is proposed to, and when: the three policies of [cohort], as pure functions.

The caller says who is ready since when, who is still heard of, and what time it is; the answer is a cohort or a time to
ask again. Nothing secret depends on it: a relay that decides otherwise can only make sites wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedhpc.cohort.settings import CohortSettings

Sites = frozenset[int]


@dataclass(frozen=True)
class Situation:
    """What is known of a round that has no open attempt. Times in seconds, all of one clock."""

    sites: Sites
    """All of the roster."""
    threshold: int
    """τ."""
    needs_all: bool
    """Whether the sum means something over all sites only."""
    ready: Mapping[int, float]
    """Site -> when it became ready."""
    fitting: Sites
    """The ready sites that agree on what is summed; the others are proposed too, but do not count as ready."""
    alive: Sites | None = None
    """The sites heard of lately; None in a first attempt, where a site that is ready may be busy training."""
    opened: Sites | None = None
    """The set that an earlier attempt was answered over: the round can open over this one only."""


@dataclass(frozen=True)
class Propose:
    """Propose an attempt over these sites now."""

    cohort: tuple[int, ...]  # rising


@dataclass(frozen=True)
class Wait:
    """Ask again when something has changed, or at a time."""

    until: float | None = None


Decision = Propose | Wait


def decide(settings: CohortSettings, known: Situation, now: float) -> Decision:
    """Propose or wait. A cohort has τ sites or more, all of them ready, and alive where that is known."""
    here = frozenset(known.ready) & known.sites
    if known.alive is not None:
        here &= known.alive
    if known.opened is not None:
        return _all_of(known.opened, here)
    if known.needs_all or settings.policy == "sync":
        return _all_of(known.sites, here)
    minimum = least(settings, known.threshold)
    times = sorted(known.ready[u] for u in here & known.fitting)
    if len(times) < minimum:
        return Wait()
    if settings.policy == "quorum" and here != known.sites:
        until = times[minimum - 1] + settings.grace_s
        if now < until:
            return Wait(until)
    return Propose(tuple(sorted(here)))


def least(settings: CohortSettings, threshold: int) -> int:
    """How many sites `quorum` and `buffered` begin with: `minimum`, but never fewer than τ."""
    return threshold if settings.minimum is None else max(settings.minimum, threshold)


def _all_of(wanted: Sites, here: Sites) -> Decision:
    return Propose(tuple(sorted(wanted))) if wanted and wanted <= here else Wait()
