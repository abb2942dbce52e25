"""A model that a script of the user's own has dealt out over the ranks of its site by FSDP2, as `fed.sync` sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.ranges import Forms, Held
from fedhpc.train.dealt_rows import is_sharded
from fedhpc.train.held_model import forms_of_model, read_shards, write_shards
from fedhpc.train.running import RunningStatistics
from fedhpc.train.shards import Shard, model_shards
from fedhpc.train.state import split_state


def is_dealt_out(model: torch.nn.Module) -> bool:
    """Whether a parameter of `model` is a DTensor."""
    return any(is_sharded(parameter) for parameter in model.parameters())


class OwnShards:
    """Reads and writes the parts of a model that this rank has. Every rank of the site makes every call."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def forms(self) -> Forms:
        """The shared tensors, whole."""
        return forms_of_model(split_state(self._model)[0])

    def read(self, held: Held, into: Tensors) -> None:
        """Copy what this rank holds for the sums into arrays of these names.

        Raises ConfigError if the model lies on other ranks than those of the site, or in another way than by rows.
        """
        # Each rank saw its own rows: the leader's running statistics count, for all of them.
        RunningStatistics(self._model, held.site, held.site.label).settle()
        read_shards(held, self._shards(), into)

    def write(self, held: Held, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Make the model of all ranks that of which each holds `tensors`."""
        write_shards(held, self._shards(), tensors)

    def _shards(self) -> list[Shard]:
        from torch.distributed.fsdp import FSDPModule

        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # after a forward pass alone parameters are whole, and what is written would be lost
        return model_shards(self._model)
