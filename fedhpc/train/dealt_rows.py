"""Tensors that are dealt out over ranks by rows (FSDP2's DTensors): which rows a rank holds, and how they are made."""

from __future__ import annotations

from typing import Any

import torch

from fedhpc.errors import ConfigError

_NO_DTENSOR: tuple[type, ...] = ()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of `tensor`: itself, or its part of a DTensor. It aliases it; without gradients."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a DTensor, of which each rank holds a part."""
    return type(tensor) is not torch.Tensor and isinstance(tensor, _dtensor())


def rows_of(tensor: torch.Tensor, name: str) -> tuple[int, int]:
    """Which rows (first, last) of the whole `tensor` this rank holds; of a scalar and a plain tensor, all.

    Raises ConfigError for a DTensor that is laid out in another way than FSDP2 lays out: rows dealt out over one
    dimension of its mesh.
    """
    rows = tensor.shape[0] if tensor.ndim else 1
    if not is_sharded(tensor):
        return 0, rows
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as Rows

    split = [i for i, kind in enumerate(tensor.placements) if not isinstance(kind, Replicate)]  # type: ignore[attr-defined]
    # By type: a strided shard, of tensor parallelism under FSDP, derives from it.
    if len(split) > 1 or any(type(tensor.placements[i]) is not Rows or tensor.placements[i].dim for i in split):  # type: ignore[attr-defined]
        raise ConfigError(
            f"{name} is laid out as {tuple(tensor.placements)} over the ranks",  # type: ignore[attr-defined]
            "a site's model may be dealt out by rows (FSDP2's default) or replicated; tensor parallelism and shards of "
            "another dimension are not supported",
        )
    if not split:
        return 0, rows
    if not tensor.numel():  # torch makes what it likes of rows without elements
        return 0, len(local_part(tensor))
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ConfigError(f"{name} lies on a mesh that this rank is not in", "shard it over the ranks of the site")
    step = -(-rows // mesh.size(split[0]))
    first, last = min(rows, coordinate[split[0]] * step), min(rows, (coordinate[split[0]] + 1) * step)
    if local_part(tensor).shape[0] != last - first:
        raise ConfigError(f"{name} has {local_part(tensor).shape[0]} rows at this rank, not {last - first}")
    return first, last


def dealt_like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A copy of this rank's rows of `whole`, dealt out as `parameter` is; `whole` itself where it is not."""
    if not is_sharded(parameter):
        return whole
    first, last = rows_of(parameter, "a tensor")
    return from_rows(parameter, whole[first:last].clone())


def from_rows(parameter: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A tensor of which this rank holds `rows`, dealt out as `parameter` is."""
    if not is_sharded(parameter):
        return rows
    return _dtensor().from_local(  # type: ignore[no-any-return]
        rows.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,  # type: ignore[attr-defined]
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


def _dtensor() -> Any:
    """DTensor, where torch has it: a tensor can be one only then."""
    try:
        from torch.distributed.tensor import DTensor
    except ImportError:
        return _NO_DTENSOR
    return DTensor
