"""The [cohort] section of federation.toml: who takes part in a round. Every site signs it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedhpc.errors import ConfigError


@dataclass(frozen=True)
class CohortSettings:
    """[cohort]; of the `https` exchange. Within one MPI job all sites take part. Times in seconds."""

    policy: Literal["sync", "quorum", "buffered"] = "sync"
    """sync: all of the roster. quorum: `minimum` sites, then `grace_s` for more. buffered: whenever `minimum` updates
    are ready, also updates that began from an older model."""
    minimum: int | None = None
    """Sites that must be ready (quorum, buffered). Absent: the threshold τ, which is also the least."""
    grace_s: float = 300.0
    """How long a quorum waits for the others."""
    deadline_s: float = 86400.0
    """How long a site that is ready waits for a round to begin; then it ends with exit code 69 and can go on later."""
    answer_s: float = 120.0
    """How long a site of the cohort may take for a message before the round goes on without it."""
    upload_s: float = 3600.0
    """How long it may take for its vector."""
    staleness: int = 0
    """Rounds that the model an update began from may lie behind (buffered)."""
    discount: float = 0.5
    """An update that is s rounds old counts (1 + s)^-discount."""

    def __post_init__(self) -> None:
        for name in ("grace_s", "deadline_s", "answer_s", "upload_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"cohort.{name} = {value}", "seconds, above zero")
        if self.minimum is not None and not 2 <= self.minimum <= 100:
            raise ConfigError(f"cohort.minimum = {self.minimum}", "at least the threshold τ, at most all sites")
        if not 0 <= self.staleness <= 1000 or (self.staleness and self.policy != "buffered"):
            raise ConfigError(f"cohort.staleness = {self.staleness}", 'above zero only with policy = "buffered"')
        if not (math.isfinite(self.discount) and 0 <= self.discount <= 10):
            raise ConfigError(f"cohort.discount = {self.discount}", "between 0 and 10")
