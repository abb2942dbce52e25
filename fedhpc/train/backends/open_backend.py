"""Chooses the backend and the device of a rank."""

from __future__ import annotations

from fedhpc.errors import ConfigError, InternalError
from fedhpc.mpi.collectives import Group
from fedhpc.train.backends.base import Backend
from fedhpc.train.backends.ddp import DdpBackend
from fedhpc.train.backends.devices import place
from fedhpc.train.backends.fsdp import FsdpBackend
from fedhpc.train.backends.horovod import HorovodBackend
from fedhpc.train.backends.mpi import MpiBackend
from fedhpc.train.backends.serial import SerialBackend
from fedhpc.train.settings import ComputeSettings


def open_backend(compute: ComputeSettings, group: Group) -> Backend:
    """The backend and device of [compute] for this rank. Collective over the site.

    Raises ConfigError, on every rank alike, if a GPU is asked for and some rank has none, if several ranks ask for
    `serial`, or if several ask for `horovod` and it is not there.
    """
    if compute.backend == "serial" and group.size > 1:
        raise ConfigError(
            f"{group.label} has {group.size} ranks, and compute.backend = 'serial' trains on one",
            "use backend = 'ddp' or 'auto', or give the site one rank",
        )
    placement = place(compute, group)
    backend = compute.backend
    if backend == "auto":
        # Never fsdp: with the memory of the machine the bits of the site would change.
        backend = "serial" if group.size == 1 else "ddp"
    match backend:
        case "serial":
            return SerialBackend(placement.device)
        case "ddp":
            return DdpBackend(group, placement)
        case "fsdp":
            return FsdpBackend(group, placement)
        case "mpi":
            return MpiBackend(group, placement)
        case "horovod":
            if group.size == 1:
                return SerialBackend(placement.device)
            return HorovodBackend(group, placement.device, deterministic=compute.deterministic)
        case "numpy":
            raise InternalError("the backend 'numpy' was asked for a torch model")
