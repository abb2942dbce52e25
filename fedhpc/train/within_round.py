"""Where a trainer stands within a round: what another job needs to go on from that step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError

_NAMES = ("round", "round:loss")


@dataclass
class WithinRound:
    """A round that was begun: `steps` of it are done."""

    round_: int
    epoch: int  # position in the data at its beginning
    offset: int
    steps: int = 0
    loss: float = 0.0  # summed over the steps below `looked`
    looked: int = 0
    losses: Any = None  # this rank's parts, of all steps; a tensor while training

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are kept of it: int64 [4] and float64 [1]."""
        return {
            "round": np.array([self.round_, self.epoch, self.offset, self.steps], dtype=np.int64),
            "round:loss": np.array([self.loss], dtype=np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> WithinRound | None:
        """Made from what `arrays` gave; None where work was kept between rounds. Raises DataError for a part of it."""
        if not any(name in arrays for name in _NAMES):
            return None
        try:
            round_, epoch, offset, steps = (int(v) for v in arrays["round"])
            return cls(round_, epoch, offset, steps, float(arrays["round:loss"][0]), looked=steps)
        except (KeyError, ValueError, IndexError, TypeError):
            raise DataError("the kept work does not say at which step it stopped", "remove the outbox") from None
