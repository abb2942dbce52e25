"""Seconds that a sum spends in each of its stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stages:
    """Seconds spent in each stage of a sum. With overlap they add up to more than the wall time."""

    encode: float = 0.0
    masks: float = 0.0
    wire: float = 0.0
    decode: float = 0.0
    digest: float = 0.0
    agree: float = 0.0
    ledger: float = 0.0
    share: float = 0.0
