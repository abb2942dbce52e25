"""The local optimiser of torch."""

from __future__ import annotations

import torch

from fedhpc.train.settings import TrainSettings


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of [train] over every parameter of `model` that requires gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer != "sgd":
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        beta1, beta2 = settings.betas
        return kind(parameters, lr=settings.lr, betas=(beta1, beta2), weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
