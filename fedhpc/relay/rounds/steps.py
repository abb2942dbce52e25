"""What a step of a federation's rounds asks of whoever runs it: when to come back, and long work to do before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """Long work: `run` without the lock, then `then` with what it gave, with the lock."""

    what: str
    run: Callable[[], Any]
    then: Callable[[Any], None]


@dataclass(frozen=True)
class Step:
    """When to step again at the latest (None: when something happens), and a job to run before that."""

    wake: float | None
    job: Job | None = None
