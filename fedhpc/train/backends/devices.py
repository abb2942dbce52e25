"""On which device each rank of a site trains, and what carries its tensors to the others."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import Group
from fedhpc.train.settings import ComputeSettings

# The rank's number on its node, by launcher. It counts the ranks of every site there, as the site's group cannot.
_LOCAL_RANK = ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")


@dataclass(frozen=True)
class Placement:
    """Where a rank trains."""

    device: torch.device
    transport: Literal["nccl", "gloo"]  # of torch.distributed between the site's ranks
    one_host: bool  # whether all ranks of the site are on one machine


def place(compute: ComputeSettings, group: Group) -> Placement:
    """The device of [compute] for this rank. Collective over the site.

    Raises ConfigError, on every rank alike, if a GPU is asked for and some rank has none.
    """
    host = f"{socket.gethostname()} {_boot_id()}"
    gpu, gpu_id = _own_gpu(group, host, compute)
    gathered = group.gather_bytes(json.dumps([host, gpu_id]).encode())
    gpu_ids = [(str(where), str(identity)) for where, identity in map(json.loads, gathered)]
    without = [rank for rank, (_, identity) in enumerate(gpu_ids) if not identity]
    hosts = {where for where, _ in gpu_ids}
    if compute.device == "cuda" and without:
        raise ConfigError(
            f"{group.label}: compute.device = 'cuda', and rank {without[0]} sees no GPU on "
            + gpu_ids[without[0]][0].split()[0],
            "check the allocation (--gpus-per-task) and CUDA_VISIBLE_DEVICES; device = 'auto' falls back to the CPU",
        )
    use_gpu = compute.device != "cpu" and not without
    device = torch.device("cuda", gpu) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    # NCCL refuses two ranks on one GPU; gloo carries them through the host.
    transport: Literal["nccl", "gloo"] = "nccl" if use_gpu and len(set(gpu_ids)) == len(gpu_ids) else "gloo"
    return Placement(device, transport, one_host=len(hosts) == 1)


def _own_gpu(group: Group, host: str, compute: ComputeSettings) -> tuple[int, str]:
    """This rank's GPU: its index among the visible ones and its identity; (0, "") without one."""
    hosts = group.gather_bytes(host.encode())
    if compute.device == "cpu" or not torch.cuda.is_available():
        return 0, ""
    local = hosts[: group.rank].count(hosts[group.rank])
    for name in _LOCAL_RANK:
        if os.environ.get(name, "").isdigit():
            local = int(os.environ[name])
            break
    index = local % torch.cuda.device_count()
    return index, str(torch.cuda.get_device_properties(index).uuid)


def _boot_id() -> str:
    """Tells hosts of the same name apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
