"""The local optimiser: how it is made, and its learning rate over all rounds."""

from __future__ import annotations

import math

import torch

from fedhpc.train.settings import TrainSettings


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of [train] over every parameter of `model` that requires gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "adamw":
        beta1, beta2 = settings.betas
        return torch.optim.AdamW(parameters, lr=settings.lr, betas=(beta1, beta2), weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of a site's step number `step`, counted from 0 over all rounds.

    It rises linearly, reaching lr at step warmup_steps; then it stays, or falls to 0 at total_steps.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup_steps) / (settings.total_steps - settings.warmup_steps)
    done = min(done, 1.0)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.lr * (1.0 - done)
