"""[slurm] of a site file: what a site asks of its batch queue. The profile's values come first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from fedhpc.config import read_section, refuse_unknown
from fedhpc.errors import ConfigError
from fedhpc.slurm.container_section import ContainerSection, join_containers, read_container
from fedhpc.slurm.extra import check_extra

_WALLTIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,4}):([0-5]?\d):([0-5]?\d)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CLUSTER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class SlurmSettings:
    """[slurm]"""

    profile: str = "generic"
    """Where the defaults of all other keys come from: a file of jobs/profiles, without .toml."""
    cluster: str = ""
    """The cluster that takes the jobs (sbatch --clusters); empty: SLURM_CLUSTERS, or the one of this machine."""
    account: str = ""
    partition: str = ""
    any_partition: bool = False
    """Take partitions that the profile does not list."""
    qos: str = ""
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    time: str = "01:00:00"
    """Walltime, HH:MM:SS or D-HH:MM:SS."""
    memory: str = ""
    """Of a node, as --mem takes it."""
    constraint: str = ""
    reservation: str = ""
    mpi: str = ""
    """srun --mpi=; empty: the cluster's default."""
    launcher: Literal["srun", "mpirun"] = "srun"
    rank_wrapper: Literal["", "select_gpu"] = ""
    """select_gpu: each rank sees one GPU of its node, chosen by its number there."""
    python: str = ""
    """The interpreter; empty: the one that runs `fedhpc submit`."""
    setup: tuple[str, ...] = ()
    """Lines of bash before anything else runs: modules, an environment."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for all that the job starts; of the profile and of the site file both."""
    export: Literal["ALL", "NONE"] = "ALL"
    """Whether the job begins with the environment of the shell that submits it."""
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How sbatch is asked for GPUs: --gpus-per-node=N, or --gres=gpu:N."""
    preflight: bool = True
    """Run `fedhpc doctor --quick` before the ranks start."""
    signal_s: int = 300
    """How long before the walltime's end the ranks are told to stop."""
    max_requeues: int = 20
    """How often one job may be requeued, by its script or by the cluster."""
    requeue_s: int = 600
    """How long an exchange job that waited in vain for other sites stays out of the queue."""
    ahead: int = 1
    """Jobs that wait in the queue behind the running one; not for inline."""
    max_links: int = 1000
    """How many jobs one chain may have."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch, such as "--exclusive"."""
    container: dict[str, Any] = field(default_factory=dict)
    """The image that the jobs run in, and how it is entered."""
    exchange: dict[str, Any] = field(default_factory=dict)
    """Other values for the jobs of `detached` that only exchange: one task, no GPU."""

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "cpus_per_task"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ConfigError(f"slurm.{name} = {getattr(self, name)}", "at least 1")
        if not 0 <= self.gpus_per_node <= 1024:
            raise ConfigError(f"slurm.gpus_per_node = {self.gpus_per_node}", "0 to 1024")
        if not 0 <= self.max_requeues <= 10_000:
            raise ConfigError(f"slurm.max_requeues = {self.max_requeues}", "0 to 10000")
        if not 0 <= self.requeue_s <= 7 * 86400:
            raise ConfigError(f"slurm.requeue_s = {self.requeue_s}", "0 seconds to 7 days")
        if not 1 <= self.max_links <= 1_000_000:
            raise ConfigError(f"slurm.max_links = {self.max_links}", "1 to 1000000")
        if not 0 <= self.ahead <= 100:
            raise ConfigError(f"slurm.ahead = {self.ahead}", "0 to 100")
        whole = walltime_s(self.time)
        if not 1 <= self.signal_s <= 65535:
            raise ConfigError(f"slurm.signal_s = {self.signal_s}", "1 to 65535 seconds, as sbatch --signal takes it")
        if self.signal_s >= whole:
            raise ConfigError(
                f"slurm.signal_s = {self.signal_s} is not less than the walltime {self.time}",
                "the ranks would be told to stop before they begin",
            )
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, str) and not value.isprintable():
                raise ConfigError(
                    f"slurm.{name} = {value!r}", "one line of printable characters: sbatch cannot hold it"
                )
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value:
                raise ConfigError(f"slurm.environment: {name!r} = {value!r}", "names as a shell takes them, no NUL")
        if any("\0" in line for line in self.setup):
            raise ConfigError("slurm.setup holds a NUL character")
        if self.cluster:
            check_cluster(self.cluster, "slurm.cluster")
        check_extra(self.extra, memory=self.memory, gpus_per_node=self.gpus_per_node, gpu_request=self.gpu_request)
        read_container(self.container)
        refuse_unknown(
            self.exchange, [f.name for f in fields(self) if f.name not in _NOT_IN_EXCHANGE], "slurm.exchange"
        )

    @property
    def inside(self) -> ContainerSection:
        """[slurm.container]."""
        return read_container(self.container)


_NOT_IN_EXCHANGE = (
    "exchange",
    "container",
    "profile",
    "cluster",
    "ahead",
    "nodes",
    "tasks_per_node",
    "gpus_per_node",
    "rank_wrapper",
)


def check_cluster(name: str, where: str) -> str:
    """`name`, if it is one cluster's. Raises ConfigError for several, and for `all`."""
    if not _CLUSTER.fullmatch(name) or name.casefold() == "all":
        raise ConfigError(
            f"{where} = {name!r} is not the name of one cluster",
            'a job waits for the one before only within a cluster: [slurm] cluster = "NAME"; '
            "`sacctmgr show clusters` lists them",
        )
    return name


def walltime_s(text: str) -> int:
    """Seconds of HH:MM:SS or D-HH:MM:SS. Raises ConfigError for another form, and for none at all."""
    found = _WALLTIME.fullmatch(text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not whole:
        raise ConfigError(f"slurm.time = {text!r} is not a walltime", "HH:MM:SS or D-HH:MM:SS, such as 1-12:00:00")
    return whole


def overlay(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> SlurmSettings:
    """The settings of `given`, with those of a profile where it says nothing; tables and lists are joined."""
    # What is said of a container is judged together with the profile's.
    read_section(SlurmSettings, {n: value for n, value in given.items() if n != "container"}, "slurm")
    joined: dict[str, Any] = {n: {**_table(defaults, n), **_table(given, n)} for n in ("environment", "exchange")}
    joined["container"] = join_containers(_table(defaults, "container"), _table(given, "container"))
    joined |= {n: [*defaults.get(n, []), *given.get(n, [])] for n in ("setup", "extra")}
    return read_section(SlurmSettings, {**defaults, **given, **joined}, "slurm")


def exchange_settings(settings: SlurmSettings) -> SlurmSettings:
    """What a job asks for that only exchanges: one task without a GPU, and what [slurm.exchange] says."""
    values = {f.name: _plain(getattr(settings, f.name)) for f in fields(settings)}
    values |= {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "rank_wrapper": "", "memory": "", "exchange": {}}
    values |= {"environment": {**settings.environment, **_table(settings.exchange, "environment")}}
    values |= {k: v for k, v in settings.exchange.items() if k != "environment"}
    return read_section(SlurmSettings, values, "slurm.exchange")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _table(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = table.get(name, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"slurm.{name} must be a table", f"write it as [slurm.{name}]")
    return value
