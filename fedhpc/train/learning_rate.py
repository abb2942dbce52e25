"""The learning rate of a site over all rounds."""

from __future__ import annotations

import math

from fedhpc.train.settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of a site's step number `step`, counted from 0 over all rounds.

    It rises linearly, reaching lr at step warmup_steps; then it stays, falls to 0 at total_steps, or is multiplied by
    gamma every step_every steps.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        return float(settings.lr * settings.gamma ** ((step - settings.warmup_steps) // settings.step_every))
    done = (step - settings.warmup_steps) / (settings.total_steps - settings.warmup_steps)
    done = min(done, 1.0)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.lr * (1.0 - done)
