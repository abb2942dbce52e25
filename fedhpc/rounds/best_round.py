"""Which round's model is the best by a federated metric, and whether the sites stop since none gets better.

Metrics are sums over all sites, so every site finds the same best round. Whether to stop is put to the vote all the
same: their last bits may differ between processors, and a site whose checkpoints are lost knows no earlier round. Each
site's vote is one more number in the sum of the next round's measurements, and all must agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedhpc.errors import ConfigError

_KEEP = re.compile(r"(best|least|most):(\S+)")
_LEAST = frozenset({"brier", "ece", "log_loss", "loss", "mae", "mse", "nll", "perplexity", "rmse"})
"""Metrics of which less is better, for `best:`."""
_KEYS = ("value", "round", "waited")


@dataclass(frozen=True)
class Choice:
    """By what the best round is chosen, and how long one waits for a better one."""

    metric: str
    least: bool  # whether less is better
    patience: int = 0  # measured rounds without a better one after which the sites stop; 0: they never do
    min_delta: float = 0.0  # by how much a metric must be better to count as such

    @classmethod
    def of(cls, keep: str, patience: int = 0, min_delta: float = 0.0) -> Choice | None:
        """From [train] of federation.toml; None for an empty `keep`. Raises ConfigError."""
        if not keep:
            for key, value in (("patience", patience), ("min_delta", min_delta)):
                if value:
                    raise ConfigError(f"train.{key} has no effect without train.keep", 'write keep = "best:auc"')
            return None
        found = _KEEP.fullmatch(keep)
        if found is None:
            raise ConfigError(
                f"train.keep = {keep!r} names no metric",
                'write "best:auc"; "least:NAME" or "most:NAME" where a metric of your own says what is better',
            )
        if patience < 0 or not (math.isfinite(min_delta) and min_delta >= 0):
            raise ConfigError("train.patience and train.min_delta must be 0 or more", "patience counts rounds")
        least = found[1] == "least" or (found[1] == "best" and found[2] in _LEAST)
        return cls(found[2], least, patience, min_delta)

    def refuse_unknown(self, metrics: Mapping[str, float | None]) -> None:
        """ConfigError if the task has no such metric. `metrics`: whatever their values."""
        if self.metric not in metrics:
            raise ConfigError(
                f"train.keep names the metric '{self.metric}', which this task does not have",
                f"it has {', '.join(sorted(metrics)) or 'none: task.held_out keeps no rows'}",
            )


class BestRound:
    """What one run has seen of its metric. It lives in the checkpoints."""

    def __init__(self, choice: Choice | None) -> None:
        self.choice = choice
        self.round_: int | None = None
        self.value = math.nan
        self._waited = 0
        self.stopped = False
        """Whether all sites have agreed to stop."""

    def saw(self, round_: int, metrics: Mapping[str, float | None]) -> bool:
        """Take note of the model after `round_` rounds; whether it is the best yet.

        A round whose metrics are missing, or not defined, neither counts nor resets anything. One that was seen before
        does not count again.
        """
        value = None if self.choice is None else metrics.get(self.choice.metric)
        if self.choice is None or value is None or not math.isfinite(value):
            return False
        if self.round_ is not None and round_ <= self.round_:
            return False
        gain = (self.value - value) if self.choice.least else (value - self.value)
        if self.round_ is None or gain > self.choice.min_delta:
            self.round_, self.value, self._waited = round_, value, 0
            return True
        self._waited += 1
        return False

    @property
    def votes(self) -> bool:
        """Whether this site's measurements carry a vote."""
        return self.choice is not None and self.choice.patience > 0

    @property
    def would_stop(self) -> bool:
        """This site's vote."""
        return self.choice is not None and 0 < self.choice.patience <= self._waited

    def why(self) -> str:
        """Why the sites stop, for people."""
        assert self.choice is not None
        return f"{self.choice.metric} had not become better for {self.choice.patience} measured rounds when they voted"

    def facts(self) -> dict[str, float]:
        """To be kept in a checkpoint; empty before a round was seen."""
        if self.round_ is None:
            return {}
        return {"value": self.value, "round": float(self.round_), "waited": float(self._waited)}

    def restore(self, facts: Mapping[str, float]) -> None:
        """Go on from `facts`; those of a checkpoint without any begin anew."""
        if self.choice is not None and all(key in facts for key in _KEYS):
            self.value, self.round_, self._waited = facts["value"], int(facts["round"]), int(facts["waited"])

    def record(self) -> dict[str, float | int | str]:
        """Its part of a round's record (app/telemetry.py)."""
        if self.choice is None or self.round_ is None:
            return {}
        return {"best_round": self.round_, "best_value": self.value, "best_metric": self.choice.metric}
