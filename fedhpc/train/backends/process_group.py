"""torch.distributed's process group over a site's ranks.

It is made from the site's MPI group, so a launcher's environment variables are never needed, and several sites in one
MPI job do not meet.
"""

from __future__ import annotations

import datetime
import os
import socket

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from fedhpc.errors import ConfigError, PeersError
from fedhpc.mpi.collectives import Group
from fedhpc.train.backends.devices import Placement

# A rank that dies ends the whole MPI job within seconds (python -m mpi4py); this is for a rank that hangs.
PEER_TIMEOUT = datetime.timedelta(minutes=5)


class ProcessGroup:
    """The default process group of this process, over the ranks of one site."""

    def __init__(self, group: Group, placement: Placement) -> None:
        """Collective over the site. Raises PeersError if the ranks cannot meet, ConfigError if there is one already."""
        if dist.is_initialized():
            raise ConfigError(
                f"{group.label}: torch.distributed is already initialised in this process",
                "set backend = 'serial' for one rank, or bring your own loop with fed.sync",
            )
        if placement.one_host:
            # Loopback needs no resolvable host name, and no port that others can reach.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # It lives as long as this object, because other ranks may lag.
        self._store = _meet(group, placement.one_host)
        dist.init_process_group(
            placement.transport, store=self._store, rank=group.rank, world_size=group.size, timeout=PEER_TIMEOUT
        )
        group.barrier()  # a rank that finds a fault and leaves would break off those that are still connecting

    def leave(self) -> None:
        """Destroy the group. No barrier: a rank that fails alone comes here too, and must not wait for the others."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(group: Group, one_host: bool) -> TCPStore:
    """A store that every rank of the site is connected to, served by the leader on a free port."""
    store: TCPStore | None = None
    address = b""
    if group.rank == 0:
        host = "127.0.0.1" if one_host else socket.gethostname()
        # The store has no password. Torch would listen on every interface; on one host loopback is enough.
        if one_host:
            listener = socket.create_server((host, 0), backlog=group.size)
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=group.size)
        else:  # a kernel without IPv6
            listener = socket.create_server(("", 0), backlog=group.size)
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
