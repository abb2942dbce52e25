"""Tries a model on a batch and leaves it, and all random states, as they were to the last bit."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fedhpc.train.dealt_rows import is_sharded, local_part, rows_of

_RELATIVE, _ABSOLUTE = 0.3, 0.5  # how far `move_beside` moves a tensor: of its size, or where it is zero
_PLAIN = (bool, int, float, str, type(None))


@contextmanager
def untouched(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block `model` may be trained, moved, and switched between modes, and anything drawn at random."""
    held = [local_part(tensor) for tensor in (*model.parameters(), *model.buffers())]
    tensors = [(tensor, tensor._version, tensor.clone()) for tensor in held]
    # A forward() may put another tensor in a buffer's place, and count in plain attributes; `training` is one of them.
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    plain = [(m, {key: value for key, value in vars(m).items() if isinstance(value, _PLAIN)}) for m in model.modules()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            for module, saved_buffers in buffers:
                module._buffers.update(saved_buffers)
            for module, saved_plain in plain:
                vars(module).update(saved_plain)
            with torch.no_grad():
                for tensor, version, saved in tensors:
                    if tensor._version != version or not torch.equal(tensor, saved):
                        tensor.copy_(saved)


def draw_from(seed: int) -> None:
    """Begin all random numbers of the process at `seed`; inside `untouched`."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def move_beside(model: torch.nn.Module) -> None:
    """Move every parameter a little, by the same draw on every rank."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = _size(parameter) if parameter.numel() else 0.0
            step = _RELATIVE * size if size > 0 else _ABSOLUTE
            first, last = rows_of(parameter, "a parameter")
            drawn = torch.randn(parameter.shape, generator=generator) * step
            here = local_part(parameter)
            here.add_((drawn[first:last] if drawn.ndim else drawn).to(here))


def _size(parameter: torch.Tensor) -> float:
    """The root of the mean square of its numbers. Collective where they are dealt out."""
    if is_sharded(parameter):
        norm: torch.Tensor = torch.linalg.vector_norm(parameter.float()).full_tensor()
        return float(norm) / math.sqrt(parameter.numel())
    return float(parameter.float().square().mean().sqrt())


def standardise_by(model: torch.nn.Module, batch: Any) -> None:
    """Set feature_mean and feature_scale from one batch (x, …), where the model has them and x is a tensor."""
    buffers = dict(model.named_buffers())
    mean, scale = buffers.get("feature_mean"), buffers.get("feature_scale")
    x = batch[0] if isinstance(batch, tuple | list) and batch else None
    if mean is None or scale is None or not isinstance(x, torch.Tensor) or x.shape[1:] != mean.shape:
        return
    with torch.no_grad():
        wide = x.double()
        deviation = wide.std(dim=0, correction=0)
        mean.copy_(wide.mean(dim=0))
        scale.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))
