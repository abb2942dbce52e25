"""Torch's random state of one rank: independent of other draws in the process, and kept over restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.train.batches import derive_key


def rank_seed(seed: int, site: str, rank: int, step: int = 0) -> int:
    """The seed of a rank's generators when they start at `step`; below 2^63."""
    return int.from_bytes(derive_key("fedhpc rank v1", seed, site, rank, step)[:8], "little") >> 1


class RankRandom:
    """The states of torch's CPU and GPU generators that training uses; `active` puts them in place."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._in_place = False
        self._cpu = torch.Generator().manual_seed(seed).get_state()
        self._cuda: torch.Tensor | None = None
        if device.type == "cuda":
            self._cuda = torch.Generator(device).manual_seed(seed).get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draw from this state inside the block, and leave the process's own as it was."""
        outer_cpu = torch.get_rng_state()
        outer_cuda = None if self._cuda is None else torch.cuda.get_rng_state(self._device)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        self._in_place = True
        try:
            yield
        finally:
            self._read()
            self._in_place = False
            torch.set_rng_state(outer_cpu)
            if outer_cuda is not None:
                torch.cuda.set_rng_state(outer_cuda, self._device)

    def state(self) -> NDArray[np.uint8]:
        """Both states, uint8: the CPU's, then the GPU's if there is one. Also inside `active`."""
        if self._in_place:
            self._read()
        parts = [self._cpu] if self._cuda is None else [self._cpu, self._cuda]
        return np.concatenate([part.numpy() for part in parts])

    def _read(self) -> None:
        self._cpu = torch.get_rng_state()
        if self._cuda is not None:
            self._cuda = torch.cuda.get_rng_state(self._device)

    def fits(self, state: NDArray[np.uint8]) -> bool:
        """Whether `state` was read on a rank of the same kind."""
        return state.shape == self.state().shape

    def set_state(self, state: NDArray[np.uint8]) -> None:
        """Go on from what `state()` gave on a rank of the same kind."""
        split = self._cpu.numel()
        self._cpu = torch.from_numpy(state[:split].copy())
        if self._cuda is not None:
            self._cuda = torch.from_numpy(state[split:].copy())
