"""What one rank holds of each tensor of a model: all of it, or under FSDP2 one run of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedhpc.train.dealt_rows import local_part, rows_of
from fedhpc.train.state import as_bits, kind_of, split_state


@dataclass(frozen=True)
class Shard:
    """The part of one tensor that this rank holds: bytes start..stop of it in `kind`, row after row."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    kind: str
    """The NumPy kind in which its values are moved: float32 or float64 for what sites share."""
    start: int
    stop: int
    local: torch.Tensor
    """What the rank holds of it, of its own dtype and on its device; it aliases the model's."""

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        """Copy bytes start..stop of the whole tensor, which this shard holds, into `into`."""
        first, last, cut = self._elements(start, stop)
        values = self.local.reshape(-1)[first:last].to("cpu", getattr(torch, self.kind))
        into[:] = values.numpy().view(np.uint8)[cut : cut + stop - start]

    def write(self, start: int, stop: int, data: NDArray[np.uint8]) -> None:
        """Set bytes start..stop of the whole tensor to `data`. A tensor narrower than `kind` gets rounded numbers."""
        first, last, cut = self._elements(start, stop)
        size = np.dtype(self.kind).itemsize
        held = np.empty((last - first) * size, dtype=np.uint8)
        if held.size != data.size:  # numbers are cut
            self.read(self.start + first * size, self.start + last * size, held)
        held[cut : cut + stop - start] = data
        flat = self.local.reshape(-1)  # a copy, where the memory is not in the order of the rows
        flat[first:last].copy_(torch.from_numpy(held.view(self.kind)))
        if flat.data_ptr() != self.local.data_ptr():
            self.local.copy_(flat.view(self.local.shape))

    def _elements(self, start: int, stop: int) -> tuple[int, int, int]:
        """The numbers first..last of `local` in which bytes start..stop lie, and how far into the first they begin."""
        assert self.start <= start <= stop <= self.stop, (self.name, self.start, start, stop, self.stop)
        size = np.dtype(self.kind).itemsize
        first = (start - self.start) // size
        return first, -(-(stop - self.start) // size), start - self.start - first * size


def shard_of(name: str, tensor: torch.Tensor, kind: str) -> Shard:
    """This rank's part of `tensor`, whose numbers are moved as `kind`. Raises what `rows_of` raises."""
    first, last = rows_of(tensor, name)
    shape = tuple(tensor.shape)
    row = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(kind).itemsize
    return Shard(name, shape, kind, first * row, last * row, local_part(tensor))


def model_shards(model: torch.nn.Module) -> list[Shard]:
    """This rank's part of the shared state of `model`, in layout order. Only where parameters are settled."""
    return [shard_of(name, tensor, kind_of(tensor)) for name, tensor in split_state(model)[0].items()]


def named_shards(tensors: Mapping[str, torch.Tensor]) -> list[Shard]:
    """This rank's part of tensors of any dtype, whose bits are moved as they are."""
    shards = []
    for name, tensor in tensors.items():
        kind = str(as_bits(torch.empty(0, dtype=tensor.dtype)).numpy().dtype)
        shard = shard_of(name, tensor, kind)
        shards.append(dataclasses.replace(shard, local=as_bits(shard.local)))
    return shards
