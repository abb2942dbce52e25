"""What is compared with what: a case is a sum of ours and the peers that do the same work in the same run.

Every peer is a row of the target table of docs/benchmarks.md. Sizes, repeats and expected seconds stand here, so that
`python -m benchmarks.peers --list` can say how long the whole takes, and nothing starts that cannot fit into memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

M = 10**6
GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """What a side is expected to take; on 2 cores."""

    start_s: float
    round_s: float
    bytes_per_param: float  # by which MemAvailable falls
    base_bytes: int = GIB // 2

    def bytes_of(self, params: int) -> int:
        """Memory for a vector of so many numbers."""
        return self.base_bytes + int(self.bytes_per_param * params)


@dataclass(frozen=True)
class Ours:
    """`fedhpc bench` with these words, which prints a result; or a script with the contract of peers."""

    work: str
    cost: Cost
    bench: tuple[str, ...] = ()
    script: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aim:
    """How many times less ours shall take; 0: nothing is aimed at."""

    wall: float = 0
    memory: float = 0  # of all processes
    server_memory: float = 0


@dataclass(frozen=True)
class Peer:
    """One way of running a peer."""

    row: str  # its name
    system: str
    work: str
    script: str  # below benchmarks/peers
    environment: str  # build/peers/NAME
    package: str  # whose version is the system's
    cost: Cost
    flags: tuple[str, ...] = ()
    aim: Aim = Aim()
    memory_share: float = 0.85  # of what is available at the start, that it may take


@dataclass(frozen=True)
class Case:
    """Ours and peers, in turn."""

    name: str
    title: str
    params: int
    ours: Ours
    peers: tuple[Peer, ...]
    sites: int = 4
    warm: tuple[int, ...] = (3, 2)  # rounds of each turn, behind one that is not counted
    long: bool = False  # left out by --quick

    def small(self) -> Case:
        """To try it: one turn of one warm round."""
        return dataclasses.replace(self, params=min(self.params, 100_000), warm=(1,))

    def only(self, row: str) -> Case:
        """With one of its peers, whose name it then has."""
        return dataclasses.replace(self, name=row, peers=tuple(peer for peer in self.peers if peer.row == row))

    def seconds(self) -> float:
        """Expected for the whole case."""
        sides = [self.ours.cost, *(peer.cost for peer in self.peers)]
        return sum(cost.start_s + (warm + 1) * cost.round_s for cost in sides for warm in self.warm)


_MPI_100M = Ours("masked sum", Cost(5, 12.5, 28), ("sum",))
_MPI_1M = Ours("masked sum", Cost(5, 0.3, 28), ("sum",))
_RELAY_100M = Ours("relayed masked sum", Cost(10, 40, 60), ("sum", "--exchange", "https"))
_RELAY_1M = Ours("relayed masked sum", Cost(15, 1, 60), ("sum", "--exchange", "https"))
_ECHO = Ours("echo", Cost(10, 3, 16), script="relay_echo.py", flags=("--node",))

CASES = (
    Case(
        "allreduce-100M",
        "masked sum over MPI",
        100 * M,
        _MPI_100M,
        (
            Peer(
                row="mpi-allreduce-100M",
                system="mpi4py",
                work="plain allreduce",
                script="mpi_allreduce.py",
                environment="reference",
                package="mpi4py",
                cost=Cost(5, 2, 56),
            ),
            Peer(
                row="mpi-allreduce-chunks-100M",
                system="mpi4py",
                work="plain allreduce, 16 MiB chunks",
                script="mpi_allreduce.py",
                environment="reference",
                package="mpi4py",
                flags=("--chunk-bytes", str(16 << 20)),
                cost=Cost(5, 2, 56),
            ),
            Peer(
                row="torch-allreduce-100M",
                system="torch.distributed",
                work="plain allreduce, gloo",
                script="torch_allreduce.py",
                environment="reference",
                package="torch",
                cost=Cost(10, 3, 56, GIB),
            ),
        ),
    ),
    Case(
        "flower-simulation-100M",
        "masked sum over MPI",
        100 * M,
        _MPI_100M,
        (
            Peer(
                row="flower-simulation-plain-100M",
                system="flower simulation",
                work="plain FedAvg",
                script="flower_simulation.py",
                environment="flower",
                package="flwr",
                cost=Cost(15, 10, 156),
                aim=Aim(wall=6),
                memory_share=0.93,
            ),
            Peer(
                row="flower-simulation-secagg-100M",
                system="flower simulation",
                work="secure aggregation",
                script="flower_simulation.py",
                environment="flower",
                package="flwr",
                flags=("--secure",),
                cost=Cost(15, 48, 186),
                aim=Aim(wall=30, memory=4),
                memory_share=0.95,
            ),
        ),
    ),
    Case(
        "servers-100M",
        "masked sum over MPI",
        100 * M,
        _MPI_100M,
        (
            Peer(
                row="appfl-plain-100M",
                system="appfl mpi",
                work="plain FedAvg",
                script="appfl_mpi.py",
                environment="appfl",
                package="appfl",
                cost=Cost(20, 18, 115, 2 * GIB),
                aim=Aim(wall=12),
            ),
            Peer(
                row="nvflare-simulator-plain-100M",
                system="nvflare simulator",
                work="plain FedAvg",
                script="nvflare_fedavg.py",
                environment="nvflare",
                package="nvflare",
                flags=("--mode", "simulator"),
                cost=Cost(20, 18.4, 140),
                aim=Aim(wall=12),
                memory_share=0.93,
            ),
        ),
    ),
    Case(
        "protected-1M",
        "masked sum over MPI",
        M,
        _MPI_1M,
        (
            Peer(
                row="appfl-secure-1M",
                system="appfl mpi",
                work="secure aggregation",
                script="appfl_mpi.py",
                environment="appfl",
                package="appfl",
                flags=("--secure",),
                cost=Cost(15, 6, 115, 2 * GIB),
                aim=Aim(wall=200),
            ),
            Peer(
                row="nvflare-he-1M",
                system="nvflare poc",
                work="homomorphic encryption",
                script="nvflare_fedavg.py",
                environment="nvflare",
                package="nvflare",
                flags=("--mode", "he"),
                cost=Cost(40, 10.7, 1800, 4 * GIB),
                aim=Aim(wall=300),
            ),
        ),
    ),
    Case(
        "relay-100M",
        "masked sum over the TLS relay",
        100 * M,
        _RELAY_100M,
        (
            Peer(
                row="flower-deployment-plain-100M",
                system="flower deployment",
                work="plain FedAvg",
                script="flower_deployment.py",
                environment="flower",
                package="flwr",
                flags=("--tls",),
                cost=Cost(25, 17.6, 75),
                aim=Aim(wall=2, server_memory=20),
            ),
            Peer(
                row="nvflare-poc-plain-100M",
                system="nvflare poc",
                work="plain FedAvg",
                script="nvflare_fedavg.py",
                environment="nvflare",
                package="nvflare",
                flags=("--mode", "poc"),
                cost=Cost(40, 24.4, 186),
                aim=Aim(wall=2.5, server_memory=20),
                memory_share=0.95,
            ),
        ),
    ),
    Case(
        "relay-1M",
        "masked sum over the TLS relay",
        M,
        _RELAY_1M,
        (
            Peer(
                row="flower-deployment-secagg-1M",
                system="flower deployment",
                work="secure aggregation",
                script="flower_deployment.py",
                environment="flower",
                package="flwr",
                flags=("--tls", "--secure"),
                cost=Cost(30, 33, 200, 2 * GIB),
                aim=Aim(wall=60),
            ),
        ),
    ),
    Case(
        "echo-125M",
        "0.5 GB to another site and back",
        125 * M,
        _ECHO,
        (
            Peer(
                row="grpc-echo-125M",
                system="flower gRPC",
                work="echo",
                script="grpc_echo.py",
                environment="flower_grpc",
                package="flwr",
                cost=Cost(25, 20, 48),
                aim=Aim(wall=4),
            ),
        ),
        sites=1,
    ),
    Case(
        "http-echo-125M",
        "0.5 GB to another site and back",
        125 * M,
        _ECHO,
        (
            Peer(
                row="http-echo-125M",
                system="flower deployment",
                work="echo",
                script="grpc_echo.py",
                environment="flower",
                package="flwr",
                cost=Cost(25, 20, 48),
                aim=Aim(wall=4),
            ),
        ),
        sites=1,
    ),
    Case(
        "streaming-125M",
        "masked sum of a 0.5 GB model over the TLS relay",
        125 * M,
        Ours("relayed masked sum", Cost(20, 45, 60), ("sum", "--exchange", "https")),
        (
            Peer(
                row="nvflare-streaming-125M",
                system="nvflare poc",
                work="tensor streaming",
                script="nvflare_streaming.py",
                environment="nvflare",
                package="nvflare",
                flags=("--way", "downloader"),  # all of it in memory, for its best time
                cost=Cost(40, 120, 75, 3 * GIB),
                aim=Aim(wall=3),
                memory_share=0.93,
            ),
        ),
        sites=6,
    ),
    Case(
        "streaming-250M",
        "masked sum of a 1 GB model over the TLS relay",
        250 * M,
        Ours("relayed masked sum", Cost(20, 90, 60), ("sum", "--exchange", "https")),
        (
            Peer(
                row="nvflare-streaming-250M",
                system="nvflare poc",
                work="tensor streaming",
                script="nvflare_streaming.py",
                environment="nvflare",
                package="nvflare",
                flags=("--way", "offload"),  # for its least memory, which costs it time
                cost=Cost(40, 180, 65, 3 * GIB),
                aim=Aim(server_memory=20),
                memory_share=0.93,
            ),
        ),
        sites=6,
        warm=(1, 1),
        long=True,
    ),
)


def case_of(name: str) -> Case | None:
    """The case, or the one row of a case, that is called so."""
    for case in CASES:
        if case.name == name:
            return case
        if any(peer.row == name for peer in case.peers):
            return case.only(name)
    return None


def peers() -> dict[str, Peer]:
    """All peers by their rows."""
    return {peer.row: peer for case in CASES for peer in case.peers}
