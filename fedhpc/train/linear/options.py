"""The options of the task `logistic`, whichever backend trains it."""

from __future__ import annotations

from dataclasses import dataclass

from fedhpc.errors import ConfigError


@dataclass(frozen=True)
class LogisticOptions:
    """[task] options of `logistic`."""

    features: int
    bins: int = 4000

    def __post_init__(self) -> None:
        if self.features < 1 or self.bins < 2:
            raise ConfigError("task.options.features must be 1 or more, task.options.bins 2 or more")
