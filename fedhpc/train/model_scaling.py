"""How a torch model standardises its features: its buffers feature_mean and feature_scale."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.errors import ConfigError
from fedhpc.train.site_trainer import Scaling

Floats = NDArray[np.float64]


class ModelScaling(Scaling):
    """The two buffers of `model`, which alias its own."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Raises ConfigError if the model lacks one of them."""
        buffers = dict(model.named_buffers())
        try:
            self._mean, self._scale = buffers["feature_mean"], buffers["feature_scale"]
        except KeyError as missing:
            raise ConfigError(
                f"task.standardise is set, and the model has no buffer {missing}",
                "register feature_mean and feature_scale in the model and use them in forward(), or set it to false",
            ) from None
        self.shape = tuple(self._mean.shape)
        self.kind = str(self._mean.dtype).removeprefix("torch.")
        self.largest = float(torch.finfo(self._mean.dtype).max)

    @override
    def as_held(self, values: Floats) -> Floats:
        return np.asarray(torch.from_numpy(values).to(self._mean.dtype).double().numpy())

    @override
    def set(self, mean: Floats, scale: Floats) -> None:
        with torch.no_grad():
            self._mean.copy_(torch.from_numpy(mean))
            self._scale.copy_(torch.from_numpy(scale))
