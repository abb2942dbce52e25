"""How many sites may collude, be lost, and must answer (docs/protocol.md section 1), and who masks with whom."""

from __future__ import annotations

from dataclasses import dataclass

from fedhpc.errors import PolicyError

MAX_SITES = 100


@dataclass(frozen=True)
class Thresholds:
    """N sites, of which at most t collude; τ answers open a sum, so at most d = N − τ may be lost."""

    sites: int
    colluders: int
    threshold: int

    @property
    def losses(self) -> int:
        """d, the sites that one attempt may lose."""
        return self.sites - self.threshold


def choose_thresholds(
    sites: int, colluders: int | None = None, threshold: int | None = None, *, accept_two_sites: bool = False
) -> Thresholds:
    """The thresholds of a roster of `sites`, by default or as configured.

    2τ > N + t keeps two different sets from both finding τ answers; τ ≥ t + 2 keeps every opened sum over at least
    two honest sites. Raises PolicyError, with the numbers, for anything else.
    """
    if sites > MAX_SITES:
        raise PolicyError(f"{sites} sites; a federation has at most {MAX_SITES}")
    if sites == 2 and accept_two_sites:
        if colluders not in (None, 0) or threshold not in (None, 2):
            raise PolicyError("two sites allow only colluders = 0 and threshold = 2")
        return Thresholds(2, 0, 2)
    if sites < 3:
        raise PolicyError(
            f"{sites} {'site' if sites == 1 else 'sites'} with masking on: the sum of two shows each the other's",
            "use at least 3 sites, or set [secure] accept_two_sites = true for two that trust each other",
        )
    t = max(1, (sites - 1) // 3) if colluders is None else colluders
    tau = (sites + t) // 2 + 1 if threshold is None else threshold
    if t < 1:
        raise PolicyError(f"colluders = {t}", "every surviving site learns the self seeds, so at least 1")
    if not (2 * tau > sites + t and max(3, t + 2) <= tau <= sites):
        raise PolicyError(
            f"N = {sites}, colluders t = {t}, threshold τ = {tau} is not safe",
            f"needed: 2τ > N + t ({2 * tau} > {sites + t}), τ ≥ max(3, t + 2) = {max(3, t + 2)}, τ ≤ N",
        )
    return Thresholds(sites, t, tau)


def check_degree(degree: int, thresholds: Thresholds) -> None:
    """Refuse a sparse mask graph that t colluders and d losses could cut (k ≥ t + d + 1, k even). PolicyError."""
    needed = thresholds.colluders + thresholds.losses + 1
    if degree % 2 or degree < needed:
        raise PolicyError(
            f"degree = {degree} is not safe", f"it must be even and at least t + d + 1 = {needed} (0 = complete graph)"
        )


def neighbours(place: int, count: int, degree: int) -> list[int]:
    """Places that `place` of 0..count-1 shares a mask with: all others, or those at distance 1..degree/2.

    That not every two sites need a mask is from Bell et al. (2020); this graph is a fixed circulant, not a random one.
    """
    if degree == 0 or degree >= count - 1:
        return [p for p in range(count) if p != place]
    near = {(place + step) % count for d in range(1, degree // 2 + 1) for step in (d, -d)}
    return sorted(near - {place})
