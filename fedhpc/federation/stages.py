"""Seconds that a sum spends in each of its stages.

The compiled kernel encodes, tags and masks in one pass: where it runs, `masks` is all of that pass, and `encode` only
what is not masked or has a scale for each element. `encode` + `masks` mean the same either way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stages:
    """Seconds spent in each stage of a sum. With overlap they add up to more than the wall time.

    Of threads that share a stretch they are the mean.
    """

    encode: float = 0.0
    masks: float = 0.0
    wire: float = 0.0
    decode: float = 0.0
    digest: float = 0.0
    agree: float = 0.0
    ledger: float = 0.0
    share: float = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that the block takes to `stage`, unless it raises."""
        begun = time.perf_counter()
        yield
        setattr(self, stage, getattr(self, stage) + time.perf_counter() - begun)
