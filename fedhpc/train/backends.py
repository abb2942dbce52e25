"""How a site's ranks train one model together: alone, or with DistributedDataParallel.

The process group is made from the site's MPI group, so a launcher's environment variables are never needed, and
several sites in one MPI job do not meet.
"""

from __future__ import annotations

import datetime
import gc
import inspect
import json
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from fedhpc.errors import ConfigError, PeersError
from fedhpc.mpi.collectives import Group
from fedhpc.train.settings import ComputeSettings
from fedhpc.train.unused import Reach, trained, without_gradient

# A rank that dies ends the whole MPI job within seconds (python -m mpi4py); this is for a rank that hangs.
PEER_TIMEOUT = datetime.timedelta(minutes=5)
# The rank's number on its node, by launcher. It counts the ranks of every site there, as the site's group cannot.
_LOCAL_RANK = ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")


class Backend(Protocol):
    """One rank's part in training the site's model."""

    name: str
    device: torch.device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """What the loss is computed with; its gradients are averaged over the site's ranks."""
        ...

    def averaging(self, wrapped: torch.nn.Module, now: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: average at its end if `now`, else only accumulate."""
        ...

    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """Names of parameters that no pass of this rank has reached, after one that averaged."""
        ...

    def close(self) -> None:
        """Leave the process group. The wrapped model must not be used afterwards."""
        ...


class SerialBackend:
    """One rank: nothing to average."""

    name = "serial"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` itself."""
        return model

    def averaging(self, wrapped: torch.nn.Module, now: bool) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """Those without a gradient."""
        return without_gradient(trained(wrapped))

    def close(self) -> None:
        """Nothing to leave."""


class DdpBackend:
    """torch's DistributedDataParallel over the ranks of the site."""

    name = "ddp"

    def __init__(self, device: torch.device, group: Group, transport: str, one_host: bool) -> None:
        """`transport`: gloo or nccl. Collective over the site. Raises PeersError if the ranks cannot meet."""
        self.device = device
        if dist.is_initialized():
            raise ConfigError(
                f"{group.label}: torch.distributed is already initialised in this process",
                "set backend = 'serial' for one rank, or bring your own loop with fed.sync",
            )
        if one_host:
            # Loopback needs no resolvable host name, and no port that others can reach.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._store = _meet(group, one_host)
        dist.init_process_group(
            transport, store=self._store, rank=group.rank, world_size=group.size, timeout=PEER_TIMEOUT
        )
        # Of the models behind DDP, while they are in use.
        self.reach: weakref.WeakKeyDictionary[torch.nn.Module, Reach] = weakref.WeakKeyDictionary()
        self._unreached: list[str] = []

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` behind DDP. It does not broadcast running statistics: the trainer takes the leader's."""
        # torch 2.13 renamed the option, and warns about the old name.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
        if self.device.type == "cuda":
            options["device_ids"] = [self.device.index]
        wrapped = DistributedDataParallel(model, **options)
        self.reach[wrapped] = Reach(wrapped)
        return wrapped

    @contextmanager
    def averaging(self, wrapped: torch.nn.Module, now: bool) -> Iterator[None]:
        """DDP's `no_sync` unless `now`; with `now`, parameters that the pass does not reach get zeros."""
        assert isinstance(wrapped, DistributedDataParallel)
        reach = self.reach[wrapped]
        reach.begin()
        with nullcontext() if now else wrapped.no_sync():
            yield
        if now:
            self._unreached = reach.complete(wrapped)

    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """What the last averaging pass did not reach; DDP gave zeros for it."""
        return self._unreached

    def close(self) -> None:
        """Destroy the process group; the store lives as long as this object, because other ranks may lag.

        No barrier: a rank that fails alone comes here too, and must not wait for the others.
        """
        # The end of a gloo group waits for its threads, which may want Python's lock. torch releases the lock where
        # the group's last owner is Python, and not where it is a DDP module's reducer: collected later, or at the
        # interpreter's exit, that would wait forever (pytorch issue 56297). So the reducers go first.
        for reach in self.reach.values():
            reach.close()
        wrapped = list(self.reach)  # in case something still holds them
        gone = [_drop(vars(model), name) for model in wrapped for name in ("logger", "reducer")]
        if not all(gone):  # a collection walks over all of torch, and takes a good part of a second
            gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


def open_backend(compute: ComputeSettings, group: Group) -> Backend:
    """The backend and device of [compute] for this rank. Collective over the site.

    Raises ConfigError, on every rank alike, if a GPU is asked for and some rank has none, or if several ranks ask
    for `serial`.
    """
    if compute.backend == "serial" and group.size > 1:
        raise ConfigError(
            f"{group.label} has {group.size} ranks, and compute.backend = 'serial' trains on one",
            "use backend = 'ddp' or 'auto', or give the site one rank",
        )
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
    if compute.backend == "serial" or (compute.backend == "auto" and group.size == 1):
        return SerialBackend(device)
    # NCCL refuses two ranks on one GPU; gloo carries them through the host.
    transport = "nccl" if use_gpu and len(set(gpu_ids)) == len(gpu_ids) else "gloo"
    return DdpBackend(device, group, transport, one_host=len(hosts) == 1)


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


def _drop(attributes: dict[str, Any], name: str) -> bool:
    """Remove an attribute; returns whether it was the last reference, so that its object is gone."""
    if name not in attributes:
        return True
    still_there = weakref.ref(attributes[name])
    del attributes[name]
    return still_there() is None


def _meet(group: Group, one_host: bool) -> TCPStore:
    """A store that every rank of the site is connected to, served by the leader on a free port."""
    store: TCPStore | None = None
    address = b""
    if group.rank == 0:
        host = "127.0.0.1" if one_host else socket.gethostname()
        # The store has no password. Torch would listen on every interface; on one host loopback is enough.
        if one_host:
            listener = socket.create_server((host, 0), backlog=group.size)
        else:
            listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=group.size)
        port = listener.getsockname()[1]
        store = TCPStore(
            host, port, group.size, is_master=True, timeout=PEER_TIMEOUT, wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )  # fmt: skip
        address = f"{host}:{port}".encode()
    host, _, text = group.broadcast_bytes(address if group.rank == 0 else None).decode().rpartition(":")
    if store is None:
        try:
            store = TCPStore(host, int(text), group.size, is_master=False, timeout=PEER_TIMEOUT, wait_for_workers=False)
        except RuntimeError as error:
            raise PeersError(
                f"{group.label}: rank {group.rank} cannot reach its leader at {host}:{text}",
                "the nodes of a site must reach each other; set GLOO_SOCKET_IFNAME to the network between them",
            ) from error
    return store


def _boot_id() -> str:
    """Tells hosts of the same name apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
