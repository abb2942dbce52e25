"""What an update is worth that began from an older model (policy "buffered"), and how old it may be."""

from __future__ import annotations

from fedhpc.cohort.settings import CohortSettings
from fedhpc.errors import PolicyError


def discount(settings: CohortSettings, rounds_behind: int) -> float:
    """(1 + s)^-discount for an update whose model lies s = `rounds_behind` rounds behind; 1.0 for a fresh one.

    The factor is in (0, 1] (FedBuff's staleness scaling with a free exponent). Raises PolicyError beyond the bound.
    """
    check_staleness(settings, rounds_behind)
    return float((1.0 + rounds_behind) ** -settings.discount)


def check_staleness(settings: CohortSettings, rounds_behind: int) -> None:
    """Refuse an update that began from a model more than `staleness` rounds old, or from a later one. PolicyError."""
    if not 0 <= rounds_behind <= settings.staleness:
        raise PolicyError(
            f"an update that began {rounds_behind} rounds behind the present model",
            f"cohort.staleness allows {settings.staleness}; the site trains again from the present model",
        )
