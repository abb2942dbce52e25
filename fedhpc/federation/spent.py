"""What sums have cost this site: seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedhpc.federation.party import Opened
from fedhpc.federation.stages import Stages


@dataclass
class Spent:
    """What sums have cost since the last `take`: seconds by stage, bytes of this site."""

    stages: Stages = field(default_factory=Stages)
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, opened: Opened) -> None:
        """Count one sum."""
        for stage, seconds in vars(opened.stages).items():
            setattr(self.stages, stage, getattr(self.stages, stage) + seconds)
        self.bytes_up += opened.bytes_up
        self.bytes_down += opened.bytes_down
