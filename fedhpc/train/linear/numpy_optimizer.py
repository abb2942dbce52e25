"""SGD, Adam and AdamW in NumPy, step for step what torch.optim does, and state of the same names.

So a run goes on under another backend. Arithmetic is float64; parameters and state keep the parameters' own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.train.settings import TrainSettings

Arrays = dict[str, NDArray[Any]]
Gradients = Mapping[str, NDArray[np.float64]]

MOMENTUM, STEP, FIRST, SECOND = "momentum_buffer", "step", "exp_avg", "exp_avg_sq"
CUT_AS_THE_PARAMETER = (MOMENTUM, FIRST, SECOND)
_EPS = 1e-8  # as torch's default
_CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


class NumpyOptimizer:
    """The optimiser of [train] over `parameters`, which it changes in place."""

    def __init__(self, parameters: Mapping[str, NDArray[Any]], settings: TrainSettings) -> None:
        self._parameters, self._settings = parameters, settings
        self.state: dict[str, Arrays] = {}
        """By parameter and key; empty before the first step."""

    def step(self, gradients: Gradients, lr: float) -> None:
        """One step at the learning rate `lr`."""
        for name, parameter in self._parameters.items():
            wide = parameter.astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):  # what diverges shows in the next loss
                if self._settings.optimizer != "sgd":
                    parameter[...] = self._adam(name, wide, gradients[name], lr)
                else:
                    parameter[...] = self._sgd(name, wide, gradients[name], lr)

    def _sgd(
        self, name: str, wide: NDArray[np.float64], gradient: NDArray[np.float64], lr: float
    ) -> NDArray[np.float64]:
        """The parameter after the step."""
        settings = self._settings
        gradient = gradient + settings.weight_decay * wide
        if settings.momentum:
            before = self.state.get(name, {}).get(MOMENTUM)
            if before is not None:
                gradient = settings.momentum * before.astype(np.float64) + gradient
            self.state[name] = {MOMENTUM: gradient.astype(self._parameters[name].dtype)}
        return wide - lr * gradient

    def _adam(
        self, name: str, wide: NDArray[np.float64], gradient: NDArray[np.float64], lr: float
    ) -> NDArray[np.float64]:
        """The parameter after the step: Kingma and Ba 2015, arXiv:1412.6980, whose weight decay is in the gradient.

        AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101.
        """
        decay = self._settings.weight_decay
        if self._settings.optimizer == "adam":
            gradient, decay = gradient + decay * wide, 0.0
        (beta1, beta2), kind = self._settings.betas, self._parameters[name].dtype
        zeros = np.zeros_like(wide)
        state = self.state.get(name) or {STEP: np.zeros((), np.float32), FIRST: zeros, SECOND: zeros}
        count = float(state[STEP]) + 1.0
        first = state[FIRST] + (1.0 - beta1) * (gradient - state[FIRST])
        second = beta2 * state[SECOND].astype(np.float64) + (1.0 - beta2) * gradient * gradient
        self.state[name] = {
            STEP: np.array(count, np.float32),
            FIRST: first.astype(kind),
            SECOND: second.astype(kind),
        }
        wide = wide * (1.0 - lr * decay)
        deviation = np.sqrt(second) / math.sqrt(1.0 - beta2**count) + _EPS
        moved: NDArray[np.float64] = wide - lr / (1.0 - beta1**count) * first / deviation
        return moved

    def arrays(self) -> Arrays:
        """Copies of the state, by `parameter:key`."""
        return {f"{n}:{key}": array.copy() for n, state in self.state.items() for key, array in state.items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `arrays` gave, here or under torch. Raises DataError if it is of another model."""
        state: dict[str, Arrays] = {}
        for full, array in arrays.items():
            name, _, key = full.rpartition(":")
            parameter = self._parameters.get(name)
            if parameter is None or array.shape not in ((), parameter.shape):
                raise DataError(
                    f"the checkpoint has optimiser state for {name} {list(array.shape)}, which is not of this model",
                    "the checkpoint belongs to another task",
                )
            kind = np.dtype(np.float32) if key == STEP else parameter.dtype
            state.setdefault(name, {})[key] = np.array(array, kind)
        self.state = state


def clip(gradients: Mapping[str, NDArray[np.float64]], most: float) -> None:
    """Scale `gradients` in place so that their norm over all of them is at most `most`."""
    norm = math.sqrt(sum(float(np.square(g).sum()) for g in gradients.values()))
    factor = most / (norm + _CLIP_EPS)
    if not factor >= 1.0:
        for gradient in gradients.values():
            gradient *= factor
