"""[life] of a site file: how the site lives in its batch queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedhpc.errors import ConfigError

MOST_S = 30 * 86400.0


@dataclass(frozen=True)
class LifeSettings:
    """[life]"""

    kind: Literal["inline", "chained", "detached"] = "inline"
    """inline: one job, which stays through the exchanges. chained: jobs that follow one another, each until its
    walltime. detached: jobs that train and jobs that exchange in turn, so that no GPU waits for another site."""
    wait_s: float | None = None
    """How long a job waits for other sites before it leaves with exit code 75. Absent: [cohort] deadline_s."""
    checkpoint_s: float = 1800.0
    """Seconds of local training after which a round's work is kept, at the next step; 0: only when told to stop."""
    margin_s: float = 60.0
    """Seconds before the job's end by which it has left."""

    def __post_init__(self) -> None:
        if self.wait_s is not None and not 0 <= self.wait_s <= MOST_S:
            raise ConfigError(f"life.wait_s = {self.wait_s}", "0 seconds to 30 days")
        if not 0 <= self.checkpoint_s <= MOST_S:
            raise ConfigError(f"life.checkpoint_s = {self.checkpoint_s}", "0 (only when told to stop) to 30 days")
        if not 0 <= self.margin_s <= 86400:
            raise ConfigError(f"life.margin_s = {self.margin_s}", "0 seconds to a day")
