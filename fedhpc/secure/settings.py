"""The [secure] section of federation.toml: how sums are hidden. Every site signs it; no site can weaken it alone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from fedhpc.errors import ConfigError
from fedhpc.secure.suite import Suite, suite_named
from fedhpc.secure.thresholds import Thresholds, check_degree, choose_thresholds

_CLASS = re.compile(r"[ !#-\[\]-~]{1,210}")


@dataclass(frozen=True)
class SecureSettings:
    """[secure]"""

    mode: Literal["pairwise", "off"] = "pairwise"
    """pairwise: every two sites share a mask. off: nothing is hidden; for benchmarks and public data."""
    lane_bits: int = 32
    """Bits of a model lane: 32, or 64 for float64 precision. 8 and 16 are reserved."""
    suite: Literal["sha256", "blake3"] = "sha256"
    """What Tree is made of. blake3 is several times as fast; sha256 needs no package, and is an approved algorithm."""
    bound: float | None = None
    """Largest absolute value in a site's update. Absent: a masked count of sites per exponent finds it each round."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """How values are rounded to the grid; stochastic rounding is unbiased and uses public random words."""
    colluders: int | None = None
    """t, sites that may pool what they know. Absent: max(1, (N-1)/3)."""
    threshold: int | None = None
    """τ, sites that must answer. Absent: (N+t)/2 + 1."""
    degree: int = 0
    """Partners of each site in the mask graph; 0 = all. Even and at least t + d + 1."""
    accept_two_sites: bool = False
    """Two sites can compute each other's values from the sum; set this only if both know and accept it."""
    accept_difference: tuple[str, ...] = ()
    """Classes of sums that may be opened over this roster although they were opened over another one, which shows the
    numbers of the sites in between: train, weights, standardise, measured, unnamed, or a statistic's name."""

    def __post_init__(self) -> None:
        if self.lane_bits in (8, 16):
            raise ConfigError(
                f"secure.lane_bits = {self.lane_bits} is not built yet", "use 32, or 64 for float64 precision"
            )
        if self.lane_bits not in (32, 64):
            raise ConfigError(f"secure.lane_bits = {self.lane_bits}", "lanes have 32 or 64 bits")
        if self.bound is not None and not (math.isfinite(self.bound) and self.bound > 0):
            raise ConfigError(f"secure.bound = {self.bound}", "it must be a positive number")
        strange = [name for name in self.accept_difference if not _CLASS.fullmatch(name)]
        if strange or len(set(self.accept_difference)) < len(self.accept_difference):
            raise ConfigError(
                f"secure.accept_difference = {list(self.accept_difference)}", "a list of different classes of sums"
            )
        if self.degree < 0:
            raise ConfigError(f"secure.degree = {self.degree}", "0 for all, or an even number")

    @property
    def tree(self) -> Suite:
        """What makes every Tree of the federation. Raises ConfigError where its package is not installed here."""
        return suite_named(self.suite)

    def require_here(self) -> None:
        """Raise ConfigError (64) where this machine lacks the package of the suite."""
        suite_named(self.suite)

    def thresholds(self, sites: int) -> Thresholds | None:
        """The thresholds for a roster of `sites`, or None where nothing is masked. Raises PolicyError if unsafe."""
        if self.mode == "off" or sites == 1:
            return None
        found = choose_thresholds(sites, self.colluders, self.threshold, accept_two_sites=self.accept_two_sites)
        if self.degree and self.degree < sites - 1:
            check_degree(self.degree, found)
        return found
