"""Where a trainer stands within a round: what another job needs to go on from that step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.train.batches import Batches

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

    @classmethod
    def enter(cls, kept: WithinRound | None, round_: int, steps: int, batches: Batches, site: str) -> WithinRound:
        """Round `round_` of `steps` steps, which begins here, or goes on from what was `kept` of it.

        `batches` stand at its beginning then. Raises DataError if what was kept is of another round.
        """
        within = cls(round_, batches.epoch, batches.offset) if kept is None else kept
        if kept is not None and (kept.round_ != round_ or not 0 < kept.steps < steps):
            raise DataError(
                f"site {site}: the kept work is step {kept.steps} of round {kept.round_}, now it is round "
                f"{round_} with {steps} steps",
                "remove the outbox: the round is trained again",
            )
        batches.seek(within.epoch, within.offset)
        return within


def sum_of_finite(losses: NDArray[np.float64], site: str, first_step: int, round_: int) -> float:
    """The sum of a site's `losses` [m] of its steps from `first_step` on, counted from 1 over all rounds.

    Raises DataError, on every rank alike, if one of them is not finite.
    """
    wrong = np.flatnonzero(~np.isfinite(losses))
    if wrong.size:
        raise DataError(
            f"site {site}: the training loss is {losses[wrong[0]]} at step {first_step + int(wrong[0])} "
            f"(round {round_})",
            "look for values that are not finite in the features; else lower train.lr or set train.clip_norm",
        )
    return float(losses.sum())
